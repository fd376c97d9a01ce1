"""How tensors lie in memory, told apart for the kernels. Pure, cached, without data."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Layout", "arrange"]

Strides = tuple[int, ...]
SHORT = 32
"""A plane shorter than this, in elements, is no run worth starting: whole samples become rows instead."""
UNIT = 65536
"""Elements of a channel in a unit of work; what a thread adds up before another may."""
ROWS_UNIT = 16384
"""The same for rows; there are at most `MOST_UNITS` of them, as each needs memory for its sums."""
MOST_UNITS = 64
WIDE = 4096
"""Columns, at most, of several narrow rows taken as one."""
FULL = 64
"""Such a row is a multiple of this if it can be, else of `LANES`."""
LANES = 16


@dataclass(frozen=True, slots=True)
class Layout:
    """One shape with the strides of all its operands, as loops over unit-stride runs.

    Attributes
    ----------
    kind : {"first", "last"}
        Whether the run along memory belongs to one channel, or goes across the channels.
    channels, outer, inner : int
        Channels; planes (kind "first") or rows, as two nested loops.
    length : int
        Elements of a plane (kind "first"); columns of a row (kind "last").
    repeat : int
        Adjacent columns of one channel (kind "last").
    tail : int
        Columns of the last row: fewer than ``length`` where narrow rows were taken several at a time.
    strides : tuple of (outer, inner, channel)
        Of each operand, in elements.
    order : tuple of int
        The reduced axes from the outermost loop to the innermost: how a mask is laid out.
    count : int
        Elements of each channel.
    """

    kind: Literal["first", "last"]
    channels: int
    outer: int
    inner: int
    length: int
    repeat: int
    tail: int
    strides: tuple[tuple[int, int, int], ...]
    order: tuple[int, ...]
    count: int

    @property
    def planes(self) -> int:
        """Planes or rows."""
        return self.outer * self.inner

    @property
    def group(self) -> int:
        """Planes or rows of a unit."""
        if self.kind == "first":
            return max(1, UNIT // max(1, self.length))
        rows = max(16, ROWS_UNIT // self.length, -(-self.planes // MOST_UNITS))
        return rows if rows < 128 else -(-rows // 128) * 128

    @property
    def segment(self) -> int:
        """Elements of a plane in a unit."""
        return max(1, min(self.length, UNIT))

    @property
    def segments(self) -> int:
        """Units a plane is divided into."""
        return -(-self.length // self.segment) if self.kind == "first" else 1

    @property
    def units(self) -> int:
        """Units of a channel, or of all rows."""
        return -(-self.planes // self.group) * self.segments


@functools.lru_cache(maxsize=512)
def arrange(shape: tuple[int, ...], strides: tuple[Strides, ...], axis: int, mask: bool = False) -> Layout | None:
    """The loops over operands of one shape, or None where one of them must be copied first.

    Parameters
    ----------
    shape : tuple of int
        Of every operand; no axis is empty.
    strides : tuple of tuple of int
        Of each operand, in elements; the first one's decide the order of the loops.
    axis : int
        Where the channels are; not negative.
    mask : bool
        Whether there is a mask: rows are then taken one at a time.
    """
    order = tuple(sorted((i for i in range(len(shape)) if i != axis), key=lambda i: (-abs(strides[0][i]), -shape[i])))
    loops = _merged([(shape[i], tuple(one[i] for one in strides)) for i in order if shape[i] != 1])
    across = tuple(one[axis] for one in strides)
    channels = shape[axis]
    ones = (1,) * len(strides)
    adjacent = bool(loops) and loops[-1][1] == ones
    if adjacent and channels != 1 and not mask and loops[-1][0] < SHORT:
        length = loops[-1][0]
        if across == (length,) * len(strides) and len(loops) <= 3:
            return _rows(channels, loops[:-1], length, False, order, len(strides))
    if (adjacent or (not loops and channels == 1)) and len(loops) <= 3:
        length = loops[-1][0] if loops else 1
        return _loops("first", channels, loops[:-1], length, 1, length, across, order)
    if (across == ones or channels == 1) and len(loops) <= 2:
        return _rows(channels, loops, 1, mask, order, len(strides))
    return None


def _merged(loops: list[tuple[int, Strides]]) -> list[tuple[int, Strides]]:
    done: list[tuple[int, Strides]] = []
    for count, steps in loops:
        if done and all(before == step * count for before, step in zip(done[-1][1], steps, strict=True)):
            done[-1] = (done[-1][0] * count, steps)
        else:
            done.append((count, steps))
    return done


def _rows(
    channels: int, loops: list[tuple[int, Strides]], repeat: int, mask: bool, order: tuple[int, ...], operands: int
) -> Layout:
    """Rows; narrow ones several at a time where they follow each other without a gap."""
    width = channels * repeat
    rows = loops[0][0] if len(loops) == 1 else 0
    if rows > 1 and not mask and loops[0][1] == (width,) * operands:
        fold = next((m for m in (_to(FULL, width), _to(LANES, width)) if m * width <= WIDE and m <= rows), 1)
        if fold > 1:
            wide = fold * width
            loops = [(-(-rows // fold), (wide,) * operands)]
            tail = rows * width - (loops[0][0] - 1) * wide
            return _loops("last", channels, loops, wide, repeat, tail, (1,) * operands, order, rows * repeat)
    return _loops("last", channels, loops, width, repeat, width, (1,) * operands, order)


def _to(multiple: int, width: int) -> int:
    return multiple // math.gcd(multiple, width)


def _loops(
    kind: Literal["first", "last"],
    channels: int,
    loops: list[tuple[int, Strides]],
    length: int,
    repeat: int,
    tail: int,
    across: Strides,
    order: tuple[int, ...],
    count: int | None = None,
) -> Layout:
    (outer, far), (inner, near) = [(1, (0,) * len(across))] * (2 - len(loops)) + loops
    if count is None:
        count = outer * inner * (length if kind == "first" else repeat)
    strides = tuple(zip(far, near, across, strict=True))
    return Layout(kind, channels, outer, inner, length, repeat, tail, strides, order, count)
