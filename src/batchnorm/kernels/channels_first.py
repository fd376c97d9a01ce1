"""Training forward and inference where the elements of a channel lie side by side (NCHW): one channel at a time.

`equations.moments`, `equations.normalized` and `training.update`, in three steps: sums around the channel's first
counted element; `settle`; then the planes in reverse order, because the last ones are still in the cache. Sums are
float32 over at most 64 elements a lane, then float64. Few large channels are divided into units instead, in three
phases with all threads in each. Which of the two, and the units, follow from the shape: the same bits at any number of
threads.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

from numba import njit

from . import block as at
from .activations import activate
from .block import CHANNELS, GROUP, INNER, LENGTH, MASK, OUTER, SEGMENT, SEGMENTS, UNITS, WORK, X, Y
from .intrinsics import (
    fence,
    first_lanes,
    get_byte,
    get_double,
    get_element,
    get_int,
    get_wide,
    has_mask,
    has_residual,
    itemsize,
    lanes,
    load,
    load_flags,
    load_some,
    put_wide,
    store,
    store_past,
    store_some,
    streams,
)
from .settle import coefficients, settled, update_moving
from .vectors import add_to, fma, load_sums, select, splat, store_sums, total, zeros

__all__ = ["forward"]

FLUSH = 64
"""Additions a lane makes in float32 before it is added in float64."""
RUN = 8192
"""Elements of adjacent channels taken together, so that short planes are read in long runs."""


@njit(error_model="numpy")
def plane_at(block, tensor, plane, channel):
    """Index of the first element of a channel's plane."""
    inner = get_int(block, INNER)
    outer = plane // inner
    index = outer * get_int(block, tensor + 1) + (plane - outer * inner) * get_int(block, tensor + 2)
    return index + channel * get_int(block, tensor + 3)


@njit(error_model="numpy")
def _add_run(block, spec, plane, channel, start, stop, sums):
    """Add what lies between ``start`` and ``stop`` of a plane to the lanes' sums of ``d`` and of ``d*d``."""
    x, base = get_int(block, X), plane_at(block, X, plane, channel)
    shift = splat(spec, get_wide(spec, get_int(block, WORK), channel))
    n = lanes(spec)
    nothing = splat(spec, 0.0)
    total_d, total_q = load_sums(spec, sums, 0), load_sums(spec, sums, n)
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
    store_sums(spec, sums, n, total_q)


@njit(error_model="numpy")
def _normalize_run(block, spec, plane, channel, start, stop):
    """``activation((x - high)*scale + shift + residual)``: `equations.normalized` of a run."""
    work, channels = get_int(block, WORK), get_int(block, CHANNELS)
    x, x0 = get_int(block, X), plane_at(block, X, plane, channel)
    y, y0 = get_int(block, Y), plane_at(block, Y, plane, channel)
    r, r0 = get_int(block, at.RESIDUAL), plane_at(block, at.RESIDUAL, plane, channel)
    high = splat(spec, get_wide(spec, work, channel))
    scale = splat(spec, get_wide(spec, work, channels + channel))
    shift = splat(spec, get_wide(spec, work, 2 * channels + channel))
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
        i += n
    if i < stop:
        z = fma(load_some(spec, x, x0 + i, stop - i) - high, scale, shift)
        if has_residual(spec):
            z = z + load_some(spec, r, r0 + i, stop - i)
        store_some(spec, y, y0 + i, activate(spec, z), stop - i)


@njit(error_model="numpy")
def _begin(block, spec, channel):
    """The first counted element becomes the shift: a constant channel then gives differences of exactly 0."""
    first = plane_at(block, X, get_int(block, at.FIRST_PLANE), channel) + get_int(block, at.FIRST_INDEX)
    put_wide(spec, get_int(block, WORK), channel, get_element(spec, get_int(block, X), first))


@njit(error_model="numpy")
def _clear(spec, sums):
    store_sums(spec, sums, 0, zeros(spec))
    store_sums(spec, sums, lanes(spec), zeros(spec))


@njit(error_model="numpy")
def _finish(block, spec, channel, total_d, total_q, sums):
    """Statistics, again where the shift was far from the mean, then coefficients and moving statistics."""
    work = get_int(block, WORK)
    planes, length = get_int(block, OUTER) * get_int(block, INNER), get_int(block, LENGTH)
    verdict = settled(block, channel, get_wide(spec, work, channel), total_d, total_q)
    if verdict == 1:
        put_wide(spec, work, channel, get_double(get_int(block, at.MEAN), channel))
        _clear(spec, sums)
        for plane in range(planes):
            _add_run(block, spec, plane, channel, 0, length, sums)
        total_d, total_q = total(load_sums(spec, sums, 0)), total(load_sums(spec, sums, lanes(spec)))
        verdict = settled(block, channel, get_wide(spec, work, channel), total_d, total_q)
    if verdict == 2:
        _in_double(block, spec, channel, planes, length)
    coefficients(block, spec, channel)
    update_moving(block, channel)


