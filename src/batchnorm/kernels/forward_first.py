"""Training forward and inference, channels first: what is done to the elements of adjacent channels' planes.

`add` sums ``x - shift`` and its square (`equations.moments`): float32 over at most 64 elements a lane, then float64.
`apply` is `equations.normalized`, residual and activation. `both` does one to some channels and the other to the next
ones, so that reading and writing overlap; its sums have the bits of `add`. `walk_first` says in which order.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

from numba import njit

from .activations import activate
from .block import LENGTH, MASK, PITCH, RESIDUAL, WORK, X, Y
from .intrinsics import ahead, get_int, has_mask, has_residual, itemsize, lanes, lines, streams
from .memory import (
    before_line,
    first_lanes,
    load,
    load_flags,
    load_some,
    load_two,
    prefetch,
    prefetch_to_write,
    spread_wide,
    store_next,
    store_some,
    store_two,
    store_two_past,
)
from .vectors import add_to, fma, load_sums, select, splat, store_sums
from .walk_first import ROOM, jump_after, plane_at

__all__ = ["SOON", "add", "apply", "both", "fetch_four"]

FLUSH = 64
"""Additions a lane makes in float32 before it is added in float64."""
FAR = 1 << 62
SOON = 8
"""Vectors between the one that is written and the one whose line is asked for."""


def add(block, plane, channel, count, start, stop, sums, spec):
    """Add what lies between ``start`` and ``stop`` of ``count`` planes to the lanes' sums of ``d`` and of ``d*d``."""
    x, base = get_int(block, X), plane_at(block, X, plane, channel)
    work, step = get_int(block, WORK), get_int(block, X + 3)
    for c in range(count):
        shift = spread_wide(spec, work, channel + c)
        if has_mask(spec):
            flags = get_int(block, MASK) + plane * get_int(block, LENGTH)
            _add_counted(x, base, flags, start, stop, shift, sums, spec)
        else:
            _add_all(x, base, start, stop, shift, sums, spec)
        base += step
        sums += ROOM * 8


@njit(error_model="numpy")
def _add_counted(x, base, flags, start, stop, shift, sums, spec):
    n, nothing = lanes(spec), splat(spec, 0.0)
    total_d, total_q = load_sums(spec, sums, 0), load_sums(spec, sums, 16)
    for i in range(start, stop, n):
        some = min(n, stop - i)
        d = load_some(spec, x, base + i, some) - shift
        d = select(load_flags(spec, flags, i, some), d, nothing)
        total_d, total_q = add_to(total_d, d), add_to(total_q, d * d)
    store_sums(spec, sums, 0, total_d)
    store_sums(spec, sums, 16, total_q)


@njit(error_model="numpy")
def _add_all(x, base, start, stop, shift, sums, spec):
    n, nothing = lanes(spec), splat(spec, 0.0)
    total_d, total_q = load_sums(spec, sums, 0), load_sums(spec, sums, 16)
    i = start
    while i + 4 * n <= stop:
        until = min(stop - 4 * n, i + 4 * n * (FLUSH - 1))
        s0, s1, s2, s3 = nothing, nothing, nothing, nothing
        q0, q1, q2, q3 = nothing, nothing, nothing, nothing
        while i <= until:
            d0, d1, d2, d3 = _four(x, base + i, shift, spec)
            s0, s1, s2, s3 = s0 + d0, s1 + d1, s2 + d2, s3 + d3
            q0, q1, q2, q3 = fma(d0, d0, q0), fma(d1, d1, q1), fma(d2, d2, q2), fma(d3, d3, q3)
            i += 4 * n
        total_d = add_to(total_d, (s0 + s1) + (s2 + s3))
        total_q = add_to(total_q, (q0 + q1) + (q2 + q3))
    _add_rest(x, base, i, stop, shift, total_d, total_q, sums, spec)


@njit(error_model="numpy")
def _four(x, index, shift, spec):
    x0, x1 = load_two(spec, x, index)
    x2, x3 = load_two(spec, x, index + 2 * lanes(spec))
    return x0 - shift, x1 - shift, x2 - shift, x3 - shift


