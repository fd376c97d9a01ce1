"""A model run on data: what each layer is fed, the accuracy in both modes, and changes of the input that help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.rules import Subject
from batchnorm.analysis.rules.data import gaps
from batchnorm.analysis.rules.effect import SHOWS, debiased, effect
from batchnorm.analysis.rules.inputs import CHANGES, changed
from batchnorm.analysis.rules.measured import Measured, Measurements, Stream
from batchnorm.core.protocols import Model
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, BatchnormError

from .batches import Batch
from .findings import Accuracy

__all__ = ["Run", "run_on"]

TRIED = 256
"""Samples on which changes of the input are tried."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a run over the data showed."""

    measurements: Measurements
    batches: int
    accuracy: Accuracy | None


def run_on(model: Model, batches: Iterable[Batch], batched: bool) -> Run:
    """Run the model on every batch, once.

    Parameters
    ----------
    model : Model
        Run in inference mode, and in training mode too where there are labels and it can be.
    batches : iterable of Batch
        Taken one by one; only the first few are kept.
    batched : bool
        Whether the batches are those of a training.
    """
    records = model.layers
    streams = {record.name: Stream(record, batched) for record in records}
    score, kept, samples, number = _Score(model), _Kept(), 0, 0
    with score:
        for batch in batches:
            outputs, captured = model.run(batch.x, capture=list(streams))
            for name, stream in streams.items():
                stream.add(captured.pop(name, []), batch.samples)
            score.add(batch, outputs)
            kept.add(batch)
            samples, number = samples + batch.samples, number + 1
    found = {name: seen for name, stream in streams.items() if (seen := stream.result()) is not None}
    if not found:
        raise ArgumentError("--data: it reaches no batch normalization of the model.")
    whole = Measurements(samples, found)
    helps = _remedies(model, records, whole, kept.batches)
    return Run(Measurements(samples, found, helps), number, score.result())


class _Kept:
    """The first few samples, as they came."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self._samples = 0

    def add(self, batch: Batch) -> None:
        if self._samples < TRIED:
            self.batches.append(batch)
            self._samples += batch.samples


def _remedies(
    model: Model, records: Sequence[LayerRecord], seen: Measurements, batches: Sequence[Batch]
) -> dict[str, float]:
    """Each change of the input -> the effect it leaves in the first layer; empty where that has no gap."""
    first = next(iter(gaps(Subject(records=tuple(records), data=seen))), None)
    if first is None or first[2].size < SHOWS or not first[2].significant:
        return {}
    record, found = first[0], dict[str, float]()
    without = debiased(record)
    for change in CHANGES:
        measured = _with_change(model, record, batches, change)
        if measured is not None:
            found[change] = effect(without, measured).size
    return found


def _with_change(model: Model, record: LayerRecord, batches: Sequence[Batch], change: str) -> Measured | None:
    whole = _joined(batches)
    x = None if whole is None else changed(whole, change)
    if x is None:
        return None
    stream = Stream(record, batched=False)
    size = batches[0].samples
    try:
        for start in range(0, len(x), size):
            part = x[start : start + size]
            _, captured = model.run(part, capture=[record.name])
            stream.add(captured.get(record.name, []), len(part))
    except BatchnormError:
        return None  # a graph of fixed type or batch size takes no other input
    return stream.result()


def _joined(batches: Sequence[Batch]) -> NDArray[Any] | None:
    arrays: list[Any] = [batch.x for batch in batches]
    if any(isinstance(each, (dict, list)) for each in arrays):
        return None  # which of several inputs is off cannot be told
    same = [each for each in arrays if each.shape[1:] == arrays[0].shape[1:]]
    return np.concatenate(same)


class _Score:
    """Right answers in both modes; nothing is counted without labels."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._stack = contextlib.ExitStack()
        self._bench: Any = None
        self._asked = False
        self._right = [0.0, 0.0]
        self._counted = [0.0, 0.0]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, batch: Batch, outputs: Any) -> None:
        if batch.labels is None:
            return
        self._count(0, outputs, batch.labels)
        bench = self._opened()
        if bench is not None:
            names = [record.name for record in self._model.layers if record.mode != "frozen"]
            with bench.session():
                self._count(1, bench.outputs(batch.x, training=names), batch.labels)

    def _opened(self) -> Any:
        if not self._asked:
            self._asked = True
            make: Any = getattr(self._model, "bench", None)
            self._bench = None if make is None else make()
        return self._bench

    def _count(self, mode: int, outputs: Any, labels: NDArray[Any]) -> None:
        right = _right(outputs, labels)
        if right is not None:
            self._right[mode] += float(right.sum())
            self._counted[mode] += right.size

    def result(self) -> Accuracy | None:
        if not self._counted[0]:
            return None
        shares = [
            right / counted if counted else None for right, counted in zip(self._right, self._counted, strict=True)
        ]
        return Accuracy(cast("float", shares[0]), shares[1])


def _right(outputs: Any, labels: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Whether each answer is right: the largest of the last axis, or the side of a single number."""
    while isinstance(outputs, (list, tuple, dict)) and len(cast("Any", outputs)) == 1:
        outputs = next(iter(cast("Any", outputs).values() if isinstance(outputs, dict) else cast("Any", outputs)))
    if isinstance(outputs, (list, tuple, dict)):
        return None
    scores = np.asarray(outputs).astype(np.float64)
    if scores.ndim > 1 and scores.shape[-1] > 1:
        classes = labels.argmax(axis=-1) if labels.shape == scores.shape else labels.reshape(scores.shape[:-1])
        return scores.argmax(axis=-1) == classes
    threshold = 0.5 if scores.min() >= 0 and scores.max() <= 1 else 0.0
    return (scores.ravel() > threshold) == (labels.ravel() > 0.5)
