"""The data a model is run on, in batches: arrays are cut, iterables give their own, labels lie beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import ArgumentError

from .inputs import as_array
from .labels import labels_beside, labels_given

__all__ = ["Batch", "Batches", "cut", "input_of", "is_whole", "leaves", "mapped", "samples_of"]

Array = NDArray[Any]
NonFinite = Literal["refuse", "skip", "keep"]
MOST_NAMED = 5


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One batch.

    Attributes
    ----------
    inputs : array, or dict or list of arrays
        What the model is fed.
    labels : array or None
        One a sample, where there are some.
    start, samples : int
        The number of its first sample in the data, counted from 0, and how many it holds.
    padding : array or None
        ``mask`` (bool) or ``lengths`` (int) that lay beside the inputs, once they are taken out of them.
    """

    inputs: Any
    labels: Array | None
    start: int
    samples: int
    padding: Array | None = None


class Batches:
    """Data as batches, each checked as it comes; memory does not grow with the data.

    Parameters
    ----------
    data : array, dict of arrays, iterable of batches, or function that returns one
        A batch is an array, a dict of named inputs, or a tuple of one of them, or of a list of them, and the labels.
    size : int
        Samples of a batch that is cut from arrays; batches keep their own size.
    labels : array, optional
        One a sample, where data are arrays.
    nonfinite : {"refuse", "skip", "keep"}
        What becomes of samples with a NaN or an infinity in them.
    pairs : bool
        A last batch of one sample, which has no variance, joins the one before.
    who : str
        Beginning of the messages.
    hint : str
        What to say where there is no sample; empty if that is no error.

    Attributes
    ----------
    skipped : int
        Samples that the last run left out.
    is_once : bool
        The data can be gone through once.

    Raises
    ------
    ArgumentError
        No data, and not numbers; another number of labels than samples; a sample that is not finite, which is named.
    """

    def __init__(
        self,
        data: Any,
        size: int,
        labels: Any = None,
        *,
        who: str,
        nonfinite: NonFinite = "refuse",
        pairs: bool = False,
        hint: str = "Give at least one batch.",
    ) -> None:
        self._who = who
        self._nonfinite = nonfinite
        self._hint = hint
        self.skipped = 0
        self.batches: int | None = None
        self.samples: int | None = None
        self.is_once = False
        self._open = self._whole(data, size, labels, pairs) if is_whole(data) else self._iterated(data, labels)

    def __iter__(self) -> Iterator[Batch]:
        start = skipped = kept = 0
        for inputs, labels in self._open():
            batch = Batch(inputs, labels, start, _counted(inputs, self._who))
            finite = batch if self._nonfinite == "keep" else self._finite(batch)
            skipped += batch.samples - finite.samples
            start, kept = start + batch.samples, kept + finite.samples
            self.skipped = skipped
            if finite.samples:
                yield finite
        if not start and self._hint:
            raise ArgumentError(f"{self._who}: data holds no sample. {self._hint}")
        if start and not kept:
            raise ArgumentError(f"{self._who}: no sample of the data is finite.")

    def _whole(
        self, data: Any, size: int, labels: Any, pairs: bool
    ) -> Callable[[], Iterator[tuple[Any, Array | None]]]:
        inputs = input_of(data, self._who)
        samples = _counted(inputs, self._who)
        given = None if labels is None else labels_given(labels, samples, self._who)
        places = [(start, min(start + size, samples)) for start in range(0, samples, size)]
        if pairs and len(places) > 1 and places[-1][1] - places[-1][0] == 1:
            places[-2:] = [(places[-2][0], places[-1][1])]
        self.batches = None if self._nonfinite == "skip" else len(places)
        self.samples = samples
        return lambda: ((cut(inputs, *place), None if given is None else given[slice(*place)]) for place in places)

    def _iterated(self, data: Any, labels: Any) -> Callable[[], Iterator[tuple[Any, Array | None]]]:
        if labels is not None:
            raise ArgumentError(
                f"{self._who}: labels go with arrays; an iterable of batches brings its own, as tuples (x, labels)."
            )
        source: Any = data
        if isinstance(data, (str, bytes)) or not (hasattr(source, "__iter__") or callable(source)):
            is_dataset = hasattr(source, "__len__") and not isinstance(data, (str, bytes))
            single = ", which gives samples one by one; put a data loader around it" if is_dataset else ""
            raise ArgumentError(
                f"{self._who}: data must be an array, a dict of arrays or an iterable of batches; got a "
                f"{type(source).__name__}{single}."
            )
        opened: Callable[[], Any] = source if not hasattr(source, "__iter__") else lambda: source
        self.is_once = isinstance(source, Iterator)
        return lambda: (_batch(each, self._who) for each in opened())

    def _finite(self, batch: Batch) -> Batch:
        good = np.ones(batch.samples, bool)
        for array in leaves(batch.inputs):
            if array.dtype.kind in "fV":  # V: bfloat16
                finite = np.isfinite(array.astype(np.float32) if array.dtype.kind == "V" else array)
                good &= finite.reshape(batch.samples, -1).all(axis=1)
        if good.all():
            return batch
        if self._nonfinite == "refuse":
            raise ArgumentError(_not_finite(np.flatnonzero(~good), batch, self._who))
        labels = None if batch.labels is None else batch.labels[good]
        kept = mapped(batch.inputs, lambda array: array[good])
        return replace(batch, inputs=kept, labels=labels, samples=int(good.sum()))


