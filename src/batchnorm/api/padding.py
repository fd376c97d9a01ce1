"""Padding that data tell of: ``mask`` or ``lengths`` beside the inputs of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.padding import LeftOut, Told
from batchnorm.core.protocols import Masked
from batchnorm.errors import ArgumentError

from .batches import Batch, leaves

__all__ = ["Apart", "left_out", "notes", "told"]

MASK, LENGTHS = "mask", "lengths"
MOST_NAMED = 5


class Apart:
    """Takes ``mask`` and ``lengths`` out of a batch's inputs, where the model has no inputs of these names.

    ``mask``: one row a sample, 1 where there is data; ``lengths``: how many positions of each sample are data. What is
    left is fed as it is, or, if that is a single array, without its name.

    Parameters
    ----------
    run : callable
        Runs the model on inputs; raises `ArgumentError` where it has none of such a name.
    who : str
        Beginning of the messages.

    Attributes
    ----------
    taken : bool or None
        Whether the model takes them itself; None while no batch held any.

    Raises
    ------
    ArgumentError
        Both of them; another number of samples; a mask that is not 0 and 1; a length that no sequence has.
    """

    def __init__(self, run: Callable[[Any], Any], who: str) -> None:
        self._run = run
        self._who = who
        self.taken: bool | None = None

    def __call__(self, batch: Batch) -> Batch:
        """The batch, what it tells of padding beside its inputs."""
        inputs: Any = batch.inputs
        if not isinstance(inputs, dict) or not (MASK in inputs or LENGTHS in inputs):
            return batch
        self.taken = self._takes(inputs) if self.taken is None else self.taken
        return batch if self.taken else _taken_out(batch, self._who)

    def _takes(self, inputs: Any) -> bool:
        """Whether the model itself has inputs of these names: engines refuse a name that they do not know."""
        try:
            self._run(inputs)
        except ArgumentError:
            return False
        return True


def _taken_out(batch: Batch, who: str) -> Batch:
    inputs = dict(cast("dict[str, NDArray[Any]]", batch.inputs))
    given = {name: inputs.pop(name) for name in (MASK, LENGTHS) if name in inputs}
    if len(given) > 1:
        raise ArgumentError(f"{who}: data holds mask and lengths, which tell the same; give one of them.")
    if not inputs:
        raise ArgumentError(f"{who}: data holds {', '.join(given)} and no input of the model beside it.")
    ((name, values),) = given.items()
    longest = max((extent for array in leaves(inputs) for extent in array.shape[1:]), default=0)
    padding = _mask(values, who) if name == MASK else _lengths(values, longest, who)
    left: Any = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    return dataclasses.replace(batch, inputs=left, padding=padding)


def _mask(values: NDArray[Any], who: str) -> NDArray[np.bool_]:
    if values.ndim < 2 or not np.isin(values, (0, 1)).all():
        raise ArgumentError(
            f"{who}: mask must hold 1 where there is data and 0 where there is padding, one row a sample; got shape "
            f"{values.shape}, {values.dtype}."
        )
    return values.astype(bool)


def _lengths(values: NDArray[Any], longest: int, who: str) -> NDArray[np.intp]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or np.any(values != np.rint(values)) or np.any(values < 0) or np.any(values > longest):
        raise ArgumentError(
            f"{who}: lengths must hold one whole number a sample, 0 to {longest}, the longest axis of the input; got "
            f"shape {values.shape}" + (f", {values.min():g} to {values.max():g}." if values.size else ".")
        )
    return values.astype(np.intp)


def told(batch: Batch, captured: Any = None) -> Told | None:
    """What is known of the padding in a batch: from the data, or else from the masks of the model itself."""
    if batch.padding is not None:
        return Told(batch.padding, tuple(extent for array in leaves(batch.inputs) for extent in array.shape[1:]))
    if isinstance(captured, Masked) and captured.padding is not None:
        return Told(captured.padding, source="model")
    return None


def left_out(batch: Batch, padded: Collection[str] | None, who: str = "recalibrate") -> LeftOut | None:
    """What is left out of the statistics of a batch; ``padded`` are the layers along whose inputs padding lies.

    Raises
    ------
    ArgumentError
        This batch tells of padding and the first did not, or the other way round: together they are neither.
    """
    known = told(batch)
    if (known is None) != (padded is None):
        raise ArgumentError(
            f"{who}: data hold mask or lengths in some batches and not in others (the one from sample {batch.start} on"
            f"{' has none' if known is None else ', and not the first'}). Give them with every batch, or with none."
        )
    return None if known is None or padded is None else LeftOut(known, frozenset(padded))


def notes(taken: bool | None, padded: Collection[str] | None, measured: Collection[str]) -> tuple[str, ...]:
    """What became of the padding that data tell of, for the report on the layers ``measured``."""
    if taken:
        return ("data hold mask or lengths, which the model takes itself: it tells its layers what they count.",)
    if padded is None:
        return ()
    outside = [name for name in measured if name not in padded]
    if not outside:
        return ("Padded positions, as data tell, are left out of the statistics.",)
    more = f" and {len(outside) - MOST_NAMED} more" if len(outside) > MOST_NAMED else ""
    return (
        f"The padding that data tell of does not lie along the input of {', '.join(outside[:MOST_NAMED])}{more}, where "
        f"all is counted{'.' if len(outside) == len(measured) else '; elsewhere it is left out of the statistics.'}",
    )
