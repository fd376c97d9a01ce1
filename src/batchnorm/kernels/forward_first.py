"""Training forward and inference, channels first: what is done to the elements of a run.

`add` sums ``x - shift`` and its square (`equations.moments`): float32 over at most 64 elements a lane, then float64.
`apply` is `equations.normalized`, residual and activation. `walk_first` says in which order.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201
from __future__ import annotations

from .activations import activate
from .block import LENGTH, MASK, PITCH, RESIDUAL, WORK, X, Y
from .intrinsics import (
    first_lanes,
    get_int,
    has_mask,
    has_residual,
    itemsize,
    lanes,
    load,
    load_flags,
    load_some,
    prefetch,
    spread_wide,
    store,
    store_past,
    store_some,
    streams,
)
from .vectors import add_to, fma, load_sums, select, splat, store_sums
from .walk_first import plane_at

__all__ = ["add", "apply"]

FLUSH = 64
"""Additions a lane makes in float32 before it is added in float64."""


def add(block, plane, channel, start, stop, sums, spec):
    """Add what lies between ``start`` and ``stop`` of a plane to the lanes' sums of ``d`` and of ``d*d``."""
    x, base = get_int(block, X), plane_at(block, X, plane, channel)
    shift = spread_wide(spec, get_int(block, WORK), channel)
    n = lanes(spec)
    nothing = splat(spec, 0.0)
    total_d, total_q = load_sums(spec, sums, 0), load_sums(spec, sums, 16)
    i = start
    if has_mask(spec):
        flags = get_int(block, MASK) + plane * get_int(block, LENGTH)
        while i < stop:
            some = min(n, stop - i)
            d = load_some(spec, x, base + i, some) - shift
            d = select(load_flags(spec, flags, i, some), d, nothing)
            total_d, total_q = add_to(total_d, d), add_to(total_q, d * d)
            i += n
    else:
        while i + 4 * n <= stop:
            until = min(stop - 4 * n, i + 4 * n * (FLUSH - 1))
            s0, s1, s2, s3 = nothing, nothing, nothing, nothing
            q0, q1, q2, q3 = nothing, nothing, nothing, nothing
            while i <= until:
                d0, d1 = load(spec, x, base + i) - shift, load(spec, x, base + i + n) - shift
                d2, d3 = load(spec, x, base + i + 2 * n) - shift, load(spec, x, base + i + 3 * n) - shift
                s0, s1, s2, s3 = s0 + d0, s1 + d1, s2 + d2, s3 + d3
                q0, q1, q2, q3 = fma(d0, d0, q0), fma(d1, d1, q1), fma(d2, d2, q2), fma(d3, d3, q3)
                i += 4 * n
            total_d = add_to(total_d, (s0 + s1) + (s2 + s3))
            total_q = add_to(total_q, (q0 + q1) + (q2 + q3))
        s0, q0 = nothing, nothing
        while i + n <= stop:
            d0 = load(spec, x, base + i) - shift
            s0, q0 = s0 + d0, fma(d0, d0, q0)
            i += n
        if i < stop:
            d0 = select(first_lanes(spec, stop - i), load_some(spec, x, base + i, stop - i) - shift, nothing)
            s0, q0 = s0 + d0, fma(d0, d0, q0)
        total_d, total_q = add_to(total_d, s0), add_to(total_q, q0)
    store_sums(spec, sums, 0, total_d)
    store_sums(spec, sums, 16, total_q)


def apply(block, plane, channel, start, stop, fetch, spec):
    """``activation((x - high)*scale + shift + residual)``: `equations.normalized` of a run."""
    work, pitch = get_int(block, WORK), get_int(block, PITCH)
    x, x0 = get_int(block, X), plane_at(block, X, plane, channel)
    y, y0 = get_int(block, Y), plane_at(block, Y, plane, channel)
    r, r0 = get_int(block, RESIDUAL), plane_at(block, RESIDUAL, plane, channel)
    high = spread_wide(spec, work, channel)
    scale = spread_wide(spec, work, pitch + channel)
    shift = spread_wide(spec, work, 2 * pitch + channel)
    n = lanes(spec)
    i = start
    if streams(spec):
        # Up to the first address that a store past the caches may go to.
        size = itemsize(spec)
        head = min((-(y // size + y0 + i)) % n, stop - i)
        if head > 0:
            z = fma(load_some(spec, x, x0 + i, head) - high, scale, shift)
            if has_residual(spec):
                z = z + load_some(spec, r, r0 + i, head)
            store_some(spec, y, y0 + i, activate(spec, z), head)
            i += head
    while i + n <= stop:
        z = fma(load(spec, x, x0 + i) - high, scale, shift)
        if has_residual(spec):
            z = z + load(spec, r, r0 + i)
        if streams(spec):
            store_past(spec, y, y0 + i, activate(spec, z))
        else:
            store(spec, y, y0 + i, activate(spec, z))
        if fetch >= 0:
            prefetch(x + (fetch + i) * itemsize(spec))
        i += n
    if i < stop:
        z = fma(load_some(spec, x, x0 + i, stop - i) - high, scale, shift)
        if has_residual(spec):
            z = z + load_some(spec, r, r0 + i, stop - i)
        store_some(spec, y, y0 + i, activate(spec, z), stop - i)
