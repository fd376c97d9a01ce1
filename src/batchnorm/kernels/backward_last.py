"""The way back, channels last: what is done to the elements of some rows. As `backward_first`."""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

from numba import njit

from .activations import before_activation
from .block import (
    BY_COLUMN,
    COLUMNS,
    GRAD,
    GRAD_SCALE,
    GRAD_SHIFT,
    GRAD_SLOPE,
    MASK,
    RESIDUAL,
    RESIDUAL_GRAD,
    SCALE,
    SHIFT,
    TRAINING,
    X,
    Y,
)
from .forward_last import SOON, clear, flush, head_of_row
from .intrinsics import ahead, get_byte, get_int, has_mask, has_residual, itemsize, lanes, lines, streams, widesize
from .memory import (
    all_lanes,
    first_lanes,
    load,
    load_some,
    load_wide,
    prefetch,
    prefetch_to_write,
    store,
    store_next,
    store_some,
    store_two,
    store_two_past,
    store_wide,
)
from .vectors import counted, fma, select, splat
from .walk_last import row_at

__all__ = ["add", "apply"]


def add(block, first, stop, limit, own, place, _more, spec):
    """Add ``g`` and ``g*(x - high)``, of the first ``limit`` columns, to the sums at ``place``."""
    columns, n = get_int(block, COLUMNS), lanes(spec)
    second = own + columns * widesize(spec)
    clear(own, columns, spec)
    at = _rows_at(block, first)
    row = first
    while row + 2 <= stop:
        after = _next(block, at)
        column = 0
        while column + n <= limit:
            u0, d0 = _one(block, at, row, column, spec)
            u1, d1 = _one(block, after, row + 1, column, spec)
            store_wide(spec, own, column, load_wide(spec, own, column) + (u0 + u1))
            store_wide(spec, second, column, load_wide(spec, second, column) + fma(u0, d0, u1 * d1))
            column += n
        if column < limit:
            _add_some(block, at, row, column, limit - column, own, second, spec)
            _add_some(block, after, row + 1, column, limit - column, own, second, spec)
        at = _next(block, after)
        row += 2
    if row < stop:
        for column in range(0, limit, n):
            _add_some(block, at, row, column, min(n, limit - column), own, second, spec)
    flush(own, place, columns, spec)


@njit(error_model="numpy")
def _rows_at(block, row):
    """First indices of a row of x, the gradient, the residual and its gradient."""
    return (
        row_at(block, X, row),
        row_at(block, GRAD, row),
        row_at(block, RESIDUAL, row),
        row_at(block, RESIDUAL_GRAD, row),
    )


@njit(error_model="numpy")
def _next(block, at):
    x0, g0, r0, dr0 = at
    x0, g0 = x0 + get_int(block, X + 2), g0 + get_int(block, GRAD + 2)
    return x0, g0, r0 + get_int(block, RESIDUAL + 2), dr0 + get_int(block, RESIDUAL_GRAD + 2)


@njit(error_model="numpy")
def _one(block, at, row, column, spec):
    """The gradient before the activation, and ``x - high``, of a vector."""
    x0, g0, r0, dr0 = at
    d = load(spec, get_int(block, X), x0 + column) - load_wide(spec, get_int(block, BY_COLUMN), column)
    u = load(spec, get_int(block, GRAD), g0 + column)
    prefetch(get_int(block, X) + (x0 + column + ahead(spec)) * itemsize(spec))
    prefetch(get_int(block, GRAD) + (g0 + column + ahead(spec)) * itemsize(spec))
    if has_residual(spec):
        u = _through(block, u, d, load(spec, get_int(block, RESIDUAL), r0 + column), column, spec)
        store(spec, get_int(block, RESIDUAL_GRAD), dr0 + column, u)
    else:
        u = _through(block, u, d, d, column, spec)
    if has_mask(spec):
        d = counted(all_lanes(spec, get_byte(get_int(block, MASK), row)), u, d)
    return u, d


