"""Rules about graphs that were made for inference: BN306 and BN307."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from batchnorm.core.record import LayerRecord

from . import channels as of
from .around import feeds_only, first_calls, graph_of, producer
from .finding import Hit, Subject

__all__ = ["foldable", "runtime_fault"]

OLD_OPSET = 14


def foldable(subject: Subject) -> Iterable[Hit]:
    """A graph made for inference still carries a layer that could be part of the one before it."""
    if not subject.deployed:
        return
    graph = graph_of(subject)
    for record, call in first_calls(subject):
        before = producer(graph, call)
        usable = before is not None and feeds_only(graph, before) and "kernel" in before.weights
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
    for record, call in first_calls(subject):
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
