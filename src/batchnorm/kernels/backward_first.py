"""The way back, channels first: what is done to the elements of a run.

`add` sums the gradient ``g`` before the activation and ``g*(x - high)`` (`equations.parameter_gradients`); `apply` is
``dx = scale*g + slope*(x - high) + shift``, `equations.input_gradient` with the coefficients of `settle`. What the
activation lets through is computed again from x, and the residual if there is one; then ``g`` is the residual's
gradient, which `add` leaves behind and `apply` reads.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201
from __future__ import annotations

from .activations import before_activation
from .block import (
    GRAD,
    GRAD_SCALE,
    GRAD_SHIFT,
    GRAD_SLOPE,
    LENGTH,
    MASK,
    PITCH,
    RESIDUAL,
    RESIDUAL_GRAD,
    SCALE,
    SHIFT,
    TRAINING,
    WORK,
    X,
    Y,
)
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
from .vectors import add_to, counted, fma, load_sums, select, splat, store_sums
from .walk_first import plane_at

__all__ = ["add", "apply"]

FLUSH = 64
"""Additions a lane makes in float32 before it is added in float64."""


def add(block, plane, channel, start, stop, sums, spec):
    """Add a run's ``g`` and ``g*(x - high)`` to the lanes' sums."""
    work, pitch = get_int(block, WORK), get_int(block, PITCH)
    x, x0 = get_int(block, X), plane_at(block, X, plane, channel)
    g, g0 = get_int(block, GRAD), plane_at(block, GRAD, plane, channel)
    r, r0 = get_int(block, RESIDUAL), plane_at(block, RESIDUAL, plane, channel)
    dr, dr0 = get_int(block, RESIDUAL_GRAD), plane_at(block, RESIDUAL_GRAD, plane, channel)
    high, scale = spread_wide(spec, work, channel), spread_wide(spec, work, SCALE * pitch + channel)
    shift, nothing = spread_wide(spec, work, SHIFT * pitch + channel), splat(spec, 0.0)
    flags = get_int(block, MASK) + plane * get_int(block, LENGTH)
    n = lanes(spec)
    total_g, total_p = load_sums(spec, sums, 0), load_sums(spec, sums, 16)
    i = start
    while i + 2 * n <= stop:
        until = min(stop - 2 * n, i + 2 * n * (FLUSH - 1))
        s0, s1, p0, p1 = nothing, nothing, nothing, nothing
        while i <= until:
            d0, d1 = load(spec, x, x0 + i) - high, load(spec, x, x0 + i + n) - high
            u0, u1 = load(spec, g, g0 + i), load(spec, g, g0 + i + n)
            if has_residual(spec):
                u0 = before_activation(spec, u0, d0, scale, shift, load(spec, r, r0 + i))
                u1 = before_activation(spec, u1, d1, scale, shift, load(spec, r, r0 + i + n))
                store(spec, dr, dr0 + i, u0)
                store(spec, dr, dr0 + i + n, u1)
            else:
                u0 = before_activation(spec, u0, d0, scale, shift, nothing)
                u1 = before_activation(spec, u1, d1, scale, shift, nothing)
            if has_mask(spec):
                d0 = counted(load_flags(spec, flags, i, n), u0, d0)
                d1 = counted(load_flags(spec, flags, i + n, n), u1, d1)
            s0, s1 = s0 + u0, s1 + u1
            p0, p1 = fma(u0, d0, p0), fma(u1, d1, p1)
            i += 2 * n
        total_g, total_p = add_to(total_g, s0 + s1), add_to(total_p, p0 + p1)
    while i < stop:
        some = min(n, stop - i)
        inside = first_lanes(spec, some)
        d = select(inside, load_some(spec, x, x0 + i, some) - high, nothing)
        u = load_some(spec, g, g0 + i, some)
        if has_residual(spec):
            u = before_activation(spec, u, d, scale, shift, load_some(spec, r, r0 + i, some))
            store_some(spec, dr, dr0 + i, u, some)
        else:
            u = before_activation(spec, u, d, scale, shift, nothing)
        if has_mask(spec):
            d = counted(load_flags(spec, flags, i, some), u, d)
        u = select(inside, u, nothing)
        total_g, total_p = add_to(total_g, u), add_to(total_p, u * d)
        i += n
    store_sums(spec, sums, 0, total_g)
    store_sums(spec, sums, 16, total_p)


def apply(block, plane, channel, start, stop, fetch, spec):
    """Write a run of the gradient of x."""
    work, pitch = get_int(block, WORK), get_int(block, PITCH)
    x, x0 = get_int(block, X), plane_at(block, X, plane, channel)
    y, y0 = get_int(block, Y), plane_at(block, Y, plane, channel)
    source = RESIDUAL_GRAD if has_residual(spec) else GRAD
    g, g0 = get_int(block, source), plane_at(block, source, plane, channel)
    high, scale = spread_wide(spec, work, channel), spread_wide(spec, work, SCALE * pitch + channel)
    shift, nothing = spread_wide(spec, work, SHIFT * pitch + channel), splat(spec, 0.0)
    along_g, along_x = (
        spread_wide(spec, work, GRAD_SCALE * pitch + channel),
        spread_wide(spec, work, GRAD_SLOPE * pitch + channel),
    )
    constant = spread_wide(spec, work, GRAD_SHIFT * pitch + channel)
    flags = get_int(block, MASK) + plane * get_int(block, LENGTH)
    training = get_int(block, TRAINING) != 0
    n = lanes(spec)
    i = start
    while i < stop:
        # Up to the first address that a store past the caches may go to; then whole vectors; then what is left.
        some = min(n, stop - i)
        if streams(spec) and i == start:
            head = (-(y // itemsize(spec) + y0 + i)) % n
            some = min(some, head) if head > 0 else some
        if some == n:
            d = load(spec, x, x0 + i) - high
            u = load(spec, g, g0 + i)
        else:
            d = load_some(spec, x, x0 + i, some) - high
            u = load_some(spec, g, g0 + i, some)
        if not has_residual(spec):
            u = before_activation(spec, u, d, scale, shift, nothing)
        through = fma(d, along_x, constant)
        if has_mask(spec):
            through = select(load_flags(spec, flags, i, some), through, nothing)
        dx = fma(u, along_g, through) if training else u * along_g
        if some < n:
            store_some(spec, y, y0 + i, dx, some)
        elif streams(spec):
            store_past(spec, y, y0 + i, dx)
        else:
            store(spec, y, y0 + i, dx)
        if fetch >= 0:
            prefetch(x + (fetch + i) * itemsize(spec))
            prefetch(g + (fetch + i) * itemsize(spec))
        i += some
