"""The rule about a layer's axis beside the layout of the convolutions around it: BN203."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchnorm.analysis.numbers import count
from batchnorm.core.graph import Graph, Kind, Operation
from batchnorm.core.record import LayerRecord

from .around import first_calls, graph_of, only_consumer, producer
from .finding import Hit, Subject

__all__ = ["axis_mismatch"]

KEEPS_AXES: tuple[Kind, ...] = ("activation", "dropout", "stochastic_depth", "pad", "elementwise_linear", "identity")


def axis_mismatch(subject: Subject) -> Iterable[Hit]:
    """The layer's axis is neither where the convolution before it has its channels nor where the one after it has."""
    graph = graph_of(subject)
    for record, call in first_calls(subject):
        found = [near for near in (_before(graph, call), _after(graph, call)) if near is not None]
        axes = record.axis if isinstance(record.axis, tuple) else (record.axis,)
        if found and not any(near.fits(axes) for near in found):
            yield _mismatch(record, found[0])


@dataclass(frozen=True, slots=True)
class _Near:
    """A convolution beside a layer, and which axis of the layer's input is that of its channels."""

    convolution: Operation
    axis: int
    rank: int

    def fits(self, axes: Sequence[int]) -> bool:
        """Whether one of the axes is that of the channels, or is none of such an input."""
        return any(not -self.rank <= axis < self.rank or axis % self.rank == self.axis for axis in axes)


def _mismatch(record: LayerRecord, near: _Near) -> Hit:
    channel_axis = int(near.convolution.settings["channel_axis"])
    layout = "channels-first" if channel_axis == 1 else "channels-last"
    moved = near.axis != channel_axis % near.rank
    right = near.axis if moved or channel_axis == 1 else -1
    where = f"has its channels in axis {right} of this layer's input" if moved else f"is {layout}"
    return Hit(
        level="error",
        layer=record.name,
        message=(
            f"it normalises axis {record.axis}, and {near.convolution.name} beside it {where}: what it takes for "
            f"{count(record.channels, 'channel')} are rows, columns or steps, and the channels (axis {right}) share "
            "statistics."
        ),
        short=f"axis {record.axis} where a {layout} convolution has its channels in {right}",
        remedy=(
            f"Build the layer with axis={right}"
            + (" (PyTorch: move the channels to axis 1 first)" if moved else "")
            + " and train again; its statistics and gamma are of the wrong axis."
        ),
        evidence={"axis": record.axis, "convolution": near.convolution.name, "channel_axis": channel_axis},
    )


def _before(graph: Graph, call: Operation) -> _Near | None:
    moves: list[Sequence[int]] = []
    found = producer(graph, call)
    while found is not None and _keeps(found):
        moves += [found.settings["permutation"]] if found.kind == "reshape" else []
        found = producer(graph, found)
    if found is None or not _told(found):
        return None
    axis, rank = _channels(found)
    for order in reversed(moves):
        axis = order.index(axis) if axis < len(order) else axis
    return _Near(found, axis, rank)


def _after(graph: Graph, call: Operation) -> _Near | None:
    moves: list[Sequence[int]] = []
    found = only_consumer(graph, call)
    while found is not None and _keeps(found):
        moves += [found.settings["permutation"]] if found.kind == "reshape" else []
        found = only_consumer(graph, found)
    if found is None or not _told(found):
        return None
    axis, rank = _channels(found)
    for order in reversed(moves):
        axis = order[axis] if axis < len(order) else axis
    return _Near(found, axis, rank)


def _channels(convolution: Operation) -> tuple[int, int]:
    rank = int(convolution.settings["rank"]) + 2
    return int(convolution.settings["channel_axis"]) % rank, rank


def _keeps(operation: Operation) -> bool:
    """Whether every axis of the input is one of the output, and which."""
    return operation.kind in KEEPS_AXES or "permutation" in operation.settings


def _told(operation: Operation) -> bool:
    known = operation.settings.get("rank") in (1, 2, 3) and operation.settings.get("channel_axis") in (1, -1)
    return operation.kind in ("conv", "conv_transpose") and known
