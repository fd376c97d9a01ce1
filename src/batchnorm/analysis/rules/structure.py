"""Rules about what stands around a layer in the graph: BN203 and BN301 to BN307."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.numbers import brief, count
from batchnorm.core.graph import Graph, Kind, Operation
from batchnorm.core.record import LayerRecord

from . import channels as of
from .effect import FEWEST, SHOWS, SIGNIFICANT, debiased
from .finding import Hit, Subject
from .measured import Measured

__all__ = [
    "axis_mismatch",
    "dropout_before",
    "foldable",
    "normalised_twice",
    "runtime_fault",
    "shared_layer",
    "unused_layer",
    "useless_bias",
]

KEEPS_AXES: tuple[Kind, ...] = ("activation", "dropout", "stochastic_depth", "pad", "elementwise_linear", "identity")
KEEPS_LINEAR: tuple[Kind, ...] = ("elementwise_linear", "identity")
PASSES_DROPOUT: tuple[Kind, ...] = (
    "conv", "conv_transpose", "dense", "activation", "pool", "pad", "reshape", "elementwise_linear", "identity",
)  # fmt: skip
WEIGHTED: tuple[Kind, ...] = ("conv", "conv_transpose", "dense")
VARIANCE_SHIFT = 1.2
"""Of the stored variance to that of the data: the output is off by 10 %, more than a sound layer ever was."""
OLD_OPSET = 14


def axis_mismatch(subject: Subject) -> Iterable[Hit]:
    """The layer's axis contradicts the channel axis of the convolution before it, or else after it."""
    graph = _graph(subject)
    for record, call in _calls(subject):
        near = _convolution_before(graph, call) or _convolution_after(graph, call)
        if near is None:
            continue
        rank = int(near.settings["rank"]) + 2
        wanted = int(near.settings["channel_axis"]) % rank
        axes = record.axis if isinstance(record.axis, tuple) else (record.axis,)
        if all(-rank <= axis < rank for axis in axes) and wanted not in {axis % rank for axis in axes}:
            yield _mismatch(record, near, wanted)


def _mismatch(record: LayerRecord, near: Operation, wanted: int) -> Hit:
    layout = "channels-first" if wanted == 1 else "channels-last"
    right = 1 if wanted == 1 else -1
    return Hit(
        level="error",
        layer=record.name,
        message=(
            f"it normalises axis {record.axis}, and {near.name} beside it is {layout}: what it takes for "
            f"{count(record.channels, 'channel')} are rows or columns, and the channels (axis {right}) "
            "share statistics."
        ),
        short=f"axis {record.axis} beside a {layout} convolution",
        remedy=f"Build the layer with axis={right} and train again; its statistics and gamma are of the wrong axis.",
        evidence={"axis": record.axis, "convolution": near.name, "channel_axis": near.settings["channel_axis"]},
    )


def _convolution_before(graph: Graph, call: Operation) -> Operation | None:
    found = _producer(graph, call)
    while found is not None and found.kind in KEEPS_AXES:
        found = _producer(graph, found)
    return found if found is not None and _told(found) else None


def _convolution_after(graph: Graph, call: Operation) -> Operation | None:
    found = _only_consumer(graph, call)
    while found is not None and found.kind in KEEPS_AXES:
        found = _only_consumer(graph, found)
    return found if found is not None and _told(found) else None


def _told(operation: Operation) -> bool:
    known = operation.settings.get("rank") in (1, 2, 3) and operation.settings.get("channel_axis") in (1, -1)
    return operation.kind in ("conv", "conv_transpose") and known


def useless_bias(subject: Subject) -> Iterable[Hit]:
    """The convolution or dense layer just before has a bias, which the normalisation cancels."""
    graph = _graph(subject)
    for record, call in _calls(subject):
        before = _producer(graph, call)
        if before is None or not _feeds_only(graph, before) or "bias" not in before.weights:
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
    graph = _graph(subject)
    for record, call in _calls(subject):
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
    found = _producer(graph, call)
    while found is not None and found.kind in PASSES_DROPOUT and len(found.inputs) == 1:
        found = _producer(graph, found)
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


def shared_layer(subject: Subject) -> Iterable[Hit]:
    """One layer normalises several inputs into one set of statistics."""
    graph = _graph(subject)
    for record in subject.records:
        calls = list(graph.calls(record.name))
        if len(calls) < 2 or len({call.inputs for call in calls}) < 2:
            continue
        seen = None if subject.data is None else subject.data.layers.get(record.name)
        apart = None if seen is None else _calls_apart(record, seen)
        shown = "" if apart is None else f"; on this data they are {brief(apart, 3)} standard deviations apart"
        yield Hit(
            level="note" if apart is None else "warning",
            layer=record.name,
            message=(
                f"{len(calls)} inputs share its one set of statistics, a mixture of all{shown}. In training each call "
                "normalises by its own."
            ),
            short=f"{len(calls)} inputs share its statistics",
            remedy="Build a layer for each input (the weights before it can stay shared).",
            evidence={"calls": len(calls), "apart": apart},
        )


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


