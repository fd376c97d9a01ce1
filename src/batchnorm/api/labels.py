"""Labels: what lies beside a batch, and which of a model's answers are right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import ArgumentError

from .inputs import as_array

__all__ = ["Answers", "floats", "labels_beside", "labels_given"]

Array = NDArray[Any]
HALF = 0.5
ONE = 1e-3
"""How far the sum of a one-hot or smoothed row may be from 1."""


def labels_given(labels: Any, samples: int, who: str) -> Array:
    """Labels that a caller gives beside arrays.

    Raises
    ------
    ArgumentError
        Not one for each sample, or no numbers.
    """
    array = as_array(labels, who, "labels")
    if not array.ndim or len(array) != samples:
        raise ArgumentError(
            f"{who}: labels must hold one for each of {samples} samples; got shape {array.shape}. Give the labels of "
            "this data, in its order."
        )
    return array


def labels_beside(value: Any, samples: int) -> Array | None:
    """What stands beside the input in a batch, where it can be labels."""
    if value is None or isinstance(value, (dict, str)):
        return None
    try:
        array = as_array(value, "")
    except ArgumentError:
        return None
    return array if array.ndim and len(array) == samples else None


@dataclass(slots=True)
class Answers:
    """The right answers of a model, counted batch by batch.

    A class is the largest of an output's last axis, or of axis 1 of images with their channels first. A single number
    says yes from .5 on, or from 0 where any of them leaves 0 to 1: only all batches together tell which. Labels are
    classes, or one-hot rows.
    """

    who: str
    counted: int = 0
    right: int = 0
    right_from_zero: int = 0
    beyond: int = 0  # batches with a single number outside of 0 to 1

    def add(self, outputs: Any, labels: Array, start: int) -> bool:
        """Count a batch; False where the labels fit no output of the model.

        Parameters
        ----------
        outputs : array, or dict or list of them
            The first that the labels fit is theirs.
        labels : array
            One a sample, or one a position; of the latter those that are no class are left out, as losses do.
        start : int
            The number of the first sample, for the message.

        Raises
        ------
        ArgumentError
            The label of a sample is no class of the model.
        """
        for scores in floats(outputs):
            found = _one_hot(scores, labels)
            found = _classes(scores, labels, start, self.who) if found is None else found
            if found is not None:
                self._count(found, found)
                return True
            if _says_yes(scores, labels):
                answers, wanted = scores.ravel(), labels.ravel() > 0
                self._count((answers > HALF) == wanted, (answers > 0) == wanted)
                self.beyond += bool(answers.min() < 0 or answers.max() > 1)
                return True
        return False

    def _count(self, right: NDArray[np.bool_], from_zero: NDArray[np.bool_]) -> None:
        self.counted += right.size
        self.right += int(right.sum())
        self.right_from_zero += int(from_zero.sum())

    @property
    def sums(self) -> tuple[int, int, int, int]:
        """What adds up over the parts of data that lie on several machines."""
        return self.counted, self.right, self.right_from_zero, self.beyond

    @staticmethod
    def share(sums: Sequence[int]) -> float | None:
        """The share of right answers; None where nothing was counted."""
        counted, right, from_zero, beyond = sums
        return (from_zero if beyond else right) / counted if counted else None


def _one_hot(scores: Array, labels: Array) -> NDArray[np.bool_] | None:
    if labels.shape != scores.shape or scores.ndim < 2 or scores.shape[-1] < 2:
        return None
    if np.any(labels < 0) or np.any(np.abs(labels.sum(axis=-1) - 1) > ONE):
        return None  # numbers to be met, no classes
    return np.equal(scores.argmax(-1), labels.argmax(-1))


def _classes(scores: Array, labels: Array, start: int, who: str) -> NDArray[np.bool_] | None:
    flat = labels.reshape(labels.shape[:-1]) if labels.ndim > 1 and labels.shape[-1] == 1 else labels
    if not np.array_equal(flat, np.rint(flat)):
        return None
    for axis in (-1, 1):
        if scores.ndim < 2 or scores.shape[axis] < 2:
            continue
        best = scores.argmax(axis)
        if best.shape == flat.shape:
            known = (flat >= 0) & (flat < scores.shape[axis])
            if flat.ndim == 1 and not known.all():
                _refuse(flat, known, scores.shape[axis], start, who)
            return np.equal(best, flat)[known]
    return None


def _refuse(labels: Array, known: NDArray[np.bool_], classes: int, start: int, who: str) -> None:
    bad = int(np.flatnonzero(~known)[0])
    raise ArgumentError(
        f"{who}: the label of sample {start + bad}, counted from 0, is {labels[bad]:g}; the model has {classes} "
        f"classes, 0 to {classes - 1}. Give the labels of this model's own classes, counted from 0."
    )


def _says_yes(scores: Array, labels: Array) -> bool:
    """Whether an output is one number a sample, and the labels are no and yes."""
    return scores.size == len(scores) and labels.size == len(labels) and bool(np.isin(labels, (0, 1)).all())


def floats(outputs: Any) -> Iterator[Array]:
    """Every floating-point array of a model's outputs, in float64."""
    if isinstance(outputs, dict):
        outputs = list(cast("dict[Any, Any]", outputs).values())
    if isinstance(outputs, (list, tuple)):
        for each in cast("list[Any]", outputs):
            yield from floats(each)
        return
    array = np.asarray(outputs)
    if array.ndim and (array.dtype.kind == "f" or array.dtype.name == "bfloat16"):
        yield array.astype(np.float64)
