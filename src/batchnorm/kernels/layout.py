"""How tensors lie in memory, told apart for the kernels. Pure, cached, without data."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

__all__ = ["Layout", "arrange"]

Strides = tuple[int, ...]
SHORT = 32
"""A plane shorter than this, in elements, is no run worth starting: whole samples become rows instead."""
UNIT = 65536
"""Elements of a unit of work; what a thread adds up before another may."""
FEW = 16
"""Fewer channels than this are divided among the threads by units."""


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
    strides : tuple of (outer, inner, channel)
        Of each operand, in elements.
    order : tuple of int
        The reduced axes from the outermost loop to the innermost: how a mask is laid out.
    """

    kind: Literal["first", "last"]
    channels: int
    outer: int
    inner: int
    length: int
    repeat: int
    strides: tuple[tuple[int, int, int], ...]
    order: tuple[int, ...]

    @property
    def planes(self) -> int:
        """Planes or rows."""
        return self.outer * self.inner

    @property
    def group(self) -> int:
        """Planes of a unit."""
        return max(1, UNIT // max(1, self.length))

    @property
    def segment(self) -> int:
        """Elements of a plane in a unit."""
        return max(1, min(self.length, UNIT))

    @property
    def segments(self) -> int:
        """Units a plane is divided into."""
        return -(-self.length // self.segment)

    @property
    def units(self) -> int:
        """Units of a channel."""
        return -(-self.planes // self.group) * self.segments


@functools.lru_cache(maxsize=512)
def arrange(shape: tuple[int, ...], strides: tuple[Strides, ...], axis: int) -> Layout | None:
    """The loops over operands of one shape, or None where one of them must be copied first.

    Parameters
    ----------
    shape : tuple of int
        Of every operand; no axis is empty.
    strides : tuple of tuple of int
        Of each operand, in elements; the first one's decide the order of the loops.
    axis : int
        Where the channels are; not negative.
    """
    order = tuple(sorted((i for i in range(len(shape)) if i != axis), key=lambda i: (-abs(strides[0][i]), -shape[i])))
    loops = _merged([(shape[i], tuple(one[i] for one in strides)) for i in order if shape[i] != 1])
    across = tuple(one[axis] for one in strides)
    channels = shape[axis]
    ones = (1,) * len(strides)
    if loops and loops[-1][1] == ones and channels != 1:
        length = loops[-1][0]
        if length < SHORT and across == (length,) * len(strides) and len(loops) <= 3:
            return _layout("last", channels, loops[:-1], channels * length, length, ones, order)
    if (not loops or loops[-1][1] == ones) and len(loops) <= 3 and (loops or channels == 1):
        return _layout("first", channels, loops[:-1], loops[-1][0] if loops else 1, 1, across, order)
    if (across == ones or channels == 1) and len(loops) <= 2:
        return _layout("last", channels, loops, channels, 1, ones, order)
    return None


def _merged(loops: list[tuple[int, Strides]]) -> list[tuple[int, Strides]]:
    done: list[tuple[int, Strides]] = []
    for count, steps in loops:
        if done and all(before == step * count for before, step in zip(done[-1][1], steps, strict=True)):
            done[-1] = (done[-1][0] * count, steps)
        else:
            done.append((count, steps))
    return done


def _layout(
    kind: Literal["first", "last"],
    channels: int,
    loops: list[tuple[int, Strides]],
    length: int,
    repeat: int,
    across: Strides,
    order: tuple[int, ...],
) -> Layout:
    (outer, far), (inner, near) = [(1, (0,) * len(across))] * (2 - len(loops)) + loops
    return Layout(kind, channels, outer, inner, length, repeat, tuple(zip(far, near, across, strict=True)), order)
