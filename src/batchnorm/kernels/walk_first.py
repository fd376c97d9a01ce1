"""Walking a tensor whose channels' elements lie side by side (NCHW): which thread does what, in which order.

Two ways. A channel at a time: sum, settle, and then its planes in reverse order, because the last ones are still in the
cache; where the tensor is larger than the caches the next channel is summed in the same loop, so that reading and
writing overlap; short planes of adjacent channels are taken together, so that memory is read in long runs. Or, where
there are few channels, in units, with all threads in each of three phases. The way and the units follow from the shape:
the same bits at any number of threads.

The sums around a shift end here as `equations.moments` does, or as `equations.parameter_gradients`; what is done to the
elements is the business of the leaves, whose addresses the block holds.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

from numba import njit

from . import block as at
from .block import (
    ADD,
    APPLY,
    BACKWARD,
    BOTH,
    CHANNELS,
    GROUP,
    LENGTH,
    MASK,
    MEAN,
    SEGMENT,
    SEGMENTS,
    SUMS,
    UNITS,
    WORK,
    X,
)
from .intrinsics import get_byte, get_double, get_int, put_double, visit
from .memory import fence
from .settle import (
    coefficients,
    get_element,
    get_wide,
    gradient_coefficients,
    put_wide,
    settled,
    update_moving,
)

__all__ = ["ROOM", "jump_after", "plane_at", "walk"]

ROOM = 2 * 16
"""Numbers that a leaf adds to: two sums, by lane."""
SAMPLES, EACH = 4, 7
"""Elements whose mean becomes the shift: ``2**SAMPLES`` at most, and one of each ``2**EACH`` at most."""


@njit(error_model="numpy")
def plane_at(block, tensor, plane, channel):
    """Index of the first element of a channel's plane."""
    inner = get_int(block, at.INNER)
    outer = 0 if plane < inner else plane // inner  # a division takes as long as twenty vectors
    index = outer * get_int(block, tensor + 1) + (plane - outer * inner) * get_int(block, tensor + 2)
    return index + channel * get_int(block, tensor + 3)


@njit(error_model="numpy")
def jump_after(block, tensor, plane, step, channel, count):
    """Where adjacent channels' planes end, and how far from there those of the plane ``step`` further on begin."""
    begin = plane_at(block, tensor, plane, channel)
    return begin + count * get_int(block, at.LENGTH), plane_at(block, tensor, max(0, plane + step), channel) - begin - (
        count * get_int(block, at.LENGTH)
    )


@njit(error_model="numpy")
def _planes(block):
    return get_int(block, at.OUTER) * get_int(block, at.INNER)


@njit(error_model="numpy")
def _clear(sums):
    for i in range(ROOM):
        put_double(sums, i, 0.0)


@njit(error_model="numpy")
def _total(sums, half):
    """The lanes of one sum: neighbours, then pairs."""
    start, total = half * 16, 0.0
    for i in range(start, start + 16, 4):
        total += (get_double(sums, i) + get_double(sums, i + 1)) + (get_double(sums, i + 2) + get_double(sums, i + 3))
    return total


@njit(error_model="numpy")
def _begin(block, channel):
    """The shift: the mean of some counted elements, exactly their value where they are equal; or all coefficients."""
    if get_int(block, BACKWARD) != 0:
        coefficients(block, channel)
        return
    x, flags, planes, length = get_int(block, X), get_int(block, MASK), _planes(block), get_int(block, LENGTH)
    first = plane_at(block, X, get_int(block, at.FIRST_PLANE), channel) + get_int(block, at.FIRST_INDEX)
    total, count = get_element(block, x, first), 1
    halvings = 0
    while halvings < SAMPLES and planes * length >> (EACH + halvings + 1) > 0:
        halvings += 1
    for k in range(1, 1 << halvings):
        plane, i = planes * k >> halvings, length * k >> halvings
        if flags == 0 or get_byte(flags, plane * length + i) != 0:
            total += get_element(block, x, plane_at(block, X, plane, channel) + i)
            count += 1
    put_wide(block, get_int(block, WORK), channel, total / count)


@njit(error_model="numpy")
def _finish(block, channel, first, second, sums):
    """Statistics, again where the shift was far from the mean, then coefficients and moving statistics."""
    if get_int(block, BACKWARD) != 0:
        gradient_coefficients(block, channel, first, second)
        return
    work, add, length = get_int(block, WORK), get_int(block, ADD), get_int(block, LENGTH)
    verdict = settled(block, channel, get_wide(block, work, channel), first, second)
    if verdict == 1:
        put_wide(block, work, channel, get_double(get_int(block, MEAN), channel))
        _clear(sums)
        for plane in range(_planes(block)):
            visit(add, block, plane, channel, 1, 0, length, sums)
        shift = get_wide(block, work, channel)
        verdict = settled(block, channel, shift, _total(sums, 0), _total(sums, 1))
    if verdict == 2:
        _in_double(block, channel)
    coefficients(block, channel)
    update_moving(block, channel)


