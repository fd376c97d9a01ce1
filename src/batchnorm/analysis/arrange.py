"""Where the channels lie in an input that a user typed, and which of its elements were asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.ops import as_float
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, UnknownLayer

__all__ = ["Arranged", "arrange", "checked_channel"]


@dataclass(frozen=True, slots=True, eq=False)
class Arranged:
    """A layer's input by channel.

    Attributes
    ----------
    rows : array of shape (channels, n)
        The elements of each channel, in the order of the input.
    shape : tuple of int
        The input as it was given.
    kept : tuple of int
        The axes of ``shape`` that hold the channels; empty where every element belongs to the one channel.
    chosen : array of bool, or None
        Which elements of ``rows`` were asked for; None is all.
    """

    rows: NDArray[Any]
    shape: tuple[int, ...]
    kept: tuple[int, ...]
    chosen: NDArray[np.bool_] | None = None

    def index(self, channel: int, position: int) -> tuple[int, ...]:
        """The place in the input of element ``position`` of ``channel``."""
        if not self.shape:
            return ()
        rest = tuple(n for i, n in enumerate(self.shape) if i not in self.kept)
        others = iter(np.unravel_index(position, rest) if rest else ())
        lengths = tuple(self.shape[i] for i in self.kept)
        channels = iter(np.unravel_index(channel, lengths) if lengths else ())
        return tuple(int(next(channels if i in self.kept else others)) for i in range(len(self.shape)))

    def positions(self, channel: int) -> NDArray[np.intp]:
        """Where the elements of ``channel`` that were asked for lie in its row."""
        if self.chosen is None:
            return np.arange(self.rows.shape[1], dtype=np.intp)
        return np.flatnonzero(self.chosen[channel])


def arrange(x: Any, record: LayerRecord, at: tuple[int, ...] | None = None) -> Arranged:
    """Lay an input out by channel, and mark what lies under the index ``at``.

    A single number or a list is values for a layer of one channel, and the channels of one sample otherwise. Anything
    of higher rank has its channels on the layer's axis, or is a table of shape (samples, channels).

    Raises
    ------
    ArgumentError
        No axis of the input can hold the layer's channels (the message says the shape wanted), or ``at`` is outside.
    TypeError
        Not real numbers.
    """
    values = as_float(x, "explain")
    if not values.size:
        raise ArgumentError(f"{record.name}: x holds no value (its shape is {values.shape}); give at least one.")
    kept = _kept(values.shape, record)
    chosen = None if at is None else _by_channel(_under(at, values.shape), kept)
    return Arranged(_by_channel(values, kept), values.shape, kept, chosen)


def checked_channel(channel: int, record: LayerRecord) -> int:
    """``channel``, counted from the end if negative.

    Raises
    ------
    UnknownLayer
        The layer has no such channel.
    """
    if not -record.channels <= channel < record.channels:
        there = f"channels 0 to {record.channels - 1}" if record.channels > 1 else "one channel, 0"
        raise UnknownLayer(f"{record.name}: no channel {channel}; it has {there}.")
    return channel % record.channels


def _under(at: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    chosen = np.zeros(shape, bool)
    try:
        chosen[at] = True
    except IndexError:
        raise ArgumentError(
            f"explain: --at {','.join(map(str, at))} is outside the layer's input of shape {shape}; give an index, "
            "batch first."
        ) from None
    return chosen


def _by_channel(values: NDArray[Any], kept: tuple[int, ...]) -> NDArray[Any]:
    channels = math.prod(values.shape[i] for i in kept)
    return np.moveaxis(values, kept, tuple(range(len(kept)))).reshape(channels, -1)


def _kept(shape: tuple[int, ...], record: LayerRecord) -> tuple[int, ...]:
    if len(shape) < 2:
        if record.channels == 1:
            return ()
        if shape == (record.channels,):
            return (0,)
        raise _mismatch(shape, record)
    axes = record.axis if isinstance(record.axis, tuple) else (record.axis,)
    if all(-len(shape) <= axis < len(shape) for axis in axes):
        kept = tuple(sorted(axis % len(shape) for axis in axes))
        if tuple(shape[i] for i in kept) == record.channel_shape:
            return kept
    if len(shape) == 2 and shape[1] == record.channels:
        return (1,)
    raise _mismatch(shape, record)


def _mismatch(shape: tuple[int, ...], record: LayerRecord) -> ArgumentError:
    if record.channels == 1:
        wanted = "a list of values, or an array with length 1"
    else:
        wanted = f"the {record.channels} channels of one sample, a table of shape (n, {record.channels}), or an array "
        wanted += f"with length {record.channel_shape[0] if len(record.channel_shape) == 1 else record.channel_shape}"
    given = f"shape {shape}" if shape else "a single number"
    return ArgumentError(f"{record.name}: x must be {wanted} on axis {record.axis}; got {given}.")
