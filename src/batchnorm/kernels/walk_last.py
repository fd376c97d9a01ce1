"""Walking a tensor whose channels lie side by side (NHWC): whole rows.

Rows are divided into units by the shape alone, and their sums are added in their order: the same bits at any number of
threads. The output is written from the last unit to the first, because the last ones are still in the cache; a unit is
written in the order of memory, in which the processor reads ahead by itself. Narrow rows are taken several at a time as
one wide row, so that vectors are full; each of its columns then has its own sums, added up where the statistics are
settled. What is done to the elements is the business of two leaves, whose addresses the block holds; they take rows
that are evenly spaced and equally long.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

from numba import njit

from . import block as at
from .block import ADD, APPLY, BACKWARD, BY_COLUMN, CHANNELS, COLUMNS, LENGTH, MASK, MEAN, REPEAT, SUMS, TAIL, WORK, X
from .intrinsics import get_byte, get_double, get_int, put_double, put_int, visit
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

__all__ = ["in_double", "row_at", "walk"]

FLUSH = 128
"""Rows that are added up in the arithmetic's type, then in float64."""
SAMPLES = 64
"""Rows whose mean becomes the shift."""


@njit(error_model="numpy")
def row_at(block, tensor, row):
    """Index of the first element of a row."""
    inner = get_int(block, at.INNER)
    outer = row // inner
    return outer * get_int(block, tensor + 1) + (row - outer * inner) * get_int(block, tensor + 2)


@njit(error_model="numpy")
def _rows(block):
    return get_int(block, at.OUTER) * get_int(block, at.INNER)


@njit(error_model="numpy")
def _begin(block, part, parts):
    """The shifts: means of some counted rows, exactly their value where they are equal."""
    x, flags, rows, repeat = get_int(block, X), get_int(block, MASK), _rows(block), get_int(block, REPEAT)
    channels, work, sums = get_int(block, CHANNELS), get_int(block, WORK), get_int(block, SUMS)
    begin, end = channels * part // parts, channels * (part + 1) // parts
    for channel in range(begin, end):
        put_double(sums, channel, 0.0)
    count = 0
    samples = min(SAMPLES, rows)
    for k in range(samples + 1):
        row = rows * k // samples if k < samples else get_int(block, at.FIRST_PLANE)
        if flags == 0 and k == samples:
            break
        if flags == 0 or get_byte(flags, row) != 0:
            index = row_at(block, X, row) + get_int(block, at.FIRST_INDEX)
            for channel in range(begin, end):
                put_double(sums, channel, get_double(sums, channel) + get_element(block, x, index + channel * repeat))
            count += 1
    for channel in range(begin, end):
        put_wide(block, work, channel, get_double(sums, channel) / count)


