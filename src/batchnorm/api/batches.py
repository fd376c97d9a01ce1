"""Data and labels in batches, checked as they come: what ``check`` runs a model on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import ArgumentError

from .inputs import batch_input

__all__ = ["Batch", "batches_of", "is_whole", "samples_of"]

AT_ONCE = 64
"""Samples of an array that are run at once where no batch size is given; it bounds the memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One batch: the model's input, how many samples it holds, and their labels where there are some."""

    x: Any
    samples: int
    labels: NDArray[Any] | None = None


def is_whole(data: Any) -> bool:
    """Whether the data is an array or a dict of arrays, which have no batch size of their own."""
    return isinstance(data, dict) or hasattr(data, "__array__")


def samples_of(x: Any) -> int:
    """The length of the first axis of an input of a model: an array, or a dict or list of them."""
    first: Any = x
    if isinstance(x, dict):
        first = next(iter(cast("dict[Any, Any]", x).values()), ())
    elif isinstance(x, (list, tuple)) and x and hasattr(cast("Any", x[0]), "__array__"):
        first = cast("Any", x[0])
    shape = np.shape(first)
    return shape[0] if shape else 0


def batches_of(data: Any, labels: Any = None, batch_size: int | None = None) -> Iterator[Batch]:
    """The data in batches.

    Parameters
    ----------
    data : array_like, dict of arrays, or iterable of batches
        A batch is an array, a dict of named inputs, or a tuple of one of them and the labels.
    labels : array_like, optional
        One a sample, for arrays.
    batch_size : int, optional
        Of arrays; batches keep their own size.

    Raises
    ------
    ArgumentError
        No sample; another number of labels than samples; NaN or infinity in a sample, which is named.
    """
    found = _cut(data, labels, batch_size or AT_ONCE) if is_whole(data) else _iterated(data, labels)
    first = 0
    for batch in found:
        _check_finite(batch.x, first)
        yield batch
        first += batch.samples
    if not first:
        raise ArgumentError("--data: holds no sample; a gap shows from 16 samples on, and well from a few hundred.")


def _cut(data: Any, labels: Any, size: int) -> Iterator[Batch]:
    arrays: dict[str, NDArray[Any]] = (
        {str(name): np.asanyarray(each) for name, each in cast("dict[Any, Any]", data).items()}
        if isinstance(data, dict)
        else {"": np.asanyarray(data)}
    )
    lengths = {len(each) if each.ndim else 0 for each in arrays.values()}
    if len(lengths) != 1:
        shapes = ", ".join(f"{name} {each.shape}" for name, each in arrays.items()) or "nothing"
        raise ArgumentError(f"--data: the inputs must have the same number of samples; got {shapes}.")
    total = lengths.pop()
    given = None if labels is None else np.asarray(labels)
    if given is not None and (not given.ndim or len(given) != total):
        raise ArgumentError(f"--labels: there must be one for each of {total} samples; got shape {given.shape}.")
    for start in range(0, total, size):
        part = {name: np.array(each[start : start + size]) for name, each in arrays.items()}
        x: Any = part if isinstance(data, dict) else part[""]
        yield Batch(x, min(size, total - start), None if given is None else given[start : start + size])


def _iterated(data: Any, labels: Any) -> Iterator[Batch]:
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
        raise ArgumentError(f"--data: must be an array or an iterable of batches; got a {type(data).__name__}.")
    if labels is not None:
        raise ArgumentError("--labels: an iterable of batches brings its own, as tuples (x, labels).")
    for batch in cast("Iterable[Any]", data):
        x = batch_input(batch, "data")
        beside = cast("Any", batch)[1] if isinstance(batch, (tuple, list)) and len(cast("Any", batch)) > 1 else None
        yield Batch(x, samples_of(x), _labels(beside, samples_of(x)))


def _labels(value: Any, samples: int) -> NDArray[Any] | None:
    if value is None or isinstance(value, (dict, str)):
        return None
    array = np.asarray(value)
    return array if array.ndim and len(array) == samples and array.dtype.kind in "iubf" else None


def _check_finite(x: Any, first: int) -> None:
    for array in cast("dict[str, Any]", x).values() if isinstance(x, dict) else [x]:
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        raise ArgumentError(
            f"--data: sample {first + int(bad[0])} (counted from 0) holds NaN or infinity, as do {len(bad) - 1} more "
            "of its batch; it would spoil every statistic. Mend the data or leave such samples out."
        )
