"""Padding that data tell of: ``mask`` or ``lengths`` beside the inputs of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.rules.padding import Told
from batchnorm.core.protocols import Masked, Model
from batchnorm.errors import ArgumentError

from .batches import Batch, leaves

__all__ = ["told", "without_padding"]

MASK, LENGTHS = "mask", "lengths"


def without_padding(model: Model, batches: Iterable[Batch], who: str) -> Iterator[Batch]:
    """The batches with ``mask`` and ``lengths`` taken out of the inputs, where the model has no inputs of these names.

    ``mask``: one row a sample, 1 where there is data; ``lengths``: how many positions of each sample are data. What is
    left is fed as it is, or, if that is a single array, without its name.

    Raises
    ------
    ArgumentError
        Both of them; another number of samples; a mask that is not 0 and 1; a length that no sequence has.
    """
    taken: bool | None = None
    for batch in batches:
        inputs: Any = batch.inputs
        if isinstance(inputs, dict) and (MASK in inputs or LENGTHS in inputs):
            taken = _takes(model, inputs) if taken is None else taken
            yield batch if taken else _taken_out(batch, who)
        else:
            yield batch


def _takes(model: Model, inputs: Any) -> bool:
    """Whether the model itself has inputs of these names: engines refuse a name that they do not know."""
    try:
        model.run(inputs)
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


def told(batch: Batch, captured: Any) -> Told | None:
    """What is known of the padding in a batch: from the data, or else from the masks of the model itself."""
    if batch.padding is not None:
        return Told(batch.padding, tuple(extent for array in leaves(batch.inputs) for extent in array.shape[1:]))
    if isinstance(captured, Masked) and captured.padding is not None:
        return Told(captured.padding, source="model")
    return None
