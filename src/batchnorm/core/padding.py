"""Padding that lies beside a batch, and where it lies in the input of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LeftOut", "Told"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What lies beside a batch: which positions of the model's input hold data.

    Attributes
    ----------
    values : array
        A mask, one row a sample, True where there is data; or the length of each sequence.
    extents : tuple of int
        The lengths of the input's axes after the first, among them that of the positions.
    source : str
        Who tells: the "data", or the "model", whose own masks may be lost on their way to a layer.
    """

    values: NDArray[Any]
    extents: tuple[int, ...] = ()
    source: str = "data"

    def at(self, shape: tuple[int, ...]) -> Mask | None:
        """The same of a layer's input; None where its positions are not known to be the input's.

        A layer after strides has fewer positions: one counts where the first that it was made of does. Positions that
        were put behind each other, ``(N*T, C)``, are told apart again.
        """
        mask = self.values if self.values.ndim > 1 else self._until(shape)
        if mask is None:
            return None
        if mask.shape == shape or (len(shape) == 1 and mask.size == shape[0]):
            return mask.reshape(shape)
        if mask.ndim == 2 and len(shape) == 2 and mask.shape[1] % shape[1] == 0 and len(mask) == shape[0]:
            return mask[:, :: mask.shape[1] // shape[1]]
        return None

    def _until(self, shape: tuple[int, ...]) -> Mask | None:
        """Lengths as a mask over the axis of the input on which the positions lie."""
        count, most = len(self.values), int(self.values.max(initial=0))
        long = [extent for extent in self.extents if extent >= most]
        flat = [extent for extent in long if len(shape) == 1 and shape[0] == count * extent]
        same = [extent for extent in long if len(shape) == 2 and shape[1] == extent]
        fewer = [extent for extent in long if len(shape) == 2 and shape[1] > 1 and extent % shape[1] == 0]
        extent = next(iter((*flat, *same, *fewer)), None)
        return None if extent is None else np.arange(extent) < self.values[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """What an engine leaves out of the statistics of one batch.

    Attributes
    ----------
    told : Told
        Which positions of the batch hold data.
    layers : frozenset of str
        The layers along whose input they lie; all of what others get is counted.
    """

    told: Told
    layers: frozenset[str]
