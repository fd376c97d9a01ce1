"""The data a model is run on again and again: arrays cut into batches, or any iterable of batches."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import ArgumentError

__all__ = ["Batch", "Stream"]

Array = NDArray[Any]
HEAD = 4
"""Batches that are kept: what the data's way, and the gap before and after, are seen on."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One batch: the model's input, labels where there are any, and the number of its first sample."""

    inputs: Any
    labels: Array | None
    start: int
    samples: int


class Stream:
    """Data that can be run through several times, batch by batch.

    Parameters
    ----------
    data : array, dict of arrays, iterable of batches, or function that returns one
        A batch is an array, a dict of named inputs, or a tuple ``(x, labels)``. An iterator can be run through once.
    size : int
        Samples of a batch cut from arrays. A last batch of one sample, which has no variance, joins the one before.
    labels : array, optional
        One a sample, where data are arrays.
    skip_nonfinite : bool
        Leave out samples with a NaN or an infinity in them, rather than refuse them.
    may_be_empty : bool
        No data is no error: other ranks of the job have some.
    who : str
        Beginning of the messages.

    Raises
    ------
    ArgumentError
        No data; samples that are not finite, named; data that change between two runs, or cannot be run through again.
    """

    def __init__(
        self,
        data: Any,
        size: int,
        labels: Any = None,
        *,
        skip_nonfinite: bool = False,
        may_be_empty: bool = False,
        who: str = "recalibrate",
    ) -> None:
        if size < 2:
            raise ArgumentError(f"{who}: the batch size must be at least 2, as one sample has no variance; got {size}.")
        self._who = who
        self._skip = skip_nonfinite
        self._may_be_empty = may_be_empty
        self.skipped = 0
        self.batches: int | None = None
        self.samples: int | None = None
        self.is_once = False
        self._first: list[Batch] = []
        self._started = False
        self._open = self._opener(data, size, labels)

    def head(self) -> list[Batch]:
        """The first batches.

        Raises
        ------
        ArgumentError
            There is none.
        """
        if not self._first:
            source = self._checked()
            self._first = list(itertools.islice(source, HEAD))
            if self.is_once:
                self._rest = source
        return self._first

    def __iter__(self) -> Iterator[Batch]:
        if not self.is_once:
            return self._checked()
        if self._started:
            raise ArgumentError(
                f"{self._who}: data is an iterator, which can be run through once. Give a list, a data loader, or a "
                "function that returns a new iterator."
            )
        first = self.head()
        self._started = True
        return itertools.chain(first, self._rest)

    def _checked(self) -> Iterator[Batch]:
        number = start = skipped = 0
        for inputs, labels in self._open():
            samples = _samples(inputs, self._who)
            kept, held, lost = self._finite(inputs, labels, start, samples)
            skipped += lost
            if samples - lost:
                number += 1
                yield Batch(kept, held, start, samples - lost)
            start += samples
        self.skipped = skipped
        if not start and not self._may_be_empty:
            raise ArgumentError(f"{self._who}: data holds no sample. Give at least one batch.")
        if start and not number:
            raise ArgumentError(f"{self._who}: no sample of the data is finite.")
        if self.batches is not None and self.batches != number:
            raise ArgumentError(
                f"{self._who}: data gave {self.batches} batches, then {number}. It must give the same on every run."
            )
        self.batches, self.samples = number, start - skipped

    def _finite(self, inputs: Any, labels: Array | None, start: int, samples: int) -> tuple[Any, Array | None, int]:
        good = np.ones(samples, bool)
        for array in _leaves(inputs):
            if array.dtype.kind not in "fV" or (array.dtype.kind == "f" and np.isfinite(array).all()):
                continue
            good &= np.isfinite(array.astype(np.float32, copy=False)).reshape(samples, -1).all(axis=1)
        if good.all():
            return inputs, labels, 0
        bad = np.flatnonzero(~good)
        if not self._skip:
            named = ", ".join(str(start + int(number)) for number in bad[:5]) + (", ..." if len(bad) > 5 else "")
            raise ArgumentError(
                f"{self._who}: data holds a NaN or an infinity in sample{'s' if len(bad) > 1 else ''} {named}, counted "
                "from 0. Mend the data, or leave such samples out with --skip-nonfinite."
            )
        return _map(inputs, lambda array: array[good]), None if labels is None else labels[good], len(bad)

    def _opener(self, data: Any, size: int, labels: Any) -> Callable[[], Iterator[tuple[Any, Array | None]]]:
        given = None if labels is None else _array(labels, self._who)
        if isinstance(data, dict) or hasattr(data, "__array__"):
            whole = _inputs(data, self._who)
            samples = _samples(whole, self._who)
            if given is not None and len(given) != samples:
                raise ArgumentError(f"{self._who}: {len(given)} labels for {samples} samples; give one a sample.")
            places = _cuts(samples, size)
            self.batches = None if self._skip else len(places)
            self.samples = samples
            return lambda: _cut(whole, given, places)
        if given is not None:
            raise ArgumentError(f"{self._who}: labels go with arrays; an iterable gives tuples (x, labels).")
        if callable(data) and not isinstance(data, Iterable):
            return lambda: _batches(cast("Iterable[Any]", data()), self._who)
        if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
            raise ArgumentError(
                f"{self._who}: data must be an array, a dict of arrays or an iterable of batches; got a "
                f"{type(data).__name__}."
            )
        self.is_once = isinstance(data, Iterator)
        return lambda: _batches(cast("Iterable[Any]", data), self._who)


def _cuts(samples: int, size: int) -> list[tuple[int, int]]:
    places = [(start, min(start + size, samples)) for start in range(0, samples, size)]
    if len(places) > 1 and places[-1][1] - places[-1][0] == 1:
        places[-2:] = [(places[-2][0], places[-1][1])]
    return places


def _cut(whole: Any, labels: Array | None, places: list[tuple[int, int]]) -> Iterator[tuple[Any, Array | None]]:
    for start, end in places:
        # A copy: what lies in a memory-mapped file is read once.
        part = _map(whole, lambda array: np.array(array[start:end]))  # noqa: B023 - called at once
        yield part, None if labels is None else labels[start:end]


def _batches(source: Iterable[Any], who: str) -> Iterator[tuple[Any, Array | None]]:
    for batch in source:
        if isinstance(batch, (tuple, list)):
            parts = cast("list[Any]", batch)
            if not parts:
                raise ArgumentError(f"{who}: data holds a batch without an input.")
            labels = _labels(parts[1]) if len(parts) > 1 else None
            yield _inputs(parts[0], who), labels
        else:
            yield _inputs(batch, who), None


def _labels(value: Any) -> Array | None:
    """What stands beside the input, where it can be labels."""
    if value is None or isinstance(value, (dict, str)):
        return None
    try:
        array = np.asarray(_host(value))
    except (TypeError, ValueError):
        return None
    return array if array.dtype.kind in "iubf" and array.ndim else None


def _inputs(value: Any, who: str) -> Any:
    if isinstance(value, dict):
        return {str(key): _array(item, who) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (tuple, list)):
        return [_array(item, who) for item in cast("list[Any]", value)]
    return _array(value, who)


def _array(value: Any, who: str) -> Array:
    array = np.asanyarray(_host(value))  # a memory-mapped file stays one
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise ArgumentError(f"{who}: data must hold real numbers; got dtype {array.dtype}.")
    return array


def _host(value: Any) -> Any:
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.device.type == "cpu" and value.dtype != torch.bfloat16:
            return value.detach().numpy()
        from batchnorm.engines.torch_state import array_of

        return array_of(value)
    return value


def _samples(inputs: Any, who: str) -> int:
    lengths = {len(array) if array.ndim else 0 for array in _leaves(inputs)}
    if len(lengths) != 1:
        shapes = ", ".join(str(array.shape) for array in _leaves(inputs)) or "nothing"
        raise ArgumentError(f"{who}: all inputs must have the same number of samples, batch first; got {shapes}.")
    return lengths.pop()


def _leaves(inputs: Any) -> list[Array]:
    if isinstance(inputs, dict):
        return list(cast("dict[str, Array]", inputs).values())
    return cast("list[Array]", inputs) if isinstance(inputs, list) else [inputs]


def _map(inputs: Any, change: Callable[[Array], Array]) -> Any:
    if isinstance(inputs, dict):
        return {key: change(array) for key, array in cast("dict[str, Array]", inputs).items()}
    return [change(array) for array in cast("list[Array]", inputs)] if isinstance(inputs, list) else change(inputs)
