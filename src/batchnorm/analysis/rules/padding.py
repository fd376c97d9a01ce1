"""Padding in sequences: as the data tell it, or seen as positions that are one constant in every channel."""

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
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Padding:
    """What padding does to a layer.

    Attributes
    ----------
    data, whole : Accumulator
        Moments of what is no padding, and of all positions.
    share : float
        Of the positions, how many are padding.
    sequences : int
        Samples with some.
    source : str
        How that is known: from the "data", from the "model", from the mask that the "layer" gets, or "seen".
    """

    data: Accumulator
    whole: Accumulator
    share: float
    sequences: int
    source: str


class PaddingSeen:
    """Adds padding up batch by batch; what nobody tells is looked for in inputs of three axes, batch first."""

    def __init__(self, record: LayerRecord) -> None:
        self._axis = record.axis
        self._data: Accumulator | None = None
        self._rest: Accumulator | None = None
        self._padded = 0
        self._positions = 0
        self._sequences = 0
        self._lengths: set[int] = set()
        self._value: Array | None = None
        self._same = True
        self._source: str | None = None

    def add(self, rows: NDArray[Any], known: Mask | None, source: str) -> None:
        """One call's input with its channels last, and which of its positions hold data, where that is known."""
        if self._source not in (None, "seen" if known is None else source) or not self._same:
            return  # told for one batch and not for another: neither is a whole
        if known is None and (rows.ndim != 3 or isinstance(self._axis, tuple) or self._axis % 3 == 0):
            return
        kept = self._looked_for(rows) if known is None else known
        self._source = "seen" if known is None else source
        self._data = _more(self._data, rows[kept])
        self._rest = _more(self._rest, rows[~kept])
        self._padded += int(np.sum(~kept))
        self._positions += kept.size
        counts: NDArray[np.intp] = kept.reshape(len(kept), -1).sum(axis=1)
        self._sequences += int(np.sum(counts < kept.size // max(len(kept), 1)))
        self._lengths.update(int(n) for n in counts)

    def _looked_for(self, rows: NDArray[Any]) -> Mask:
        runs: Any = _runs(rows)
        hidden: Any = runs * (runs >= SHORTEST)
        for sample, run in zip(rows, runs, strict=True):
            if run >= SHORTEST:
                self._see(sample[-1].astype(np.float64))
        positions: Any = np.arange(int(rows.shape[1]))
        return positions < (rows.shape[1] - hidden)[:, None]

    def _see(self, value: Array) -> None:
        # Padding is the same in every sample; a sequence that happens to end flat is not.
        if self._value is None:
            self._value = value
        self._same = bool(np.allclose(value, self._value, rtol=1e-4, atol=1e-5))

    def result(self) -> Padding | None:
        """The padding; None where there is none, or where every sequence seems to end at one place (a background)."""
        if self._data is None or self._rest is None or self._source is None or not self._same:
            return None
        if self._source == "seen" and len(self._lengths) < 2:
            return None
        share = self._padded / self._positions
        return Padding(self._data, self._data.merge(self._rest), share, self._sequences, self._source)


def _more(total: Accumulator | None, table: NDArray[Any]) -> Accumulator | None:
    if not len(table):
        return total
    found = Accumulator.of(table, -1)
    return found if total is None else total.merge(found)


def _runs(rows: NDArray[Any]) -> NDArray[Any]:
    """How many positions at the end of each sample are equal to its last one, in every channel."""
    same = np.all(rows == rows[:, -1:], axis=2)[:, ::-1]
    lengths: NDArray[np.intp] = np.argmin(same, axis=1)
    lengths[same.all(axis=1)] = rows.shape[1]
    return lengths