def normalised_twice(subject: Subject) -> Iterable[Hit]:
    """Its input is the output of a batch normalization through linear steps only."""
    graph = _graph(subject)
    for record, call in _calls(subject):
        found = _producer(graph, call)
        while found is not None and found.kind in KEEPS_LINEAR:
            found = _producer(graph, found)
        if found is not None and found.kind == "batch_norm" and found.name != record.name:
            yield Hit(
                level="note",
                layer=record.name,
                message=f"its input is the output of {found.name}, with nothing between that is not undone here.",
                short=f"normalises the output of {found.name}",
                remedy=f"Leave {found.name} out where nothing else uses it; in inference the two are one.",
                evidence={"first": found.name},
            )


def unused_layer(subject: Subject) -> Iterable[Hit]:
    """Its output reaches no output of the model."""
    graph = _graph(subject)
    alive, some_called = _alive(graph), next(_calls(subject), None) is not None
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


def foldable(subject: Subject) -> Iterable[Hit]:
    """A graph made for inference still carries a layer that could be part of the one before it."""
    if not subject.deployed:
        return
    graph = _graph(subject)
    for record, call in _calls(subject):
        before = _producer(graph, call)
        usable = before is not None and _feeds_only(graph, before) and "kernel" in before.weights
        if before is None or not usable or before.shared or record.mode != "inference" or record.epsilon is None:
            continue
        if len(list(graph.calls(record.name))) == 1 and of.held(record):
            yield Hit(
                level="note",
                layer=record.name,
                message=f"it could be part of {before.name} before it, with the same output to rounding.",
                short=f"could be part of {before.name}",
                remedy="batchnorm fold MODEL -o OUT, which proves it on data before it writes.",
                evidence={"into": before.name},
            )


def runtime_fault(subject: Subject) -> Iterable[Hit]:
    """The graph meets a known fault of a deployment runtime."""
    if not subject.deployed:
        return
    for record, call in _calls(subject):
        opset = call.settings.get("opset")
        if not isinstance(opset, int):
            continue  # not of the operator set that these runtimes run
        if record.mode == "training" and _equal_constants(record):
            yield Hit(
                level="warning",
                layer=record.name,
                message=(
                    "onnxruntime 1.32 gives wrong outputs (8.2 was measured) for training mode with constants that are "
                    f"equal ({' and '.join(_equal_constants(record))}): it takes one for the other."
                ),
                short="onnxruntime computes it wrongly",
                remedy="Export in inference mode; or run with graph optimisations off (ORT_DISABLE_ALL).",
                evidence={"opset": opset, "equal": list(_equal_constants(record))},
            )
        elif record.mode == "inference" and opset < OLD_OPSET:
            yield Hit(
                level="note",
                layer=record.name,
                message=(
                    f"onnx's ReferenceEvaluator computes this layer wrongly under opset {OLD_OPSET} (the file has "
                    f"{opset}): by 0.77 to 1.43 in opset 9 to 13, not at all in 7 and 8. onnxruntime is right."
                ),
                short=f"onnx's reference evaluator is wrong at opset {opset}",
                remedy="Do not take ReferenceEvaluator for the truth here; batchnorm verify has its own.",
                evidence={"opset": opset},
            )


def _equal_constants(record: LayerRecord) -> tuple[str, ...]:
    for pair in (("gamma", "moving_variance"), ("beta", "moving_mean")):
        first, second = (getattr(record, role) for role in pair)
        if first is not None and second is not None and np.array_equal(first, second):
            return pair
    return ()


def _graph(subject: Subject) -> Graph:
    assert subject.graph is not None
    return subject.graph


def _calls(subject: Subject) -> Iterator[tuple[LayerRecord, Operation]]:
    """Each layer with its first call."""
    for record in subject.records:
        call = next(_graph(subject).calls(record.name), None)
        if call is not None:
            yield record, call


def _producer(graph: Graph, operation: Operation) -> Operation | None:
    return graph.producer(operation.inputs[0]) if len(operation.inputs) == 1 else None


def _only_consumer(graph: Graph, operation: Operation) -> Operation | None:
    uses = [use for value in operation.outputs for use in graph.consumers(value)]
    return uses[0] if len(uses) == 1 else None


def _feeds_only(graph: Graph, before: Operation) -> bool:
    """Whether a weighted operation without an activation feeds one operation, and is no output of the model."""
    if before.kind not in WEIGHTED or "activation" in before.settings or len(before.outputs) != 1:
        return False
    value = before.outputs[0]
    return len(graph.consumers(value)) == 1 and value not in graph.outputs