@njit(error_model="numpy")
def _in_double(block, spec, channel, planes, length):
    """Squares beyond float32's range: once more for the mean, once more around it."""
    x, flags = get_int(block, X), get_int(block, MASK)
    first = plane_at(block, X, get_int(block, at.FIRST_PLANE), channel) + get_int(block, at.FIRST_INDEX)
    shift = get_element(spec, x, first)
    for _ in range(2):
        total_d, total_q = 0.0, 0.0
        for plane in range(planes):
            base = plane_at(block, X, plane, channel)
            for i in range(length):
                if not has_mask(spec) or get_byte(flags, plane * length + i) != 0:
                    d = get_element(spec, x, base + i) - shift
                    total_d += d
                    total_q += d * d
        settled(block, channel, shift, total_d, total_q)
        shift = get_double(get_int(block, at.MEAN), channel)


@njit(error_model="numpy")
def _whole(block, spec, part, parts):
    """All of a part's channels, one after another, or several short ones together."""
    channels, length = get_int(block, CHANNELS), get_int(block, LENGTH)
    planes = get_int(block, OUTER) * get_int(block, INNER)
    together = max(1, min(get_int(block, at.BLOCK_CHANNELS), RUN // length))
    n = lanes(spec)
    room = get_int(block, at.SUMS) + part * get_int(block, at.BLOCK_CHANNELS) * 2 * n * 8
    begin, end = channels * part // parts, channels * (part + 1) // parts
    while begin < end:
        stop = min(end, begin + together)
        for channel in range(begin, stop):
            _begin(block, spec, channel)
            _clear(spec, room + (channel - begin) * 2 * n * 8)
        for plane in range(planes):
            for channel in range(begin, stop):
                _add_run(block, spec, plane, channel, 0, length, room + (channel - begin) * 2 * n * 8)
        for channel in range(begin, stop):
            sums = room + (channel - begin) * 2 * n * 8
            total_d, total_q = total(load_sums(spec, sums, 0)), total(load_sums(spec, sums, n))
            _finish(block, spec, channel, total_d, total_q, sums)
        for backwards in range(planes):
            for channel in range(begin, stop):
                _normalize_run(block, spec, planes - 1 - backwards, channel, 0, length)
        begin = stop


@njit(error_model="numpy")
def _unit(block, spec, channel, unit, sums, apply):
    """Sum or normalise one unit of a channel: some whole planes, or a segment of one."""
    planes, length = get_int(block, OUTER) * get_int(block, INNER), get_int(block, LENGTH)
    segments, segment, group = get_int(block, SEGMENTS), get_int(block, SEGMENT), get_int(block, GROUP)
    chosen = unit // segments
    start = (unit - chosen * segments) * segment
    stop = min(length, start + segment)
    for plane in range(chosen * group, min(planes, (chosen + 1) * group)):
        if apply:
            _normalize_run(block, spec, plane, channel, start, stop)
        else:
            _add_run(block, spec, plane, channel, start, stop, sums)


@njit(error_model="numpy")
def _units(block, spec, part, parts, apply):
    """A part's share of all units of all channels; backwards where they are normalised."""
    units, sums, n = get_int(block, UNITS), get_int(block, at.SUMS), lanes(spec)
    work = units * get_int(block, CHANNELS)
    begin, end = work * part // parts, work * (part + 1) // parts
    for step in range(end - begin):
        index = end - 1 - step if apply else begin + step
        channel = index // units
        room = sums + index * 2 * n * 8
        if not apply:
            _begin(block, spec, channel)  # several threads may write the same number
            _clear(spec, room)
        _unit(block, spec, channel, index - channel * units, room, apply)


@njit(error_model="numpy")
def _settle_units(block, spec, part, parts):
    """Add up the units of each channel, in their order."""
    channels, units, n = get_int(block, CHANNELS), get_int(block, UNITS), lanes(spec)
    for channel in range(channels * part // parts, channels * (part + 1) // parts):
        total_d, total_q = 0.0, 0.0
        first = get_int(block, at.SUMS) + channel * units * 2 * n * 8
        for unit in range(units):
            total_d += total(load_sums(spec, first + unit * 2 * n * 8, 0))
            total_q += total(load_sums(spec, first + unit * 2 * n * 8, n))
        _finish(block, spec, channel, total_d, total_q, first)


@njit(error_model="numpy")
def _planes(block, spec, part, parts):
    """Inference: planes in the order of memory."""
    channels, length = get_int(block, CHANNELS), get_int(block, LENGTH)
    work = channels * get_int(block, OUTER) * get_int(block, INNER)
    begin, end = work * part // parts, work * (part + 1) // parts
    plane = begin // channels
    channel = begin - plane * channels
    for _ in range(end - begin):
        _normalize_run(block, spec, plane, channel, 0, length)
        channel += 1
        if channel == channels:
            plane, channel = plane + 1, 0


def forward(part, parts, block, spec):
    """A phase of the forward pass; see `block` for what it is told."""
    phase = get_int(block, at.PHASE)
    if phase == at.WHOLE:
        _whole(block, spec, part, parts)
    elif phase == at.SUMMING:
        _units(block, spec, part, parts, False)
    elif phase == at.SETTLING:
        _settle_units(block, spec, part, parts)
    elif phase == at.APPLYING:
        _units(block, spec, part, parts, True)
    elif phase == at.PREPARING:
        for channel in range(get_int(block, CHANNELS)):
            coefficients(block, spec, channel)
    else:
        _planes(block, spec, part, parts)
    if streams(spec):
        fence()
