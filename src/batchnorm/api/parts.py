"""Data of any length in two: a first part that is shown, and the rest, of which only statistics are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import ArgumentError

from .inputs import batch_input, real

__all__ = ["in_parts", "joined"]

MOST_SHOWN = 32 << 20
"""Bytes of input that are run at once: what the layers make of them is some tens of times as much."""


def in_parts(data: Any, who: str = "--data") -> Iterator[Any]:
    """The data in parts of bounded size, the first of them as large as the bound allows.

    Parameters
    ----------
    data : array_like, list or dict of arrays, or iterable of batches
        An array, or a dict of named arrays, is cut along axis 0; a list goes to the model as it is. Batches of any
        other iterable (arrays, tuples ``(x, y)`` of which ``x`` is taken, dicts of named inputs) are put together.
    who : str
        How messages call the data.

    Raises
    ------
    ArgumentError
        No batch, no array, or batches of the first part that do not go together.
    """
    if isinstance(data, (list, tuple)):
        yield cast("Any", data)
    elif isinstance(data, dict) or hasattr(data, "__array__"):
        yield from _cut(cast("Any", data), who)
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        yield from _gathered(cast("Iterable[Any]", data), who)
    else:
        raise ArgumentError(f"{who} is a {type(data).__name__}; give an array or an iterable of batches.")


def _cut(data: Any, who: str) -> Iterator[Any]:
    arrays = _named(data)
    lengths = {len(each) if each.ndim else 0 for each in arrays.values()}
    per_sample = sum(each.nbytes // max(len(each), 1) for each in arrays.values() if each.ndim)
    size = max(1, MOST_SHOWN // max(per_sample, 1))
    if len(lengths) != 1 or max(lengths) <= size:
        yield (
            {name: real(each, who, "--data") for name, each in arrays.items()} if isinstance(data, dict) else arrays[""]
        )
        return
    for start in range(0, lengths.pop(), size):
        part = {name: np.array(each[start : start + size]) for name, each in arrays.items()}
        yield part if isinstance(data, dict) else part[""]


def _gathered(data: Iterable[Any], who: str) -> Iterator[Any]:
    part: list[Any] = []
    held = 0
    for each in data:
        if held >= MOST_SHOWN:
            yield joined(part, who)
            part, held = [], 0
        batch = batch_input(each, who)
        part.append(batch)
        held += sum(array.nbytes for array in _named(batch).values())
    if not part:
        raise ArgumentError(f"--data: {who} holds no batch.")
    yield joined(part, who)


def _named(x: Any) -> dict[str, NDArray[Any]]:
    if isinstance(x, dict):
        return {str(name): np.asanyarray(each) for name, each in cast("dict[Any, Any]", x).items()}
    return {"": np.asanyarray(x)}


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
        return np.concatenate(batches)
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"--data: the batches of {who} do not go together ({error}).") from None
