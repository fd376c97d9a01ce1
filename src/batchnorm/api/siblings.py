"""Two models on the same input, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.agreement import Tolerance
from batchnorm.analysis.constants import Constants
from batchnorm.analysis.diff import compare
from batchnorm.analysis.divergence import (
    Divergence,
    Outputs,
    PairErrors,
    Side,
    compare_outputs,
    first_divergence,
)
from batchnorm.core.protocols import Capture, Model
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError

from .comparing import kindred
from .feeding import Fed, batches, table

__all__ = ["compare_runs"]

Array = NDArray[Any]


def compare_runs(
    a: Model,
    b: Model,
    records: Sequence[LayerRecord],
    tolerance: Tolerance,
    data: Any,
    batch_size: int,
    fed: Callable[[], Iterable[Fed]],
) -> tuple[Divergence, tuple[str, ...]]:
    """Compare the layers ``records`` of ``a`` with their like in ``b``.

    With ``data`` both models run on it; without, each pair of layers computes what ``fed`` gives for the first one.

    Returns
    -------
    Divergence
        Pairs in the order of ``a``.
    notes : tuple of str
        What a user should know of how it was done.
    """
    found = compare(a.layers, b.layers, kindred=kindred(a, b))
    partners = {pair.a: pair for pair in found.pairs}
    theirs = {record.name: record for record in b.layers}
    pairs = Pairs(
        [(record, _known(theirs[partners[record.name].b], record)) for record in records if record.name in partners],
        [PairErrors(r.name, partners[r.name].b, partners[r.name].differences, tolerance)
         for r in records if r.name in partners],
    )  # fmt: skip
    outputs, notes = None, pairs.notes()
    if data is None:
        pairs.fed(fed())
    else:
        runs = Runs(a, b, data, batch_size)
        outputs = pairs.run(runs, tolerance)
        notes += runs.notes
    results = tuple(errors.result() for errors in pairs.errors if errors.count or errors.mismatch)
    only_a = tuple(record.name for record in records if record.name not in partners)
    return Divergence(results, first_divergence(results), outputs, only_a, found.only_b), notes


def _known(record: LayerRecord, sibling: LayerRecord) -> LayerRecord:
    return record.with_epsilon(sibling.epsilon, "sibling")


class Pairs:
    """The layers that are compared, and what was seen of each pair."""

    def __init__(self, records: list[tuple[LayerRecord, LayerRecord]], errors: list[PairErrors]) -> None:
        self.records, self.errors = records, errors

    def notes(self) -> tuple[str, ...]:
        """Whose epsilon was taken from whom."""
        taken = [theirs.name for _, theirs in self.records if theirs.epsilon_source == "sibling"]
        if not taken:
            return ()
        return (f"The second model holds no epsilon; that of the first was taken for {', '.join(taken[:5])}.",)

    def fed(self, source: Iterable[Fed]) -> None:
        """Each pair on the input of its first layer, by the formula, in float32 (float64 for a float64 layer)."""
        places = {ours.name: place for place, (ours, _) in enumerate(self.records)}
        for one in source:
            place = places.get(one.record.name)
            if place is not None:
                x = np.moveaxis(one.x, one.axis, -1)
                self.errors[place].add(*(_computed(record, x) for record in self.records[place]))

    def run(self, runs: Runs, tolerance: Tolerance) -> Outputs | None:
        """Each pair on what reaches it in its own model; the outputs of both models."""
        capture = [[pair[side].name for pair in self.records] for side in (0, 1)]
        outputs: Outputs | None = None
        for (out_a, calls_a), (out_b, calls_b) in runs.over(capture[0], capture[1]):
            for pair, errors in zip(self.records, self.errors, strict=True):
                calls = (calls_a.get(pair[0].name, []), calls_b.get(pair[1].name, []))
                if len(calls[0]) != len(calls[1]):
                    errors.mismatch = f"the models call the layer {len(calls[0])} and {len(calls[1])} times"
                for ours, others in zip(*calls, strict=False):
                    errors.add(_side(pair[0], *ours), _side(pair[1], *others))
            outputs = _joined(outputs, compare_outputs(_leaves(out_a), _leaves(out_b), tolerance))
        return outputs


class Runs:
    """Both models over the data; where the second wants its channels elsewhere, they are moved."""

    def __init__(self, a: Model, b: Model, data: Any, batch_size: int) -> None:
        self.a, self.b, self.data, self.batch_size = a, b, data, batch_size
        self.notes: tuple[str, ...] = ()
        self._move: tuple[int, int] | None = None

    def over(self, names_a: list[str], names_b: list[str]) -> Iterator[tuple[tuple[Any, Capture], tuple[Any, Capture]]]:
        """Outputs and captured calls of each, batch by batch."""
        for number, batch in enumerate(batches(self.data, self.batch_size)):
            ours = self.a.run(batch, capture=names_a)
            yield ours, self._second(batch, names_b, first=number == 0)

    def _second(self, batch: Any, names: list[str], *, first: bool) -> tuple[Any, Capture]:
        if not first or isinstance(batch, dict) or np.ndim(batch) < 3:
            return self.b.run(self._moved(batch), capture=names)
        try:
            return self.b.run(batch, capture=names)
        except ArgumentError as refusal:
            for move in ((-1, 1), (1, -1)):
                try:
                    found = self.b.run(np.moveaxis(batch, *move), capture=names)
                except ArgumentError:
                    continue
                self._move = move
                where = "first" if move == (-1, 1) else "last"
                self.notes = (f"The second model wants its channels {where}; its input was transposed.",)
                return found
            raise refusal

    def _moved(self, batch: Any) -> Any:
        return batch if self._move is None else np.moveaxis(batch, *self._move)


def _computed(record: LayerRecord, x: Array) -> Side:
    assert record.epsilon is not None
    constants = Constants.of(record, record.epsilon)
    dtype = np.float64 if record.dtype == "float64" else np.float32
    with np.errstate(over="ignore"):
        return Side(x, constants.output(x.astype(np.float64)).astype(dtype), constants)


def _side(record: LayerRecord, x: Array, y: Array) -> Side:
    assert record.epsilon is not None
    fed = table(record, x, y)
    assert fed.y is not None
    x, y = (np.moveaxis(one, fed.axis, -1) for one in (fed.x, fed.y))
    return Side(x, y, Constants.of(record, record.epsilon))


def _leaves(outputs: Any) -> list[Array]:
    if isinstance(outputs, dict):
        values: list[Any] = list(cast("dict[Any, Any]", outputs).values())
        return [leaf for value in values for leaf in _leaves(value)]
    if isinstance(outputs, (list, tuple)):
        return [leaf for value in cast("list[Any]", outputs) for leaf in _leaves(value)]
    return [np.asarray(outputs)]


def _joined(before: Outputs | None, now: Outputs | None) -> Outputs | None:
    if before is None or now is None:
        return now
    return Outputs(max(before.max_abs, now.max_abs), max(before.max_rel, now.max_rel), before.agrees and now.agrees)
