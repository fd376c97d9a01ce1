"""A model's graph in one vocabulary: which operation feeds which, whatever the format it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

__all__ = ["Graph", "Kind", "LazyGraph", "NoGraph", "Operation"]

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


class NoGraph(Exception):
    """A model whose graph cannot be told; the message is the reason, the end of "there is no graph: ..."."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operation:
    """One call of an operation in a graph.

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
    weights : mapping of str to callable
        ``"kernel"`` and ``"bias"`` of convolutions and dense operations, where they are constants: each is read when
        it is called. A key that is missing is no constant, or absent.
    settings : mapping
        Of convolutions: ``rank`` (1 to 3), ``groups``, ``channel_axis`` (of input and output, -1 or 1), ``pads``
        (whether anything is padded), ``strides``, ``kernel_out_axis``, ``kernel_in_axis``, and ``depthwise`` where the
        kernel's last two axes are channels and multiplier. Of a dense operation: ``channel_axis``,
        ``kernel_out_axis``, ``kernel_in_axis``. Of a batch normalization: ``axis``, ``training`` where the graph
        fixes it, and ``statistics`` where calls under several names can have the same moving statistics: equal where
        they lie in one place. Of a reshape: ``permutation``, the number of the input's axis at each of the output's,
        where it exchanges axes and does no more. Of any: ``activation`` where one is part of it, and what else its
        reader needs to find it again.
    shared : bool
        Whether its weights belong to other operations or calls, too.
    """

    name: str
    kind: Kind
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Callable[[], NDArray[Any]]] = field(default_factory=dict[str, Callable[[], NDArray[Any]]])
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
    _producers: dict[str, Operation] = field(init=False, repr=False, default_factory=dict[str, Operation])
    _consumers: dict[str, list[Operation]] = field(init=False, repr=False, default_factory=dict[str, list[Operation]])

    def __post_init__(self) -> None:
        for each in self.operations:
            self._producers.update(dict.fromkeys(each.outputs, each))
            for value in dict.fromkeys(each.inputs):
                self._consumers.setdefault(value, []).append(each)

    def producer(self, value: str) -> Operation | None:
        """The operation that gives a value; None for an input of the model."""
        return self._producers.get(value)

    def consumers(self, value: str) -> tuple[Operation, ...]:
        """The operations that take a value, each once."""
        return tuple(self._consumers.get(value, ()))

    def leaves(self, value: str) -> bool:
        """Whether a value is an output of the model."""
        return value in self.outputs

    def calls(self, layer: str) -> Iterator[Operation]:
        """Each call of the batch normalization of that name."""
        return (each for each in self.operations if each.kind == "batch_norm" and each.name == layer)


class LazyGraph:
    """A graph that is read when it is first asked for, and kept; or the reason why there is none."""

    def __init__(self, read: Callable[[], Graph]) -> None:
        self._read = read
        self._found: Graph | str | None = None

    @property
    def graph(self) -> Graph | None:
        """The graph; None where there is none."""
        found = self._get()
        return found if isinstance(found, Graph) else None

    @property
    def reason(self) -> str | None:
        """Why there is no graph; None where there is one."""
        found = self._get()
        return found if isinstance(found, str) else None

    def _get(self) -> Graph | str:
        if self._found is None:
            try:
                self._found = self._read()
            except NoGraph as why:
                self._found = str(why) or "the format holds none"
        return self._found
