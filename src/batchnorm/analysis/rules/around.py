"""How the rules walk through a graph: what feeds a layer, and what takes its output."""

from __future__ import annotations

from collections.abc import Iterator

from batchnorm.core.graph import Graph, Kind, Operation
from batchnorm.core.record import LayerRecord

from .finding import Subject

__all__ = ["WEIGHTED", "feeds_only", "first_calls", "graph_of", "only_consumer", "producer"]

WEIGHTED: tuple[Kind, ...] = ("conv", "conv_transpose", "dense")


def graph_of(subject: Subject) -> Graph:
    """The graph, which a rule that needs one is sure to get."""
    assert subject.graph is not None
    return subject.graph


def first_calls(subject: Subject) -> Iterator[tuple[LayerRecord, Operation]]:
    """Each layer with its first call."""
    for record in subject.records:
        call = next(graph_of(subject).calls(record.name), None)
        if call is not None:
            yield record, call


def producer(graph: Graph, operation: Operation) -> Operation | None:
    """What gives an operation its only input."""
    return graph.producer(operation.inputs[0]) if len(operation.inputs) == 1 else None


def only_consumer(graph: Graph, operation: Operation) -> Operation | None:
    """What takes an operation's output, where it is one alone."""
    uses = [use for value in operation.outputs for use in graph.consumers(value)]
    return uses[0] if len(uses) == 1 else None


def feeds_only(graph: Graph, before: Operation) -> bool:
    """Whether a weighted operation without an activation feeds one operation, and is no output of the model."""
    if before.kind not in WEIGHTED or "activation" in before.settings or len(before.outputs) != 1:
        return False
    value = before.outputs[0]
    return len(graph.consumers(value)) == 1 and value not in graph.outputs
