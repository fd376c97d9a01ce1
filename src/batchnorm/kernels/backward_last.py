"""The way back, channels last: what is done to the elements of some rows. As `backward_first`."""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201
from __future__ import annotations

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
    TILE,
    TRAINING,
    WRITE_TILE,
    X,
    Y,
)
from .intrinsics import (
    all_lanes,
    first_lanes,
    get_byte,
    get_int,
    has_mask,
    has_residual,
    itemsize,
    lanes,
    load,
    load_some,
    load_wide,
    prefetch,
    store,
    store_past,
    store_some,
    store_wide,
    streams,
    widesize,
)
from .vectors import add_to, counted, fma, load_sums, select, splat, store_sums
from .walk_last import row_at

__all__ = ["add", "apply"]


def add(block, first, stop, limit, own, place, _more, spec):
    """Add ``g`` and ``g*(x - high)``, of the first ``limit`` columns, to the sums at ``place``."""
    x, x_start, x_step = get_int(block, X), row_at(block, X, first), get_int(block, X + 2)
    g, g_start, g_step = get_int(block, GRAD), row_at(block, GRAD, first), get_int(block, GRAD + 2)
    r, r_start, r_step = get_int(block, RESIDUAL), row_at(block, RESIDUAL, first), get_int(block, RESIDUAL + 2)
    dr, dr_start = get_int(block, RESIDUAL_GRAD), row_at(block, RESIDUAL_GRAD, first)
    dr_step = get_int(block, RESIDUAL_GRAD + 2)
    columns, by_column, tile = get_int(block, COLUMNS), get_int(block, BY_COLUMN), get_int(block, TILE)
    n, nothing = lanes(spec), splat(spec, 0.0)
    second = own + columns * widesize(spec)
    for i in range(0, 2 * columns, n):
        store_wide(spec, own, i, nothing)
    for low in range(first, stop, tile):
        high_row = min(stop, low + tile)
        for column in range(0, limit, n):
            x0, g0 = x_start + (low - first) * x_step + column, g_start + (low - first) * g_step + column
            r0, dr0 = r_start + (low - first) * r_step + column, dr_start + (low - first) * dr_step + column
            high = load_wide(spec, by_column, column)
            scale = load_wide(spec, by_column, SCALE * columns + column)
            shift = load_wide(spec, by_column, SHIFT * columns + column)
            s0, p0 = load_wide(spec, own, column), load_wide(spec, second, column)
            s1, p1 = nothing, nothing
            some = min(n, limit - column)
            inside = first_lanes(spec, some)
            for row in range(low, high_row):
                if some == n:
                    d, u = load(spec, x, x0) - high, load(spec, g, g0)
                    prefetch(x + (x0 + tile * x_step) * itemsize(spec))
                    prefetch(g + (g0 + tile * g_step) * itemsize(spec))
                else:
                    d = select(inside, load_some(spec, x, x0, some) - high, nothing)
                    u = load_some(spec, g, g0, some)
                if has_residual(spec):
                    u = before_activation(spec, u, d, scale, shift, load_some(spec, r, r0, some))
                    if some == n:
                        store(spec, dr, dr0, u)
                    else:
                        store_some(spec, dr, dr0, u, some)
                else:
                    u = before_activation(spec, u, d, scale, shift, nothing)
                if has_mask(spec):
                    d = counted(all_lanes(spec, get_byte(get_int(block, MASK), row)), u, d)
                u = select(inside, u, nothing)
                # Two sums of each, in turn: an addition takes as long as four of them can begin.
                s0, s1 = s1 + u, s0
                p0, p1 = fma(u, d, p1), p0
                x0 += x_step
                g0 += g_step
                r0 += r_step
                dr0 += dr_step
            store_wide(spec, own, column, s0 + s1)
            store_wide(spec, second, column, p0 + p1)
    for i in range(0, 2 * columns, n):
        store_sums(spec, place, i, add_to(load_sums(spec, place, i), load_wide(spec, own, i)))


def apply(block, first, stop, limit, _own, _place, _more, spec):
    """Write the gradient of x, from the last row to the first."""
    source = RESIDUAL_GRAD if has_residual(spec) else GRAD
    x, x_start, x_step = get_int(block, X), row_at(block, X, first), get_int(block, X + 2)
    g, g_start, g_step = get_int(block, source), row_at(block, source, first), get_int(block, source + 2)
    y, y_start, y_step = get_int(block, Y), row_at(block, Y, first), get_int(block, Y + 2)
    columns, by_column, tile = get_int(block, COLUMNS), get_int(block, BY_COLUMN), get_int(block, WRITE_TILE)
    training, n, nothing = get_int(block, TRAINING) != 0, lanes(spec), splat(spec, 0.0)
    ahead = get_int(block, TILE)
    high_row = stop
    while high_row > first:
        low = max(first, high_row - tile)
        for column in range(0, limit, n):
            x0, g0 = x_start + (low - first) * x_step + column, g_start + (low - first) * g_step + column
            y0 = y_start + (low - first) * y_step + column
            high = load_wide(spec, by_column, column)
            scale = load_wide(spec, by_column, SCALE * columns + column)
            shift = load_wide(spec, by_column, SHIFT * columns + column)
            along_g = load_wide(spec, by_column, GRAD_SCALE * columns + column)
            along_x = load_wide(spec, by_column, GRAD_SLOPE * columns + column)
            constant = load_wide(spec, by_column, GRAD_SHIFT * columns + column)
            some = min(n, limit - column)
            for row in range(low, high_row):
                if some == n:
                    d, u = load(spec, x, x0) - high, load(spec, g, g0)
                    prefetch(x + (x0 - ahead * x_step) * itemsize(spec))
                    prefetch(g + (g0 - ahead * g_step) * itemsize(spec))
                else:
                    d, u = load_some(spec, x, x0, some) - high, load_some(spec, g, g0, some)
                if not has_residual(spec):
                    u = before_activation(spec, u, d, scale, shift, nothing)
                through = fma(d, along_x, constant)
                if has_mask(spec):
                    through = select(all_lanes(spec, get_byte(get_int(block, MASK), row)), through, nothing)
                dx = fma(u, along_g, through) if training else u * along_g
                if some < n:
                    store_some(spec, y, y0, dx, some)
                elif streams(spec):
                    store_past(spec, y, y0, dx)
                else:
                    store(spec, y, y0, dx)
                x0 += x_step
                g0 += g_step
                y0 += y_step
        high_row = low