@njit(error_model="numpy")
def _expand(block):
    """Coefficients by channel to coefficients by column."""
    work, by_column, columns = get_int(block, WORK), get_int(block, BY_COLUMN), get_int(block, COLUMNS)
    pitch, channels, repeat = get_int(block, at.PITCH), get_int(block, CHANNELS), get_int(block, REPEAT)
    if by_column != work:
        for row in range(at.ROWS):
            for column in range(get_int(block, LENGTH)):
                value = get_wide(block, work, row * pitch + column // repeat % channels)
                put_wide(block, by_column, row * columns + column, value)


@njit(error_model="numpy")
def _span(block, row, stop):
    """The end of the evenly spaced, equally long rows that begin at ``row``."""
    inner, rows = get_int(block, at.INNER), _rows(block)
    end = min(stop, (row // inner + 1) * inner)
    return end - 1 if end == rows and row < rows - 1 and get_int(block, TAIL) != get_int(block, LENGTH) else end


@njit(error_model="numpy")
def _limit(block, end):
    return get_int(block, TAIL) if end == _rows(block) else get_int(block, LENGTH)


@njit(error_model="numpy")
def _sum_unit(block, unit, own):
    columns, add = get_int(block, COLUMNS), get_int(block, ADD)
    place = get_int(block, SUMS) + unit * 2 * columns * 8
    for i in range(2 * columns):
        put_double(place, i, 0.0)
    row = unit * get_int(block, at.GROUP)
    stop = min(_rows(block), row + get_int(block, at.GROUP))
    while row < stop:
        end = _span(block, row, min(stop, row + FLUSH))
        visit(add, block, row, end, _limit(block, end), own, place, 0)
        row = end


@njit(error_model="numpy")
def _apply_unit(block, unit):
    row = unit * get_int(block, at.GROUP)
    stop = min(_rows(block), row + get_int(block, at.GROUP))
    while row < stop:
        end = _span(block, row, stop)
        visit(get_int(block, APPLY), block, row, end, _limit(block, end), 0, 0, 0)
        row = end


@njit(error_model="numpy")
def _units(block, part, parts, apply):
    count, columns = get_int(block, at.UNITS), get_int(block, COLUMNS)
    own = get_int(block, at.LANES_SUMS) + part * 2 * columns * 8
    first, end = count * part // parts, count * (part + 1) // parts
    for step in range(end - first):
        if apply:
            _apply_unit(block, end - 1 - step)
        else:
            _sum_unit(block, first + step, own)


@njit(error_model="numpy")
def _settle(block, part, parts):
    columns, sums, length = get_int(block, COLUMNS), get_int(block, SUMS), get_int(block, LENGTH)
    channels, repeat = get_int(block, CHANNELS), get_int(block, REPEAT)
    start, stop = length * part // parts, length * (part + 1) // parts
    for unit in range(1, get_int(block, at.UNITS)):
        place = sums + unit * 2 * columns * 8
        for half in range(2):
            for i in range(half * columns + start, half * columns + stop):
                put_double(sums, i, get_double(sums, i) + get_double(place, i))
    if length == channels:
        for channel in range(start, stop):
            _finish(block, channel, get_double(sums, channel), get_double(sums, columns + channel))
        return
    for channel in range(channels):
        first, second = 0.0, 0.0
        for wide in range(channel * repeat, length, channels * repeat):
            for column in range(wide, wide + repeat):
                first += get_double(sums, column)
                second += get_double(sums, columns + column)
        _finish(block, channel, first, second)
    _expand(block)


@njit(error_model="numpy")
def _finish(block, channel, first, second):
    if get_int(block, BACKWARD) != 0:
        gradient_coefficients(block, channel, first, second)
        return
    work = get_int(block, WORK)
    verdict = settled(block, channel, get_wide(block, work, channel), first, second)
    if verdict == 1:
        put_wide(block, work, channel, get_double(get_int(block, MEAN), channel))
        put_int(block, at.AGAIN, 1)
    elif verdict == 2:
        in_double(block, channel)


@njit(error_model="numpy")
def in_double(block, channel):
    """Squares beyond float32's range: once more for the mean, once more around it."""
    x, flags, repeat, rows = get_int(block, X), get_int(block, MASK), get_int(block, REPEAT), _rows(block)
    shift = get_wide(block, get_int(block, WORK), channel)
    for _ in range(2):
        total, squares = 0.0, 0.0
        for row in range(rows):
            if flags == 0 or get_byte(flags, row) != 0:
                base = row_at(block, X, row)
                for wide in range(channel * repeat, _limit(block, row + 1), get_int(block, CHANNELS) * repeat):
                    for column in range(wide, wide + repeat):
                        d = get_element(block, x, base + column) - shift
                        total += d
                        squares += d * d
        settled(block, channel, shift, total, squares)
        shift = get_double(get_int(block, MEAN), channel)


@njit(error_model="numpy")
def _prepare(block):
    for channel in range(get_int(block, CHANNELS)):
        coefficients(block, channel)
        if get_int(block, BACKWARD) == 0:
            update_moving(block, channel)


def walk(part, parts, block, _version):
    """A part's share of a phase."""
    phase = get_int(block, at.PHASE)
    if phase == at.SUMMING:
        _units(block, part, parts, False)
    elif phase == at.SETTLING:
        _settle(block, part, parts)
    elif phase == at.APPLYING:
        _units(block, part, parts, True)
    else:
        if phase == at.PREPARING or get_int(block, BACKWARD) != 0:
            _prepare(block)
        else:
            _begin(block, part, parts)
        _expand(block)
    fence()
