"""The way back, channels first: what is done to the elements of adjacent channels' planes.

`add` sums the gradient ``g`` before the activation and ``g*(x - high)`` (`equations.parameter_gradients`); `apply` is
``dx = scale*g + slope*(x - high) + shift``, `equations.input_gradient` with the coefficients of `settle`. What the
activation lets through is computed again from x, and the residual if there is one; then ``g`` is the residual's
gradient, which `add` leaves behind and `apply` reads. `both` does one to some channels and the other to the next ones,
so that reading and writing overlap; its sums have the bits of `add`.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

from numba import njit

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
    store,
    store_next,
    store_some,
    store_two,
    store_two_past,
)
from .vectors import add_to, counted, fma, load_sums, select, splat, store_sums
from .walk_first import ROOM, jump_after, plane_at

__all__ = ["add", "apply", "both"]

FLUSH = 64
"""Additions a lane makes in float32 before it is added in float64."""
SOON = 8
"""Vectors between the one that is written and the one whose line is asked for."""


def add(block, plane, channel, count, start, stop, sums, spec):
    """Add ``g`` and ``g*(x - high)`` of ``count`` runs to the lanes' sums."""
    at = _read_at(block, plane, channel)
    for c in range(channel, channel + count):
        forward = _forward(block, c, spec)
        totals = load_sums(spec, sums, 0), load_sums(spec, sums, 16)
        i = start
        while i + 2 * lanes(spec) <= stop:
            until = min(stop - 2 * lanes(spec), i + 2 * lanes(spec) * (FLUSH - 1))
            four = _nothing(spec)
            while i <= until:
                four = _add_two(at, i, forward, four, spec)
                i += 2 * lanes(spec)
            totals = _flushed(totals, four)
        _add_rest(at, i, stop, forward, totals, sums, spec)
        at = _next(block, at)
        sums += ROOM * 8


def apply(block, plane, channel, count, start, stop, _sums, spec):
    """Write the gradient of x, of ``count`` runs."""
    at, n = _write_at(block, plane, channel, spec), lanes(spec)
    for c in range(channel, channel + count):
        how = _backward(block, c, spec)
        i = start + _head(at, start, stop, how, spec)
        while i + 2 * n <= stop:
            _write_two(at, i, how, spec)
            i += 2 * n
        _write_rest(at, i, stop, how, spec)
        at = _next_written(block, at, spec)


def both(block, plane, channel, next_plane, next_channel, count, sums, spec):
    """`apply` to ``count`` planes from ``channel`` on, and `add` to as many from ``next_channel`` on."""
    at, to = _read_at(block, next_plane, next_channel), _write_at(block, plane, channel, spec)
    n, stop = lanes(spec), get_int(block, LENGTH)
    jumps = (
        *jump_after(block, X, next_plane, 1, next_channel, count),
        *jump_after(block, GRAD, next_plane, 1, next_channel, count),
        *jump_after(block, RESIDUAL, next_plane, 1, next_channel, count),
    )
    for c in range(count):
        forward, how = _forward(block, next_channel + c, spec), _backward(block, channel + c, spec)
        totals = load_sums(spec, sums, 0), load_sums(spec, sums, 16)
        i, j = 0, _head(to, 0, stop, how, spec)
        while i + 2 * n <= stop:
            until = min(stop - 2 * n, i + 2 * n * (FLUSH - 1))
            four = _nothing(spec)
            while i <= until:
                _fetch(at, i, jumps, spec)
                four = _add_two(at, i, forward, four, spec)
                if j + 2 * n <= stop:
                    _write_two(to, j, how, spec)
                    j += 2 * n
                i += 2 * n
            totals = _flushed(totals, four)
        _add_rest(at, i, stop, forward, totals, sums, spec)
        _write_rest(to, j, stop, how, spec)
        at, to = _next(block, at), _next_written(block, to, spec)
        sums += ROOM * 8


@njit(error_model="numpy")
def _read_at(block, plane, channel):
    """Addresses and first indices of x, the gradient, the residual and its gradient; the address of the mask."""
    x, x0 = get_int(block, X), plane_at(block, X, plane, channel)
    g, g0 = get_int(block, GRAD), plane_at(block, GRAD, plane, channel)
    r, r0 = get_int(block, RESIDUAL), plane_at(block, RESIDUAL, plane, channel)
    dr, dr0 = get_int(block, RESIDUAL_GRAD), plane_at(block, RESIDUAL_GRAD, plane, channel)
    return x, x0, g, g0, r, r0, dr, dr0, get_int(block, MASK) + plane * get_int(block, LENGTH)


