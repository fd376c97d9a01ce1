"""A model's graph in one vocabulary: which operation feeds which, whatever the format it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

__all__ = ["Graph", "Kind", "Operation"]

Kind = Literal[
    "conv",
    "conv_transpose",
    "dense",
    "batch_norm",
    "activation",
    "add",
    "concat",
    "dropout",
    "stochastic_depth",
    "pad",
    "pool",
    "reshape",
    "elementwise_linear",
    "identity",
    "other",
]
"""``elementwise_linear``: times or plus a constant. ``reshape``: anything that moves elements and changes none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operation:
    """One operation of a graph.

    Parameters
    ----------
    name : str
        As the format names it; that of the layer record where it is a batch normalization.
    kind : str
        One of `Kind`; ``"other"`` where it is none of these.
    operator : str
        The class or operator as the format spells it, ``"Conv2D"``.
    inputs, outputs : tuple of str
        Names of the values that flow; constants are not among the inputs.
    weights : mapping of str to array
        ``"kernel"`` and ``"bias"`` of convolutions and dense operations, where they are constants.
    settings : mapping
        Of convolutions: ``rank`` (1 to 3), ``groups``, ``channel_axis`` (of input and output, -1 or 1), ``pads``
        (whether anything is padded), ``kernel_out_axis``, ``kernel_in_axis``. Of a dense operation:
        ``kernel_out_axis``, ``kernel_in_axis``. Of any: ``activation`` where one is part of it.
    shared : bool
        Whether its weights belong to other operations, too.
    """

    name: str
    kind: Kind
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """Operations in an order in which they can run.

    Parameters
    ----------
    operations : tuple of Operation
        A layer that is called twice is there twice, under one name.
    inputs, outputs : tuple of str
        Names of the values that enter and leave the model.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def producer(self, value: str) -> Operation | None:
        """The operation that gives a value; None for an input of the model."""
        return next((each for each in self.operations if value in each.outputs), None)

    def consumers(self, value: str) -> tuple[Operation, ...]:
        """The operations that take a value."""
        return tuple(each for each in self.operations if value in each.inputs)

    def calls(self, layer: str) -> Iterator[Operation]:
        """Each call of the batch normalization of that name."""
        return (each for each in self.operations if each.kind == "batch_norm" and each.name == layer)
