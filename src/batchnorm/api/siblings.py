"""Two models on the same input, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.agreement import Tolerance
from batchnorm.analysis.constants import Constants
from batchnorm.analysis.diff import compare
from batchnorm.analysis.difference import LayerPair
from batchnorm.analysis.divergence import (
    Divergence,
    Outputs,
    PairErrors,
    Side,
    compare_outputs,
    first_divergence,
)
from batchnorm.analysis.folded import effective, is_folded, is_merged
from batchnorm.core.protocols import Capture, Model
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, Refused

from .comparing import kindred
from .feeding import Fed, batches, table
from .loading import chosen, some

__all__ = ["Sibling", "can_run", "pair_up"]

Array = NDArray[Any]
FORMULA_NOTE = "One of the models does not show {} while it runs: computed by the formula on what reaches the other."
ROUNDING_NOTE = (
    "The first model computes in {}, the second in {}: where they agree, they do so to the rounding of the coarser."
)
UNSEEN_NOTE = "Not compared by itself, as neither model shows it while it runs: {}."


@dataclass(frozen=True, slots=True, eq=False)
class Sibling:
    """Two models whose layers are paired, each layer with constants that determine its output.

    Attributes
    ----------
    pairs : tuple
        A layer of ``a``, its like in ``b``, and what `diff` says of the two.
    only_a, only_b : tuple of str
        Layers without their like, and those that are part of other weights in one of the models.
    notes : tuple of str
        What a user should know of how it was done.
    """

    a: Model
    b: Model
    pairs: tuple[tuple[LayerRecord, LayerRecord, LayerPair], ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]

    def compared(
        self, tolerance: Tolerance, data: Any, batch_size: int, fed: Callable[[], Iterable[Fed]]
    ) -> tuple[Divergence, tuple[str, ...]]:
        """Each layer of the first model beside its like in the second.

        With ``data`` both models run on it; a model that is weights alone computes what reaches the layers of the
        other. Without, each pair of layers computes what ``fed`` gives for the first one.
        """
        pairs = Pairs(
            [(a, b) for a, b, _ in self.pairs],
            [PairErrors(a.name, b.name, pair.differences, tolerance) for a, b, pair in self.pairs],
        )
        outputs, notes = None, self.notes
        if data is None:
            pairs.fed(fed())
        else:
            runs = Runs(self.a, self.b, data, batch_size)
            outputs = pairs.run(runs, tolerance)
            notes += (*runs.notes, *pairs.remarks(weights=runs.weights_alone))
        results = tuple(errors.result() for errors in pairs.errors if errors.count or errors.mismatch)
        return Divergence(results, first_divergence(results), outputs, self.only_a, self.only_b), notes


def pair_up(a: Model, b: Model, layer: str | None) -> Sibling:
    """Pair the layers of two models; where one holds no epsilon, that of the other is taken, and a note says so."""
    found = compare(a.layers, b.layers, kindred=kindred(a, b))
    records = a.layers if layer is None else (chosen(a.layers, layer, "verify"),)
    wanted = {record.name for record in records}
    ours, theirs = ({record.name: record for record in model.layers} for model in (a, b))
    pairs: list[tuple[LayerRecord, LayerRecord, LayerPair]] = []
    notes: list[str] = []
    merged: list[str] = []
    taken: dict[str, list[str]] = {"first": [], "second": []}
    for pair in found.pairs:
        if pair.a not in wanted:
            continue
        first, second = effective(ours[pair.a]), effective(theirs[pair.b])
        if is_merged(first) or is_merged(second):
            merged.append(pair.a)
            continue
        if first.epsilon is None and second.epsilon is not None:
            taken["first"].append(first.name)
        if second.epsilon is None and first.epsilon is not None:
            taken["second"].append(second.name)
        pairs.append((_known(first, second), _known(second, first), pair))
    for which, other in (("first", "second"), ("second", "first")):
        if taken[which]:
            notes.append(f"The {which} model holds no epsilon; that of the {other} was taken for {some(taken[which])}.")
    if merged:
        notes.append(f"Not compared by itself, as it is part of other weights in one of the models: {some(merged)}.")
    only_a = tuple(name for name in found.only_a if name in wanted)
    return Sibling(a, b, tuple(pairs), only_a, found.only_b, tuple(notes))


def _known(record: LayerRecord, sibling: LayerRecord) -> LayerRecord:
    # A layer that was folded has epsilon 0 here, which is nothing to go by.
    return record if is_folded(sibling) else record.with_epsilon(sibling.epsilon, "sibling")


class Pairs:
    """The layers that are compared, and what was seen of each pair."""

    def __init__(self, records: list[tuple[LayerRecord, LayerRecord]], errors: list[PairErrors]) -> None:
        self.records, self.errors = records, errors

    def remarks(self, *, weights: bool) -> tuple[str, ...]:
        """Pairs that one of the models rounds more coarsely, or does not show while it runs."""
        formula = [errors.a for errors in self.errors if errors.by_formula and errors.count and not weights]
        never = [errors.a for errors in self.errors if not errors.count and not errors.mismatch]
        types = dict.fromkeys(errors.types for errors in self.errors if len(set(errors.types)) > 1)
        return (
            *(ROUNDING_NOTE.format(*pair) for pair in types),
            *([FORMULA_NOTE.format(some(formula))] if formula else []),
            *([UNSEEN_NOTE.format(some(never))] if never else []),
        )

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
        for first, second in runs.over(capture[0], capture[1]):
            for pair, errors in zip(self.records, self.errors, strict=True):
                _compare_calls(pair, errors, first, second)
            if first is not None and second is not None:
                outputs = _joined(outputs, compare_outputs(_leaves(first[0]), _leaves(second[0]), tolerance))
        return outputs


Ran = tuple[Any, Capture] | None
"""Outputs and captured calls; None for a model that is weights alone."""


def _compare_calls(pair: tuple[LayerRecord, LayerRecord], errors: PairErrors, first: Ran, second: Ran) -> None:
    """One pair in both models; the side that does not show its layer, by the formula on what reaches the other."""
    ours, others = (
        [_side(record, *call) for call in (ran[1].get(record.name, []) if ran is not None else [])]
        for record, ran in zip(pair, (first, second), strict=True)
    )
    if ours and others and len(ours) != len(others):
        errors.mismatch = f"the models call the layer {len(ours)} and {len(others)} times"
    errors.by_formula = errors.by_formula or bool(ours) != bool(others)
    ours, others = (ours or [_computed(pair[0], side.x) for side in others],
                    others or [_computed(pair[1], side.x) for side in ours])  # fmt: skip
    for mine, theirs in zip(ours, others, strict=False):
        errors.types = (mine.y.dtype.name, theirs.y.dtype.name)
        errors.add(mine, theirs)


class Runs:
    """Both models over the data; where the second wants its channels elsewhere, they are moved."""

    def __init__(self, a: Model, b: Model, data: Any, batch_size: int) -> None:
        self.a, self.b, self.data, self.batch_size = a, b, data, batch_size
        self.notes: tuple[str, ...] = ()
        self._move: tuple[int, int] | None = None
        self._weights = [not can_run(model) for model in (a, b)]
        self.weights_alone = any(self._weights)
        if self._weights[0] != self._weights[1]:
            which, other = ("first", "second") if self._weights[0] else ("second", "first")
            self.notes = (
                f"The {which} model is weights alone: its layers were computed on what reaches those of the {other}.",
            )

    def over(self, names_a: list[str], names_b: list[str]) -> Iterator[tuple[Ran, Ran]]:
        """Outputs and captured calls of each, batch by batch."""
        only_b, only_a = self._weights[0] and not self._weights[1], self._weights[1]
        run = (self.b if only_b else self.a).run
        for number, batch in enumerate(batches(self.data, self.batch_size, run)):
            ours = None if only_b else _shown(self.a, batch, names_a)
            yield ours, None if only_a else self._second(batch, names_b, first=number == 0 and not only_b)

    def _second(self, batch: Any, names: list[str], *, first: bool) -> tuple[Any, Capture]:
        if not first or isinstance(batch, dict) or np.ndim(batch) < 3:
            return _shown(self.b, self._moved(batch), names)
        try:
            return _shown(self.b, batch, names)
        except ArgumentError as refusal:
            for move in ((-1, 1), (1, -1)):
                try:
                    found = _shown(self.b, np.moveaxis(batch, *move), names)
                except ArgumentError:
                    continue
                self._move = move
                where = "first" if move == (-1, 1) else "last"
                self.notes += (f"The second model wants its channels {where}; its input was transposed.",)
                return found
            raise refusal

    def _moved(self, batch: Any) -> Any:
        return batch if self._move is None else np.moveaxis(batch, *self._move)


def can_run(model: Model) -> bool:
    """Whether a model has a graph; one of a file of weights alone has none."""
    return getattr(model, "runner", model) is not None


def _shown(model: Model, batch: Any, names: list[str]) -> tuple[Any, Capture]:
    """Outputs, and what an engine shows of the layers: none, where all are inside other operators."""
    try:
        return model.run(batch, capture=names)
    except Refused:
        return model.run(batch)


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