@njit(error_model="numpy")
def _next(block, at):
    """The same of the next channel."""
    x, x0, g, g0, r, r0, dr, dr0, flags = at
    x0, g0 = x0 + get_int(block, X + 3), g0 + get_int(block, GRAD + 3)
    return x, x0, g, g0, r, r0 + get_int(block, RESIDUAL + 3), dr, dr0 + get_int(block, RESIDUAL_GRAD + 3), flags


@njit(error_model="numpy")
def _forward(block, channel, spec):
    """``high, scale, shift`` of the way forward."""
    work, pitch = get_int(block, WORK), get_int(block, PITCH)
    return (
        spread_wide(spec, work, channel),
        spread_wide(spec, work, SCALE * pitch + channel),
        spread_wide(spec, work, SHIFT * pitch + channel),
    )


@njit(error_model="numpy")
def _fetch(at, i, jumps, spec):
    """Ask for what will be read after a while in place of two vectors."""
    x, x0, g, g0, r, r0, _, _, _ = at
    _fetch_two(x, x0 + i, jumps[0], jumps[1], spec)
    _fetch_two(g, g0 + i, jumps[2], jumps[3], spec)
    if has_residual(spec):
        _fetch_two(r, r0 + i, jumps[4], jumps[5], spec)


@njit(error_model="numpy")
def _fetch_two(x, index, end, jump, spec):
    later = index + ahead(spec)
    later = later + jump if later >= end else later
    for k in range(0, 2, lines(spec)):
        prefetch(x + (later + k * lanes(spec)) * itemsize(spec))


@njit(error_model="numpy")
def _nothing(spec):
    nothing = splat(spec, 0.0)
    return nothing, nothing, nothing, nothing


@njit(error_model="numpy")
def _flushed(totals, four):
    s0, s1, p0, p1 = four
    return add_to(totals[0], s0 + s1), add_to(totals[1], p0 + p1)


@njit(error_model="numpy")
def _add_two(at, i, forward, four, spec):
    s0, s1, p0, p1 = four
    if has_mask(spec) or has_residual(spec):
        u0, d0 = _one(at, i, forward, spec)
        u1, d1 = _one(at, i + lanes(spec), forward, spec)
    else:
        (u0, d0), (u1, d1) = _pair(at, i, forward, spec)
    return s0 + u0, s1 + u1, fma(u0, d0, p0), fma(u1, d1, p1)


@njit(error_model="numpy")
def _pair(at, i, forward, spec):
    """As `_one`, of two vectors, in the order of `load_two`."""
    high, scale, shift = forward
    (x0, x1), (g0, g1) = load_two(spec, at[0], at[1] + i), load_two(spec, at[2], at[3] + i)
    d0, d1 = x0 - high, x1 - high
    first = before_activation(spec, g0, d0, scale, shift, d0), d0
    return first, (before_activation(spec, g1, d1, scale, shift, d1), d1)


@njit(error_model="numpy")
def _one(at, i, forward, spec):
    """The gradient before the activation, and ``x - high``, of a vector."""
    x, x0, g, g0, r, r0, dr, dr0, flags = at
    high, scale, shift = forward
    d, u = load(spec, x, x0 + i) - high, load(spec, g, g0 + i)
    if has_residual(spec):
        u = before_activation(spec, u, d, scale, shift, load(spec, r, r0 + i))
        store(spec, dr, dr0 + i, u)
    else:
        u = before_activation(spec, u, d, scale, shift, d)
    if has_mask(spec):
        d = counted(load_flags(spec, flags, i, lanes(spec)), u, d)
    return u, d


@njit(error_model="numpy")
def _add_rest(at, i, stop, forward, totals, sums, spec):
    x, x0, g, g0, r, r0, dr, dr0, flags = at
    high, scale, shift = forward
    (total_g, total_p), nothing = totals, splat(spec, 0.0)
    while i < stop:
        some = min(lanes(spec), stop - i)
        inside = first_lanes(spec, some)
        d = select(inside, load_some(spec, x, x0 + i, some) - high, nothing)
        u = load_some(spec, g, g0 + i, some)
        if has_residual(spec):
            u = before_activation(spec, u, d, scale, shift, load_some(spec, r, r0 + i, some))
            store_some(spec, dr, dr0 + i, u, some)
        else:
            u = before_activation(spec, u, d, scale, shift, d)
        if has_mask(spec):
            d = counted(load_flags(spec, flags, i, some), u, d)
        u = select(inside, u, nothing)
        total_g, total_p = add_to(total_g, u), add_to(total_p, u * d)
        i += lanes(spec)
    store_sums(spec, sums, 0, total_g)
    store_sums(spec, sums, 16, total_p)


