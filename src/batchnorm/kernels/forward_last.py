"""Training forward and inference, channels last: what is done to the elements of some rows.

As `forward_first`. Memory is read and written in its own order, row by row; a vector holds adjacent columns, and the
columns' sums stay in the first-level cache.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

from numba import njit

from .activations import activate
from .block import BY_COLUMN, COLUMNS, MASK, RESIDUAL, X, Y
from .intrinsics import ahead, get_byte, get_int, has_mask, has_residual, itemsize, lanes, lines, streams, widesize
from .memory import (
    before_line,
    first_lanes,
    load,
    load_some,
    load_wide,
    prefetch,
    prefetch_to_write,
    store_next,
    store_some,
    store_two,
    store_two_past,
    store_wide,
)
from .vectors import add_to, fma, load_sums, select, splat, store_sums
from .walk_last import row_at

__all__ = ["add", "apply", "clear", "flush", "head_of_row"]

SOON = 8
"""Vectors between the one that is written and the one whose line is asked for."""
ROWS_AHEAD = 8
"""Rows between the one that is written and the one whose first line, which belongs to two rows, is asked for."""
"""Rows between the one that is written and the one whose first line, which belongs to two rows, is asked for."""


def add(block, first, stop, limit, own, place, _more, spec):
    """Add ``x - shift`` and its square, of the first ``limit`` columns, to the sums at ``place``."""
    x, index, step = get_int(block, X), row_at(block, X, first), get_int(block, X + 2)
    columns, by_column, flags = get_int(block, COLUMNS), get_int(block, BY_COLUMN), get_int(block, MASK)
    second = own + columns * widesize(spec)
    clear(own, columns, spec)
    row = first
    while not has_mask(spec) and row + 4 <= stop:
        _add_four(x, index, step, limit, by_column, own, second, spec)
        index += 4 * step
        row += 4
    while row < stop:
        if not has_mask(spec) or get_byte(flags, row) != 0:
            _add_one(x, index, limit, by_column, own, second, spec)
        index += step
        row += 1
    flush(own, place, columns, spec)


@njit(error_model="numpy")
def clear(own, columns, spec):
    """Begin the columns' two sums in the arithmetic's type."""
    for i in range(0, 2 * columns, lanes(spec)):
        store_wide(spec, own, i, splat(spec, 0.0))


@njit(error_model="numpy")
def flush(own, place, columns, spec):
    """Add them to those in float64."""
    for i in range(0, 2 * columns, lanes(spec)):
        store_sums(spec, place, i, add_to(load_sums(spec, place, i), load_wide(spec, own, i)))


@njit(error_model="numpy")
def _add_four(x, index, step, limit, by_column, own, second, spec):
    # Four rows in pairs: fewer roundings, and a quarter of the traffic of the sums.
    n = lanes(spec)
    column = 0
    while column + n <= limit:
        shift, i = load_wide(spec, by_column, column), index + column
        for k in range(4):
            prefetch(x + (i + k * step + ahead(spec)) * itemsize(spec))
        d0, d1 = load(spec, x, i) - shift, load(spec, x, i + step) - shift
        d2, d3 = load(spec, x, i + 2 * step) - shift, load(spec, x, i + 3 * step) - shift
        _gather(own, second, column, d0, d1, d2, d3, spec)
        column += n
    if column < limit:
        some = limit - column
        d0, d1 = _some(x, index, column, some, by_column, spec), _some(x, index + step, column, some, by_column, spec)
        index += 2 * step
        d2, d3 = _some(x, index, column, some, by_column, spec), _some(x, index + step, column, some, by_column, spec)
        _gather(own, second, column, d0, d1, d2, d3, spec)


@njit(error_model="numpy")
def _gather(own, second, column, d0, d1, d2, d3, spec):
    squares = fma(d0, d0, d1 * d1) + fma(d2, d2, d3 * d3)
    store_wide(spec, own, column, load_wide(spec, own, column) + ((d0 + d1) + (d2 + d3)))
    store_wide(spec, second, column, load_wide(spec, second, column) + squares)


@njit(error_model="numpy")
def _some(x, index, column, some, by_column, spec):
    """The differences of the last columns, 0 beyond them."""
    d = load_some(spec, x, index + column, some) - load_wide(spec, by_column, column)
    return select(first_lanes(spec, some), d, splat(spec, 0.0))


@njit(error_model="numpy")
def _add_one(x, index, limit, by_column, own, second, spec):
    for column in range(0, limit, lanes(spec)):
        d = _some(x, index, column, min(lanes(spec), limit - column), by_column, spec)
        store_wide(spec, own, column, load_wide(spec, own, column) + d)
        store_wide(spec, second, column, fma(d, d, load_wide(spec, second, column)))


@njit(error_model="numpy")
def head_of_row(y, y0, y_step, limit, spec):
    """Elements of a row of the output before the first line that stores past the caches may go to."""
    head = before_line(spec, y, y0, limit)
    if head != 0:  # the line that rows share is read first; stores past the caches would wait behind it
        prefetch_to_write(y + (y0 + ROWS_AHEAD * y_step) * itemsize(spec))
    return head


def apply(block, first, stop, limit, _own, _place, _more, spec):
    """Write ``activation((x - high)*scale + shift + residual)``."""
    by_column, columns, n = get_int(block, BY_COLUMN), get_int(block, COLUMNS), lanes(spec)
    x, x0, x_step = get_int(block, X), row_at(block, X, first), get_int(block, X + 2)
    y, y0, y_step = get_int(block, Y), row_at(block, Y, first), get_int(block, Y + 2)
    r, r0, r_step = get_int(block, RESIDUAL), row_at(block, RESIDUAL, first), get_int(block, RESIDUAL + 2)
    for _ in range(stop - first):
        head = head_of_row(y, y0, y_step, limit, spec)
        for column in range(0, head, n):
            _part(x, x0, y, y0, r, r0, by_column, columns, column, min(n, head - column), spec)
        column = head
        while column + 2 * n <= limit:
            z0 = _whole(x, x0, r, r0, by_column, columns, column, spec)
            z1 = _whole(x, x0, r, r0, by_column, columns, column + n, spec)
            for k in range(0, 2, lines(spec)):
                if streams(spec):
                    prefetch(x + (x0 + column + k * n + ahead(spec)) * itemsize(spec))
                    if has_residual(spec):
                        prefetch(r + (r0 + column + k * n + ahead(spec)) * itemsize(spec))
                else:
                    prefetch_to_write(y + (y0 + column + (SOON + k) * n) * itemsize(spec))
            if streams(spec):
                store_two_past(spec, y, y0 + column, z0, z1)
            else:
                store_two(spec, y, y0 + column, z0, z1)
            column += 2 * n
        if column + n <= limit:
            store_next(spec, y, y0 + column, _whole(x, x0, r, r0, by_column, columns, column, spec))
            column += n
        if column < limit:
            _part(x, x0, y, y0, r, r0, by_column, columns, column, limit - column, spec)
        x0, y0, r0 = x0 + x_step, y0 + y_step, r0 + r_step


@njit(error_model="numpy")
def _whole(x, x0, r, r0, by_column, columns, column, spec):
    z = load(spec, x, x0 + column)
    r1 = load(spec, r, r0 + column) if has_residual(spec) else z
    return _normalized(z, r1, by_column, columns, column, spec)


@njit(error_model="numpy")
def _part(x, x0, y, y0, r, r0, by_column, columns, column, some, spec):
    z = load_some(spec, x, x0 + column, some)
    r1 = load_some(spec, r, r0 + column, some) if has_residual(spec) else z
    store_some(spec, y, y0 + column, _normalized(z, r1, by_column, columns, column, spec), some)


@njit(error_model="numpy")
def _normalized(x, r, by_column, columns, column, spec):
    high, scale = load_wide(spec, by_column, column), load_wide(spec, by_column, columns + column)
    z = fma(x - high, scale, load_wide(spec, by_column, 2 * columns + column))
    if has_residual(spec):
        z = z + r
    return activate(spec, z)
