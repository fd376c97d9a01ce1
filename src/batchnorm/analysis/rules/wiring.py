"""Rules about how often a layer is called, and whether anything needs it: BN303 and BN305."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.numbers import brief
from batchnorm.core.graph import Graph
from batchnorm.core.record import LayerRecord

from . import channels as of
from .around import first_calls, graph_of
from .effect import FEWEST, SHOWS, SIGNIFICANT
from .finding import Hit, Subject
from .measured import Measured

__all__ = ["shared_layer", "unused_layer"]


def shared_layer(subject: Subject) -> Iterable[Hit]:
    """One layer normalises several inputs into one set of statistics."""
    graph = graph_of(subject)
    for record, names in _layers(subject, graph):
        calls = [call for name in names for call in graph.calls(name)]
        if len(calls) < 2 or len({call.inputs for call in calls}) < 2:
            continue
        seen = None if subject.data is None else subject.data.layers.get(record.name)
        apart = None if seen is None else _calls_apart(record, seen)
        shown = "" if apart is None else f"; on this data they are {brief(apart, 3)} standard deviations apart"
        yield Hit(
            level="note" if apart is None else "warning",
            layer=record.name,
            layers=tuple(names) if len(names) > 1 else (),
            message=(
                f"{len(calls)} inputs share its one set of statistics, a mixture of all{shown}. In training each call "
                "normalises by its own."
            ),
            short=f"{len(calls)} inputs share its statistics",
            remedy="Build a layer for each input (the weights before it can stay shared).",
            evidence={"calls": len(calls), "apart": apart},
        )


def _layers(subject: Subject, graph: Graph) -> Iterator[tuple[LayerRecord, list[str]]]:
    """Each layer, and the names it goes by: an exporter writes each call of one as a layer of the same arrays."""
    named: dict[object, list[str]] = {}
    for record, call in first_calls(subject):
        held = None if record.untouched() else call.settings.get("statistics")
        named.setdefault(record.name if held is None else held, []).append(record.name)
    first = {names[0]: names for names in named.values()}
    return ((record, first[record.name]) for record in subject.records if record.name in first)


def _calls_apart(record: LayerRecord, seen: Measured) -> float | None:
    if len(seen.calls) < 2 or seen.samples < FEWEST:
        return None
    epsilon = record.epsilon or 0.0
    s = np.sqrt(seen.variance + epsilon)
    with np.errstate(all="ignore"):
        all_means = np.stack([call.mean for call in seen.calls])
        all_spreads = np.stack([np.sqrt(call.variance(0) + epsilon) for call in seen.calls])
        means = (all_means.max(axis=0) - all_means.min(axis=0)) / s
        spreads = (all_spreads.max(axis=0) - all_spreads.min(axis=0)) / s
        square: NDArray[np.float64] = means**2 + spreads**2
        noise: NDArray[np.float64] = (seen.mean_noise / s**2 + seen.variance_noise / (4 * s**4)) * 2 / seen.samples
    usable: of.Mask = np.asarray(np.isfinite(square) & np.isfinite(noise), bool)
    if not usable.any():
        return None
    found, chance = float(np.mean(square, where=usable)), float(np.mean(noise, where=usable))
    return float(np.sqrt(found)) if found > SHOWS**2 and found > SIGNIFICANT * chance else None


def unused_layer(subject: Subject) -> Iterable[Hit]:
    """Its output reaches no output of the model."""
    graph = graph_of(subject)
    alive, some_called = _alive(graph), next(first_calls(subject), None) is not None
    for record in subject.records:
        calls = list(graph.calls(record.name))
        if some_called and not any(value in alive for call in calls for value in call.outputs):
            yield Hit(
                level="note",
                layer=record.name,
                message="its output reaches no output of the model." if calls else "the model never calls it.",
                short="its output is not used",
                remedy="Connect it, or leave it out.",
                evidence={"calls": len(calls)},
            )


def _alive(graph: Graph) -> set[str]:
    """Values that an output of the model needs."""
    alive = set(graph.outputs)
    for operation in reversed(graph.operations):
        if alive.intersection(operation.outputs):
            alive.update(operation.inputs)
    return alive
