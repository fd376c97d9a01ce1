"""Padding at the end of sequences: seen in a layer's input as positions that are one constant in every channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.accumulator import Accumulator
from batchnorm.core.record import LayerRecord

__all__ = ["Padding", "PaddingSeen"]

SHORTEST = 2
"""Positions: a single last one that repeats the one before it is chance, or the edge of a convolution."""
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Padding:
    """Moments of what is no padding, the share of positions that are, and how many samples end in some."""

    data: Accumulator
    share: float
    sequences: int


class PaddingSeen:
    """Looks for padding batch by batch; sequences are inputs of three axes, batch first."""

    def __init__(self, record: LayerRecord) -> None:
        self._axis = record.axis
        self._channels = record.channels
        self._data: Accumulator | None = None
        self._padded = 0
        self._positions = 0
        self._sequences = 0
        self._lengths: set[int] = set()
        self._value: Array | None = None
        self._same = True

    def add(self, x: NDArray[Any]) -> None:
        """One call's input."""
        if x.ndim != 3 or isinstance(self._axis, tuple) or self._axis % 3 == 0 or not self._same:
            return
        rows: Any = x if self._axis % 3 == 2 else np.swapaxes(x, 1, 2)
        runs: Any = _runs(rows)
        hidden: Any = runs * (runs >= SHORTEST)
        for sample, run in zip(rows, runs, strict=True):
            if run >= SHORTEST:
                self._see(sample[-1].astype(np.float64))
        positions: Any = np.arange(int(rows.shape[1]))
        kept: Any = positions < (rows.shape[1] - hidden)[:, None]
        found = Accumulator.of(rows[kept], -1) if kept.any() else None
        if found is not None:
            self._data = found if self._data is None else self._data.merge(found)
        self._padded += int(np.sum(~kept))
        self._positions += kept.size
        self._sequences += int(np.sum(hidden > 0))
        self._lengths.update(int(n) for n in kept.sum(axis=1))

    def _see(self, value: Array) -> None:
        # Padding is the same in every sample; a sequence that happens to end flat is not.
        if self._value is None:
            self._value = value
        self._same = bool(np.allclose(value, self._value, rtol=1e-4, atol=1e-5))

    def result(self) -> Padding | None:
        """The padding; None where there is none, or where every sequence ends at one place (a background)."""
        if self._data is None or not self._same or not self._padded or len(self._lengths) < 2:
            return None
        return Padding(self._data, self._padded / self._positions, self._sequences)


def _runs(rows: NDArray[Any]) -> NDArray[Any]:
    """How many positions at the end of each sample are equal to its last one, in every channel."""
    same = np.all(rows == rows[:, -1:], axis=2)[:, ::-1]
    lengths: NDArray[np.intp] = np.argmin(same, axis=1)
    lengths[same.all(axis=1)] = rows.shape[1]
    return lengths
