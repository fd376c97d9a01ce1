"""The rule about a layer's axis beside the layout of the convolutions around it: BN203."""

from __future__ import annotations

from collections.abc import Iterable

from batchnorm.analysis.numbers import count
from batchnorm.core.graph import Graph, Kind, Operation
from batchnorm.core.record import LayerRecord

from .around import first_calls, graph_of, only_consumer, producer
from .finding import Hit, Subject

__all__ = ["axis_mismatch"]

KEEPS_AXES: tuple[Kind, ...] = ("activation", "dropout", "stochastic_depth", "pad", "elementwise_linear", "identity")


def axis_mismatch(subject: Subject) -> Iterable[Hit]:
    """The layer's axis contradicts the channel axis of the convolution before it, or else after it."""
    graph = graph_of(subject)
    for record, call in first_calls(subject):
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
    found = producer(graph, call)
    while found is not None and found.kind in KEEPS_AXES:
        found = producer(graph, found)
    return found if found is not None and _told(found) else None


def _convolution_after(graph: Graph, call: Operation) -> Operation | None:
    found = only_consumer(graph, call)
    while found is not None and found.kind in KEEPS_AXES:
        found = only_consumer(graph, found)
    return found if found is not None and _told(found) else None


def _told(operation: Operation) -> bool:
    known = operation.settings.get("rank") in (1, 2, 3) and operation.settings.get("channel_axis") in (1, -1)
    return operation.kind in ("conv", "conv_transpose") and known