def is_whole(data: Any) -> bool:
    """Whether the data is an array or a dict of arrays, which have no batch size of their own."""
    return isinstance(data, dict) or hasattr(data, "__array__")


def input_of(value: Any, who: str) -> Any:
    """What a model is fed, as arrays: one, or a dict or list of them.

    Raises
    ------
    ArgumentError
        Something in it is no real number.
    """
    if isinstance(value, dict):
        return {str(key): as_array(item, who) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (tuple, list)) and any(hasattr(each, "__array__") for each in cast("list[Any]", value)):
        return [as_array(item, who) for item in cast("list[Any]", value)]
    return as_array(value, who)


def samples_of(inputs: Any) -> int:
    """The length of the first axis of a model's input: an array, or the first of a dict or list of them."""
    if isinstance(inputs, (list, tuple)) and not any(hasattr(each, "__array__") for each in cast("Any", inputs)):
        return len(cast("Any", inputs))
    shape = np.shape(next(iter(leaves(inputs)), ()))
    return shape[0] if shape else 0


def leaves(inputs: Any) -> list[Array]:
    """Every array of a model's input."""
    if isinstance(inputs, dict):
        return list(cast("dict[str, Array]", inputs).values())
    return list(cast("list[Array]", inputs)) if isinstance(inputs, (list, tuple)) else [inputs]


def cut(inputs: Any, start: int, end: int) -> Any:
    """Some samples of a model's input, as a copy: what lies in a memory-mapped file is read once."""
    return mapped(inputs, lambda array: np.array(array[start:end]))


def mapped(inputs: Any, change: Callable[[Array], Array]) -> Any:
    """A model's input with each of its arrays changed."""
    if isinstance(inputs, dict):
        return {key: change(array) for key, array in cast("dict[str, Array]", inputs).items()}
    return [change(array) for array in cast("list[Array]", inputs)] if isinstance(inputs, list) else change(inputs)


def _batch(batch: Any, who: str) -> tuple[Any, Array | None]:
    """The input and the labels of what an iterable gives."""
    if not isinstance(batch, (tuple, list)):
        return input_of(batch, who), None
    parts = cast("list[Any]", batch)
    if parts and all(isinstance(each, (int, float)) for each in parts):  # numbers, and not an input with its labels
        return input_of(parts, who), None
    if not parts:
        raise ArgumentError(f"{who}: data holds a batch without an input.")
    inputs = input_of(parts[0], who)
    return inputs, labels_beside(parts[1], samples_of(inputs)) if len(parts) > 1 else None


def _counted(inputs: Any, who: str) -> int:
    lengths = {len(array) if array.ndim else 0 for array in leaves(inputs)}
    if len(lengths) != 1:
        arrays = leaves(inputs)
        names = list(cast("dict[str, Array]", inputs)) if isinstance(inputs, dict) else [""] * len(arrays)
        shapes = ", ".join(f"{name} {array.shape}".strip() for name, array in zip(names, arrays, strict=True))
        raise ArgumentError(
            f"{who}: all inputs must have the same number of samples, batch first; got {shapes or 'nothing'}."
        )
    return lengths.pop()


def _not_finite(bad: NDArray[np.intp], batch: Batch, who: str) -> str:
    named = ", ".join(str(batch.start + int(number)) for number in bad[:MOST_NAMED])
    more = f" and {len(bad) - MOST_NAMED} more of its batch" if len(bad) > MOST_NAMED else ""
    return (
        f"{who}: data holds a NaN or an infinity in sample{'s' if len(bad) > 1 else ''} {named}{more}, counted from 0, "
        "which would spoil every statistic. Mend the data, or leave such samples out with --skip-nonfinite "
        "(skip_nonfinite=True)."
    )