@njit(error_model="numpy")
def _add_some(block, at, row, column, some, own, second, spec):
    x0, g0, r0, dr0 = at
    inside, nothing = first_lanes(spec, some), splat(spec, 0.0)
    d = load_some(spec, get_int(block, X), x0 + column, some) - load_wide(spec, get_int(block, BY_COLUMN), column)
    d = select(inside, d, nothing)
    u = load_some(spec, get_int(block, GRAD), g0 + column, some)
    if has_residual(spec):
        u = _through(block, u, d, load_some(spec, get_int(block, RESIDUAL), r0 + column, some), column, spec)
        store_some(spec, get_int(block, RESIDUAL_GRAD), dr0 + column, u, some)
    else:
        u = _through(block, u, d, d, column, spec)
    if has_mask(spec):
        d = counted(all_lanes(spec, get_byte(get_int(block, MASK), row)), u, d)
    u = select(inside, u, nothing)
    store_wide(spec, own, column, load_wide(spec, own, column) + u)
    store_wide(spec, second, column, fma(u, d, load_wide(spec, second, column)))


@njit(error_model="numpy")
def _through(block, u, d, r, column, spec):
    by_column, columns = get_int(block, BY_COLUMN), get_int(block, COLUMNS)
    scale = load_wide(spec, by_column, SCALE * columns + column)
    return before_activation(spec, u, d, scale, load_wide(spec, by_column, SHIFT * columns + column), r)


def apply(block, first, stop, limit, _own, _place, _more, spec):
    """Write the gradient of x."""
    source = RESIDUAL_GRAD if has_residual(spec) else GRAD
    x, x0, x_step = get_int(block, X), row_at(block, X, first), get_int(block, X + 2)
    g, g0, g_step = get_int(block, source), row_at(block, source, first), get_int(block, source + 2)
    y, y0, y_step = get_int(block, Y), row_at(block, Y, first), get_int(block, Y + 2)
    n = lanes(spec)
    for row in range(first, stop):
        head = head_of_row(y, y0, y_step, limit, spec)
        for column in range(0, head, n):
            _part(block, x, x0, g, g0, y, y0, row, column, min(n, head - column), spec)
        column = head
        while column + 2 * n <= limit:
            first_dx = _gradient(block, load(spec, x, x0 + column), load(spec, g, g0 + column), row, column, spec)
            x1, g1 = load(spec, x, x0 + column + n), load(spec, g, g0 + column + n)
            dx = _gradient(block, x1, g1, row, column + n, spec)
            for k in range(0, 2, lines(spec)):
                if streams(spec):
                    prefetch(x + (x0 + column + k * n + ahead(spec)) * itemsize(spec))
                    prefetch(g + (g0 + column + k * n + ahead(spec)) * itemsize(spec))
                else:
                    prefetch_to_write(y + (y0 + column + (SOON + k) * n) * itemsize(spec))
            if streams(spec):
                store_two_past(spec, y, y0 + column, first_dx, dx)
            else:
                store_two(spec, y, y0 + column, first_dx, dx)
            column += 2 * n
        if column + n <= limit:
            dx = _gradient(block, load(spec, x, x0 + column), load(spec, g, g0 + column), row, column, spec)
            store_next(spec, y, y0 + column, dx)
            column += n
        if column < limit:
            _part(block, x, x0, g, g0, y, y0, row, column, limit - column, spec)
        x0, g0, y0 = x0 + x_step, g0 + g_step, y0 + y_step


@njit(error_model="numpy")
def _part(block, x, x0, g, g0, y, y0, row, column, some, spec):
    x1, g1 = load_some(spec, x, x0 + column, some), load_some(spec, g, g0 + column, some)
    store_some(spec, y, y0 + column, _gradient(block, x1, g1, row, column, spec), some)


@njit(error_model="numpy")
def _gradient(block, x, u, row, column, spec):
    by_column, columns = get_int(block, BY_COLUMN), get_int(block, COLUMNS)
    d = x - load_wide(spec, by_column, column)
    if not has_residual(spec):
        u = _through(block, u, d, d, column, spec)
    along_g = load_wide(spec, by_column, GRAD_SCALE * columns + column)
    through = fma(
        d,
        load_wide(spec, by_column, GRAD_SLOPE * columns + column),
        load_wide(spec, by_column, GRAD_SHIFT * columns + column),
    )
    if has_mask(spec):
        through = select(all_lanes(spec, get_byte(get_int(block, MASK), row)), through, splat(spec, 0.0))
    return fma(u, along_g, through) if get_int(block, TRAINING) != 0 else u * along_g
