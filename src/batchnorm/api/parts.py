"""Data of any length in two: a first part that is shown, and the rest, of which only statistics are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np

from batchnorm.errors import ArgumentError

from .batches import Batch, Batches, input_of, is_whole, leaves

__all__ = ["in_parts", "joined"]

MOST_SHOWN = 32 << 20
"""Bytes of input that are run at once: what the layers make of them is some tens of times as much."""


def in_parts(data: Any, who: str = "explain") -> Iterator[Any]:
    """The data in parts of bounded size, the first of them as large as the bound allows.

    Parameters
    ----------
    data : array_like, list or dict of arrays, or iterable of batches
        An array, or a dict of named arrays, is cut along axis 0; a list of arrays goes to the model whole. Batches of
        any other iterable (arrays, tuples ``(x, y)`` of which ``x`` is taken, dicts of named inputs) are put together.
    who : str
        Beginning of the messages.

    Raises
    ------
    ArgumentError
        No batch, no array, or batches of the first part that do not go together.
    """
    if isinstance(data, (list, tuple)) and not any(isinstance(each, (dict, tuple)) for each in cast("Any", data)):
        yield cast("Any", data)
    elif is_whole(data):
        yield from (batch.inputs for batch in Batches(data, _most(data, who), who=who, nonfinite="keep"))
    else:
        yield from _gathered(Batches(data, 1, who=who, nonfinite="keep"), who)


def _most(data: Any, who: str) -> int:
    """How many samples are run at once."""
    arrays = leaves(input_of(data, who))
    per_sample = sum(each.nbytes // max(len(each), 1) for each in arrays if each.ndim)
    return max(1, MOST_SHOWN // max(per_sample, 1))


def _gathered(batches: Iterable[Batch], who: str) -> Iterator[Any]:
    part: list[Any] = []
    held = 0
    for batch in batches:
        if held >= MOST_SHOWN:
            yield joined(part, who)
            part, held = [], 0
        part.append(batch.inputs)
        held += sum(array.nbytes for array in leaves(batch.inputs))
    yield joined(part, who)


def joined(batches: list[Any], who: str) -> Any:
    """Batches as one.

    Raises
    ------
    ArgumentError
        Their shapes or names differ.
    """
    try:
        if all(isinstance(batch, dict) for batch in batches):
            return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        if all(isinstance(batch, list) for batch in batches):
            return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
        return np.concatenate(batches)
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"{who}: the batches of data do not go together ({error}).") from None
