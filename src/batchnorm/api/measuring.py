"""A model run on data: what each layer is fed, the accuracy in both modes, and changes of the input that help."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.rules import Subject
from batchnorm.analysis.rules.data import gaps
from batchnorm.analysis.rules.effect import SHOWS, debiased, effect
from batchnorm.analysis.rules.inputs import CHANGES, changed
from batchnorm.analysis.rules.measured import Measured, Measurements, Stream
from batchnorm.core.graph import Graph
from batchnorm.core.protocols import Model
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, BatchnormError, Refused

from .batches import Batch, Batches
from .findings import Accuracy
from .labels import Answers, floats
from .padding import Apart, told

__all__ = ["Run", "ordered", "run_on"]

TRIED = 256
"""Samples on which changes of the input are tried."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a run over the data showed."""

    measurements: Measurements
    batches: int
    accuracy: Accuracy | None
    skipped: int = 0


def run_on(model: Model, batches: Batches, batched: bool, *, labelled: bool = False) -> Run:
    """Run the model on every batch, once.

    Parameters
    ----------
    model : Model
        Run in inference mode, and in training mode too where there are labels and it can be.
    batches : Batches
        Taken one by one; only the first few are kept.
    batched : bool
        Whether the batches are those of a training.
    labelled : bool
        Whether labels were given by themselves, and have to fit.
    """
    records = ordered(model)
    streams = {record.name: Stream(record, batched) for record in records}
    score, kept, samples, number = _Score(model), _Kept(), 0, 0
    called: dict[str, None] = {}
    with score:
        for batch in map(Apart(model.run, "check"), batches):
            outputs, captured = model.run(batch.inputs, capture=list(streams))
            padding, masks = told(batch, captured), getattr(captured, "masks", {})
            called: dict[str, None] = called or getattr(captured, "order", {})
            for name, stream in streams.items():
                stream.add(captured.pop(name, []), batch.samples, masks.get(name, ()), padding)
            score.add(batch, outputs)
            kept.add(batch)
            samples, number = samples + batch.samples, number + 1
    records = tuple(sorted(records, key=lambda each: [*called, each.name].index(each.name)))
    found = {each.name: seen for each in records if (seen := streams[each.name].result()) is not None}
    if not found:
        raise ArgumentError(
            "check: data reaches no batch normalization of the model; give the input of the whole model."
        )
    whole = Measurements(samples, found)
    helps = _remedies(model, records, whole, kept.batches)
    return Run(Measurements(samples, found, helps), number, score.result(labelled), batches.skipped)


def ordered(model: Model) -> tuple[LayerRecord, ...]:
    """The layers in the order of the data's way, where the graph tells it."""
    graph: Graph | None = getattr(model, "graph", None)
    if graph is None:
        return model.layers
    order: dict[str, int] = {}
    for place, operation in enumerate(graph.operations):
        if operation.kind == "batch_norm":
            order.setdefault(operation.name, place)
    return tuple(sorted(model.layers, key=lambda record: order.get(record.name, len(graph.operations))))


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
    arrays: list[Any] = [batch.inputs for batch in batches]
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
        self._answers = (Answers("check"), Answers("check"))
        self._unfit: tuple[tuple[int, ...], list[tuple[int, ...]]] | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, batch: Batch, outputs: Any) -> None:
        if batch.labels is None:
            return
        self._count(0, outputs, batch)
        bench = self._opened()
        if bench is not None:
            names = [record.name for record in self._model.layers if record.mode != "frozen"]
            with bench.session():
                self._count(1, bench.outputs(batch.inputs, training=names), batch)

    def _opened(self) -> Any:
        if not self._asked:
            self._asked = True
            make: Any = getattr(self._model, "bench", None)
            with contextlib.suppress(Refused):  # operators of a version in which training cannot be written
                self._bench = None if make is None else make()
        return self._bench

    def _count(self, mode: int, outputs: Any, batch: Batch) -> None:
        assert batch.labels is not None
        if not self._answers[mode].add(outputs, batch.labels, batch.start):
            self._unfit = self._unfit or (batch.labels.shape, [each.shape for each in floats(outputs)])

    def result(self, asked: bool) -> Accuracy | None:
        inference, training = (Answers.share(each.sums) for each in self._answers)
        if inference is None:
            if asked and self._unfit is not None:
                given, outputs = self._unfit
                shapes = " or ".join(map(str, outputs)) or "no number"
                raise ArgumentError(
                    f"check: labels of shape {given} fit no output of the model, which gives {shapes} for them. Give "
                    "one class a sample, counted from 0, or one-hot rows."
                )
            return None
        return Accuracy(inference, training)