@njit(error_model="numpy")
def fetch_four(x, index, end, jump, spec):
    """Ask for what will be read after a while in place of four vectors; beyond ``end`` it lies ``jump`` further on."""
    later = index + ahead(spec)
    later = later + jump if later >= end else later
    for k in range(0, 4, lines(spec)):
        prefetch(x + (later + k * lanes(spec)) * itemsize(spec))


@njit(error_model="numpy")
def _add_rest(x, base, i, stop, shift, total_d, total_q, sums, spec):
    """What is less than four vectors; then the sums go back to memory."""
    n, nothing = lanes(spec), splat(spec, 0.0)
    s0, q0 = nothing, nothing
    while i + n <= stop:
        d0 = load(spec, x, base + i) - shift
        s0, q0 = s0 + d0, fma(d0, d0, q0)
        i += n
    if i < stop:
        d0 = select(first_lanes(spec, stop - i), load_some(spec, x, base + i, stop - i) - shift, nothing)
        s0, q0 = s0 + d0, fma(d0, d0, q0)
    store_sums(spec, sums, 0, add_to(total_d, s0))
    store_sums(spec, sums, 16, add_to(total_q, q0))


def apply(block, plane, channel, count, start, stop, _sums, spec):
    """``activation((x - high)*scale + shift + residual)``: `equations.normalized` of ``count`` runs."""
    work, pitch, n = get_int(block, WORK), get_int(block, PITCH), lanes(spec)
    x, x0 = get_int(block, X), plane_at(block, X, plane, channel)
    y, y0 = get_int(block, Y), plane_at(block, Y, plane, channel)
    r, r0 = get_int(block, RESIDUAL), plane_at(block, RESIDUAL, plane, channel)
    x_step, y_step, r_step = get_int(block, X + 3), get_int(block, Y + 3), get_int(block, RESIDUAL + 3)
    for c in range(channel, channel + count):
        high, scale = spread_wide(spec, work, c), spread_wide(spec, work, pitch + c)
        shift = spread_wide(spec, work, 2 * pitch + c)
        i = start + _head(x, x0 + start, y, y0 + start, r, r0 + start, stop - start, high, scale, shift, spec)
        while i + 4 * n <= stop:
            if streams(spec):
                fetch_four(x, x0 + i, FAR, 0, spec)
                if has_residual(spec):
                    fetch_four(r, r0 + i, FAR, 0, spec)
            _write_two(x, x0 + i, y, y0 + i, r, r0 + i, high, scale, shift, spec)
            _write_two(x, x0 + i + 2 * n, y, y0 + i + 2 * n, r, r0 + i + 2 * n, high, scale, shift, spec)
            i += 4 * n
        _write_rest(x, x0, y, y0, r, r0, i, stop, high, scale, shift, spec)
        x0, y0, r0 = x0 + x_step, y0 + y_step, r0 + r_step


@njit(error_model="numpy")
def _head(x, x0, y, y0, r, r0, most, high, scale, shift, spec):
    """Write up to the first address that a store past the caches may go to; returns how many."""
    head = before_line(spec, y, y0, most)
    for i in range(0, head, lanes(spec)):
        _write_some(x, x0 + i, y, y0 + i, r, r0 + i, min(lanes(spec), head - i), high, scale, shift, spec)
    return head


@njit(error_model="numpy")
def _normalized(x, x0, r, r0, high, scale, shift, spec):
    z = fma(load(spec, x, x0) - high, scale, shift)
    if has_residual(spec):
        z = z + load(spec, r, r0)
    return activate(spec, z)


@njit(error_model="numpy")
def _write_two(x, x0, y, y0, r, r0, high, scale, shift, spec):
    n = lanes(spec)
    z0 = _normalized(x, x0, r, r0, high, scale, shift, spec)
    z1 = _normalized(x, x0 + n, r, r0 + n, high, scale, shift, spec)
    if streams(spec):
        store_two_past(spec, y, y0, z0, z1)
    else:
        for k in range(0, 2, lines(spec)):
            prefetch_to_write(y + (y0 + (SOON + k) * n) * itemsize(spec))
        store_two(spec, y, y0, z0, z1)


