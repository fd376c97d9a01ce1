"""Rules about what feeds a layer: BN301, BN302 and BN304."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from batchnorm.analysis.numbers import brief, count
from batchnorm.core.graph import Graph, Kind, Operation
from batchnorm.core.record import LayerRecord

from . import channels as of
from .around import feeds_only, first_calls, graph_of, producer
from .effect import FEWEST, debiased
from .finding import Hit, Subject

__all__ = ["dropout_before", "normalised_twice", "useless_bias"]

KEEPS_LINEAR: tuple[Kind, ...] = ("elementwise_linear", "identity", "dropout", "stochastic_depth")
PASSES_DROPOUT: tuple[Kind, ...] = (
    "conv", "conv_transpose", "dense", "activation", "pool", "pad", "reshape", "elementwise_linear", "identity",
)  # fmt: skip
VARIANCE_SHIFT = 1.2
"""Of the stored variance to that of the data: the output is off by 10 %, more than a sound layer ever was."""


def useless_bias(subject: Subject) -> Iterable[Hit]:
    """The convolution or dense layer just before has a bias, which the normalisation cancels."""
    graph = graph_of(subject)
    for record, call in first_calls(subject):
        before = producer(graph, call)
        if before is None or not feeds_only(graph, before) or "bias" not in before.weights:
            continue
        bias = np.asarray(before.weights["bias"]())
        if np.any(bias != 0) and _normalises_channels(record, before):
            yield Hit(
                level="note",
                layer=record.name,
                message=(
                    f"{before.name} just before has a bias ({count(bias.size, 'number')}, up to "
                    f"{brief(float(np.max(np.abs(bias))))}) that the normalisation subtracts again with the mean."
                ),
                short=f"the bias of {before.name} is cancelled",
                remedy="Build the layer before with use_bias=False (Keras, Flax) or bias=False (PyTorch).",
                evidence={"before": before.name, "bias": bias.size},
            )


def _normalises_channels(record: LayerRecord, before: Operation) -> bool:
    rank = int(before.settings.get("rank", 0)) + 2
    axis, wanted = record.axis, before.settings.get("channel_axis", -1)
    return isinstance(axis, int) and -rank <= axis < rank and axis % rank == int(wanted) % rank


def dropout_before(subject: Subject) -> Iterable[Hit]:
    """Element-wise dropout feeds the layer by one path."""
    graph = graph_of(subject)
    for record, call in first_calls(subject):
        dropout = _dropout_before(graph, call)
        if dropout is None:
            continue
        ratio = _variance_ratio(subject, record)
        shifted = ratio is not None and ratio > VARIANCE_SHIFT
        shown = f": the stored variance is {brief(ratio or 0, 3)} times that of the data" if shifted else ""
        yield Hit(
            level="warning" if shifted else "note",
            layer=record.name,
            message=(
                f"{dropout.name} ({dropout.operator}) feeds it: its input varies more in training than in "
                f"inference{shown}."
            ),
            short=f"dropout {dropout.name} before it",
            remedy=(
                "Move the dropout behind the last batch normalization; or batchnorm recalibrate MODEL --data FILE -o "
                "OUT, which measures without it."
            ),
            code="bn.recalibrate(model, loader)",
            evidence={"dropout": dropout.name, "variance_ratio": ratio},
        )


def _dropout_before(graph: Graph, call: Operation) -> Operation | None:
    found = producer(graph, call)
    while found is not None and found.kind in PASSES_DROPOUT and len(found.inputs) == 1:
        found = producer(graph, found)
    return found if found is not None and found.kind == "dropout" else None


def _variance_ratio(subject: Subject, record: LayerRecord) -> float | None:
    """Median over channels of the stored variance to that of the data; None without data that is enough."""
    seen = None if subject.data is None else subject.data.layers.get(record.name)
    if seen is None or not of.held(record) or seen.samples < FEWEST:
        return None
    stored = of.variance(debiased(record))
    usable = (seen.variance > 0) & np.isfinite(stored) & (stored > 0)
    if not usable.any():
        return None
    ratio = float(np.median(stored[usable] / seen.variance[usable]))
    noise = float(np.median(np.sqrt(seen.variance_noise[usable] / seen.samples) / seen.variance[usable]))
    return ratio if abs(ratio - 1) > 3 * noise else None


def normalised_twice(subject: Subject) -> Iterable[Hit]:
    """Its input is the output of a batch normalization through what is linear, element by element, in inference."""
    graph = graph_of(subject)
    for record, call in first_calls(subject):
        found = producer(graph, call)
        while found is not None and found.kind in KEEPS_LINEAR:
            found = producer(graph, found)
        if found is not None and found.kind == "batch_norm" and found.name != record.name:
            yield Hit(
                level="note",
                layer=record.name,
                message=(
                    f"its input is the output of {found.name}, with nothing between in inference that is not undone "
                    "here."
                ),
                short=f"normalises the output of {found.name}",
                remedy=f"Leave {found.name} out where nothing else uses it; in inference the two are one.",
                evidence={"first": found.name},
            )