@njit(error_model="numpy")
def _in_double(block, channel):
    """Squares beyond float32's range: once more for the mean, once more around it."""
    x, flags, length = get_int(block, X), get_int(block, MASK), get_int(block, LENGTH)
    first = plane_at(block, X, get_int(block, at.FIRST_PLANE), channel) + get_int(block, at.FIRST_INDEX)
    shift = get_element(block, x, first)
    for _ in range(2):
        total, squares = 0.0, 0.0
        for plane in range(_planes(block)):
            base = plane_at(block, X, plane, channel)
            for i in range(length):
                if flags == 0 or get_byte(flags, plane * length + i) != 0:
                    d = get_element(block, x, base + i) - shift
                    total += d
                    squares += d * d
        settled(block, channel, shift, total, squares)
        shift = get_double(get_int(block, MEAN), channel)


@njit(error_model="numpy")
def _whole(block, part, parts):
    channels, together, overlapped = get_int(block, CHANNELS), get_int(block, at.TOGETHER), get_int(block, BOTH) != 0
    first, end = channels * part // parts, channels * (part + 1) // parts
    room = get_int(block, SUMS) + part * 2 * together * ROOM * 8
    spare = room + together * ROOM * 8
    stop = min(end, first + together)
    _start(block, first, stop, room)
    _sum(block, first, stop, room)
    while first < end:
        after = min(end, stop + together)
        for channel in range(first, stop):
            sums = room + (channel - first) * ROOM * 8
            _finish(block, channel, _total(sums, 0), _total(sums, 1), sums)
        _start(block, stop, after, spare)
        if overlapped and stop < after:
            _write_and_sum(block, first, stop, after, spare)
        else:
            _write(block, first, stop)
            _sum(block, stop, after, spare)
        first, stop, room, spare = stop, after, spare, room


@njit(error_model="numpy")
def _start(block, first, stop, room):
    for channel in range(first, stop):
        _begin(block, channel)
        _clear(room + (channel - first) * ROOM * 8)


@njit(error_model="numpy")
def _sum(block, first, stop, room):
    add, length = get_int(block, ADD), get_int(block, LENGTH)
    if first < stop:
        for plane in range(_planes(block)):
            visit(add, block, plane, first, stop - first, 0, length, room)


@njit(error_model="numpy")
def _write(block, first, stop):
    apply, length, planes = get_int(block, APPLY), get_int(block, LENGTH), _planes(block)
    for forwards in range(planes):
        visit(apply, block, planes - 1 - forwards, first, stop - first, 0, length, 0)


@njit(error_model="numpy")
def _write_and_sum(block, first, stop, after, room):
    """Write the channels from ``first`` on, and sum those from ``stop`` to ``after``: at most as many."""
    apply, both, length, planes = get_int(block, APPLY), get_int(block, BOTH), get_int(block, LENGTH), _planes(block)
    count = after - stop
    for forwards in range(planes):
        plane = planes - 1 - forwards
        visit(both, block, plane, first, forwards, stop, count, room)
        if first + count < stop:
            visit(apply, block, plane, first + count, stop - first - count, 0, length, 0)


@njit(error_model="numpy")
def _unit(block, function, channel, index, last):
    segments, segment, group = get_int(block, SEGMENTS), get_int(block, SEGMENT), get_int(block, GROUP)
    chosen = index // segments
    start = (index - chosen * segments) * segment
    stop = min(get_int(block, LENGTH), start + segment)
    for plane in range(chosen * group, min(_planes(block), (chosen + 1) * group)):
        visit(function, block, plane, channel, 1, start, stop, last)


@njit(error_model="numpy")
def _units(block, part, parts, apply):
    count, sums = get_int(block, UNITS), get_int(block, SUMS)
    work = count * get_int(block, CHANNELS)
    first, end = work * part // parts, work * (part + 1) // parts
    for step in range(end - first):
        index = end - 1 - step if apply else first + step
        channel = index // count
        if apply:
            _unit(block, get_int(block, APPLY), channel, index - channel * count, 0)
        else:
            _begin(block, channel)  # several threads may write the same numbers
            _clear(sums + index * ROOM * 8)
            _unit(block, get_int(block, ADD), channel, index - channel * count, sums + index * ROOM * 8)


@njit(error_model="numpy")
def _settle(block, part, parts):
    channels, count = get_int(block, CHANNELS), get_int(block, UNITS)
    for channel in range(channels * part // parts, channels * (part + 1) // parts):
        first, second = 0.0, 0.0
        place = get_int(block, SUMS) + channel * count * ROOM * 8
        for index in range(count):
            first += _total(place + index * ROOM * 8, 0)
            second += _total(place + index * ROOM * 8, 1)
        _finish(block, channel, first, second, place)


@njit(error_model="numpy")
def _in_order(block, part, parts):
    channels, length, apply = get_int(block, CHANNELS), get_int(block, LENGTH), get_int(block, APPLY)
    work = channels * _planes(block)
    first, end = work * part // parts, work * (part + 1) // parts
    plane = first // channels
    channel = first - plane * channels
    while first < end:
        count = min(end - first, channels - channel)
        visit(apply, block, plane, channel, count, 0, length, 0)
        first, plane, channel = first + count, plane + 1, 0


def walk(part, parts, block, _version):
    """A part's share of a phase."""
    phase = get_int(block, at.PHASE)
    if phase == at.WHOLE:
        _whole(block, part, parts)
    elif phase == at.SUMMING:
        _units(block, part, parts, False)
    elif phase == at.SETTLING:
        _settle(block, part, parts)
    elif phase == at.APPLYING:
        _units(block, part, parts, True)
    elif phase == at.PREPARING:
        for channel in range(get_int(block, CHANNELS)):
            coefficients(block, channel)
    else:
        _in_order(block, part, parts)
    fence()