@njit(error_model="numpy")
def _write_some(x, x0, y, y0, r, r0, some, high, scale, shift, spec):
    z = fma(load_some(spec, x, x0, some) - high, scale, shift)
    if has_residual(spec):
        z = z + load_some(spec, r, r0, some)
    store_some(spec, y, y0, activate(spec, z), some)


@njit(error_model="numpy")
def _write_rest(x, x0, y, y0, r, r0, i, stop, high, scale, shift, spec):
    while i + 2 * lanes(spec) <= stop:
        _write_two(x, x0 + i, y, y0 + i, r, r0 + i, high, scale, shift, spec)
        i += 2 * lanes(spec)
    if i + lanes(spec) <= stop:
        store_next(spec, y, y0 + i, _normalized(x, x0 + i, r, r0 + i, high, scale, shift, spec))
        i += lanes(spec)
    if i < stop:
        _write_some(x, x0 + i, y, y0 + i, r, r0 + i, stop - i, high, scale, shift, spec)


def both(block, plane, channel, next_plane, next_channel, count, sums, spec):
    """`apply` to ``count`` planes from ``channel`` on, and `add` to as many from ``next_channel`` on."""
    work, pitch, n, stop = get_int(block, WORK), get_int(block, PITCH), lanes(spec), get_int(block, LENGTH)
    x, x0 = get_int(block, X), plane_at(block, X, plane, channel)
    y, y0 = get_int(block, Y), plane_at(block, Y, plane, channel)
    r, r0 = get_int(block, RESIDUAL), plane_at(block, RESIDUAL, plane, channel)
    base, nothing = plane_at(block, X, next_plane, next_channel), splat(spec, 0.0)
    end, jump = jump_after(block, X, next_plane, 1, next_channel, count)
    r_end, r_jump = jump_after(block, RESIDUAL, plane, -1, channel, count)
    x_step, y_step, r_step = get_int(block, X + 3), get_int(block, Y + 3), get_int(block, RESIDUAL + 3)
    for c in range(count):
        high, scale = spread_wide(spec, work, channel + c), spread_wide(spec, work, pitch + channel + c)
        shift, around = spread_wide(spec, work, 2 * pitch + channel + c), spread_wide(spec, work, next_channel + c)
        total_d, total_q = load_sums(spec, sums, 0), load_sums(spec, sums, 16)
        i, j = 0, _head(x, x0, y, y0, r, r0, stop, high, scale, shift, spec)
        while i + 4 * n <= stop:
            until = min(stop - 4 * n, i + 4 * n * (FLUSH - 1))
            s0, s1, s2, s3 = nothing, nothing, nothing, nothing
            q0, q1, q2, q3 = nothing, nothing, nothing, nothing
            while i <= until:
                fetch_four(x, base + i, end, jump, spec)
                if has_residual(spec):
                    fetch_four(r, r0 + i, r_end, r_jump, spec)
                d0, d1, d2, d3 = _four(x, base + i, around, spec)
                s0, s1, s2, s3 = s0 + d0, s1 + d1, s2 + d2, s3 + d3
                q0, q1, q2, q3 = fma(d0, d0, q0), fma(d1, d1, q1), fma(d2, d2, q2), fma(d3, d3, q3)
                if j + 4 * n <= stop:
                    _write_two(x, x0 + j, y, y0 + j, r, r0 + j, high, scale, shift, spec)
                    _write_two(x, x0 + j + 2 * n, y, y0 + j + 2 * n, r, r0 + j + 2 * n, high, scale, shift, spec)
                    j += 4 * n
                i += 4 * n
            total_d = add_to(total_d, (s0 + s1) + (s2 + s3))
            total_q = add_to(total_q, (q0 + q1) + (q2 + q3))
        _add_rest(x, base, i, stop, around, total_d, total_q, sums, spec)
        _write_rest(x, x0, y, y0, r, r0, j, stop, high, scale, shift, spec)
        x0, y0, r0, base, sums = x0 + x_step, y0 + y_step, r0 + r_step, base + x_step, sums + ROOM * 8
