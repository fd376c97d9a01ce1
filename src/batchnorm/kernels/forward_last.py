"""Training forward and inference, channels last: what is done to the elements of some rows.

As `forward_first`. A vector holds adjacent columns; over the rows of a tile its sums stay in registers.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201
from __future__ import annotations

from .activations import activate
from .block import BY_COLUMN, COLUMNS, MASK, RESIDUAL, TILE, WRITE_TILE, X, Y
from .intrinsics import (
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
from .vectors import add_to, fma, load_sums, select, splat, store_sums
from .walk_last import row_at

__all__ = ["add", "apply"]


def add(block, first, stop, limit, own, place, _more, spec):
    """Add ``x - shift`` and its square, of the first ``limit`` columns, to the sums at ``place``."""
    x, start, step = get_int(block, X), row_at(block, X, first), get_int(block, X + 2)
    columns, by_column, flags = get_int(block, COLUMNS), get_int(block, BY_COLUMN), get_int(block, MASK)
    n, nothing = lanes(spec), splat(spec, 0.0)
    second = own + columns * widesize(spec)
    for i in range(0, 2 * columns, n):
        store_wide(spec, own, i, nothing)
    tile = get_int(block, TILE)
    for low in range(first, stop, tile):
        high = min(stop, low + tile)
        for column in range(0, limit, n):
            index = start + (low - first) * step + column
            shift = load_wide(spec, by_column, column)
            s0, q0 = load_wide(spec, own, column), load_wide(spec, second, column)
            s1, s2, s3, q1, q2, q3 = nothing, nothing, nothing, nothing, nothing, nothing
            row = low
            if not has_mask(spec) and column + n <= limit:
                while row + 4 <= high:
                    d0, d1 = load(spec, x, index) - shift, load(spec, x, index + step) - shift
                    d2, d3 = load(spec, x, index + 2 * step) - shift, load(spec, x, index + 3 * step) - shift
                    for k in range(4):
                        prefetch(x + (index + (k + tile) * step) * itemsize(spec))
                    s0, s1, s2, s3 = s0 + d0, s1 + d1, s2 + d2, s3 + d3
                    q0, q1, q2, q3 = fma(d0, d0, q0), fma(d1, d1, q1), fma(d2, d2, q2), fma(d3, d3, q3)
                    index += 4 * step
                    row += 4
                s0, q0 = (s0 + s1) + (s2 + s3), (q0 + q1) + (q2 + q3)
            some = min(n, limit - column)
            inside = first_lanes(spec, some)
            while row < high:
                if not has_mask(spec) or get_byte(flags, row) != 0:
                    d0 = select(inside, load_some(spec, x, index, some) - shift, nothing)
                    s0, q0 = s0 + d0, fma(d0, d0, q0)
                index += step
                row += 1
            store_wide(spec, own, column, s0)
            store_wide(spec, second, column, q0)
    for i in range(0, 2 * columns, n):
        store_sums(spec, place, i, add_to(load_sums(spec, place, i), load_wide(spec, own, i)))


def apply(block, first, stop, limit, _own, _place, _more, spec):
    """Write ``activation((x - high)*scale + shift + residual)``, from the last row to the first."""
    by_column, columns, n, tile = (
        get_int(block, BY_COLUMN),
        get_int(block, COLUMNS),
        lanes(spec),
        get_int(block, WRITE_TILE),
    )
    x, x_start, x_step = get_int(block, X), row_at(block, X, first), get_int(block, X + 2)
    y, y_start, y_step = get_int(block, Y), row_at(block, Y, first), get_int(block, Y + 2)
    r, r_start, r_step = get_int(block, RESIDUAL), row_at(block, RESIDUAL, first), get_int(block, RESIDUAL + 2)
    ahead = get_int(block, TILE)
    high_row = stop
    while high_row > first:
        low = max(first, high_row - tile)
        for column in range(0, limit, n):
            high = load_wide(spec, by_column, column)
            scale = load_wide(spec, by_column, columns + column)
            shift = load_wide(spec, by_column, 2 * columns + column)
            x0, y0 = x_start + (low - first) * x_step + column, y_start + (low - first) * y_step + column
            r0 = r_start + (low - first) * r_step + column
            some = min(n, limit - column)
            for _ in range(high_row - low):
                if some == n:
                    z = fma(load(spec, x, x0) - high, scale, shift)
                    if has_residual(spec):
                        z = z + load(spec, r, r0)
                    if streams(spec):
                        store_past(spec, y, y0, activate(spec, z))
                    else:
                        store(spec, y, y0, activate(spec, z))
                    prefetch(x + (x0 - ahead * x_step) * itemsize(spec))
                else:
                    z = fma(load_some(spec, x, x0, some) - high, scale, shift)
                    if has_residual(spec):
                        z = z + load_some(spec, r, r0, some)
                    store_some(spec, y, y0, activate(spec, z), some)
                x0 += x_step
                y0 += y_step
                r0 += r_step
        high_row = low