@njit(error_model="numpy")
def _write_at(block, plane, channel, spec):
    """Addresses and first indices of x, what is written, and its gradient; the mask; whether there were statistics."""
    source = RESIDUAL_GRAD if has_residual(spec) else GRAD
    x, x0 = get_int(block, X), plane_at(block, X, plane, channel)
    y, y0 = get_int(block, Y), plane_at(block, Y, plane, channel)
    g, g0 = get_int(block, source), plane_at(block, source, plane, channel)
    flags = get_int(block, MASK) + plane * get_int(block, LENGTH)
    return x, x0, y, y0, g, g0, flags, get_int(block, TRAINING)


@njit(error_model="numpy")
def _next_written(block, at, spec):
    source = RESIDUAL_GRAD if has_residual(spec) else GRAD
    x, x0, y, y0, g, g0, flags, training = at
    x0, y0, g0 = x0 + get_int(block, X + 3), y0 + get_int(block, Y + 3), g0 + get_int(block, source + 3)
    return x, x0, y, y0, g, g0, flags, training


@njit(error_model="numpy")
def _backward(block, channel, spec):
    """The coefficients of both ways."""
    work, pitch = get_int(block, WORK), get_int(block, PITCH)
    return (
        *_forward(block, channel, spec),
        spread_wide(spec, work, GRAD_SCALE * pitch + channel),
        spread_wide(spec, work, GRAD_SLOPE * pitch + channel),
        spread_wide(spec, work, GRAD_SHIFT * pitch + channel),
    )


@njit(error_model="numpy")
def _head(at, start, stop, how, spec):
    """Write up to the first address that a store past the caches may go to; returns how many."""
    head = before_line(spec, at[2], at[3] + start, stop - start)
    for i in range(0, head, lanes(spec)):
        _write_some(at, start + i, min(lanes(spec), head - i), how, spec)
    return head


@njit(error_model="numpy")
def _whole(at, i, how, spec):
    x, x0, _, _, g, g0, flags, training = at
    d, u = load(spec, x, x0 + i) - how[0], load(spec, g, g0 + i)
    return _gradient(d, u, flags, i, lanes(spec), training, how, spec)


@njit(error_model="numpy")
def _write_two(at, i, how, spec):
    y, where = at[2], at[3] + i
    first, second = _whole(at, i, how, spec), _whole(at, i + lanes(spec), how, spec)
    if streams(spec):
        store_two_past(spec, y, where, first, second)
    else:
        for k in range(0, 2, lines(spec)):
            prefetch_to_write(y + (where + (SOON + k) * lanes(spec)) * itemsize(spec))
        store_two(spec, y, where, first, second)


@njit(error_model="numpy")
def _write_some(at, i, some, how, spec):
    x, x0, y, y0, g, g0, flags, training = at
    d, u = load_some(spec, x, x0 + i, some) - how[0], load_some(spec, g, g0 + i, some)
    store_some(spec, y, y0 + i, _gradient(d, u, flags, i, some, training, how, spec), some)


@njit(error_model="numpy")
def _gradient(d, u, flags, i, some, training, how, spec):
    _, scale, shift, along_g, along_x, constant = how
    if not has_residual(spec):
        u = before_activation(spec, u, d, scale, shift, d)
    through = fma(d, along_x, constant)
    if has_mask(spec):
        through = select(load_flags(spec, flags, i, some), through, splat(spec, 0.0))
    return fma(u, along_g, through) if training != 0 else u * along_g


@njit(error_model="numpy")
def _write_rest(at, i, stop, how, spec):
    while i + 2 * lanes(spec) <= stop:
        _write_two(at, i, how, spec)
        i += 2 * lanes(spec)
    if i + lanes(spec) <= stop:
        store_next(spec, at[2], at[3] + i, _whole(at, i, how, spec))
        i += lanes(spec)
    if i < stop:
        _write_some(at, i, stop - i, how, spec)
