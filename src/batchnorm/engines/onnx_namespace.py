"""A namespace that writes ONNX nodes where others compute: `core.equations` over it gives the formula as a graph."""

# pyright: reportUnknownMemberType=false
# onnx' messages are generated, and have no types.

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from batchnorm.errors import require

__all__ = ["Builder", "Value"]

OLDEST = 10
"""The first operator set in which Slice takes its places as inputs."""
SUM_TAKES_INPUTS = 13


class Builder:
    """Nodes and constants in the making; as ``xp`` of `core.equations`, with values of one graph as arrays.

    Parameters
    ----------
    opset : int
        Of ONNX' own operators, at least 10.
    """

    def __init__(self, opset: int) -> None:
        self._onnx: Any = require("onnx", "onnx", "Recalibrating .onnx files")
        self._opset = opset
        self._numbers = itertools.count()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node with one output, which is returned."""
        output = f"batchnorm:{next(self._numbers)}"
        self.nodes.append(self._onnx.helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant."""
        name = f"batchnorm:{next(self._numbers)}"
        self.constants.append(self._onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def cast(self, name: str, dtype: Any) -> str:
        """A value in another type."""
        return self.node("Cast", [name], to=self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def value(self, name: str, rank: int) -> Value:
        """A value of the graph, in float32."""
        return Value(self, self.cast(name, np.float32), rank)

    def sum(self, x: Value, axis: int | tuple[int, ...], keepdims: bool) -> Value:
        """As NumPy's."""
        assert keepdims
        axis = (axis,) if isinstance(axis, int) else axis
        if self._opset >= SUM_TAKES_INPUTS:
            return Value(self, self.node("ReduceSum", [x.name, self.constant(axis, np.int64)]), x.rank)
        return Value(self, self.node("ReduceSum", [x.name], axes=list(axis)), x.rank)

    def where(self, condition: Value, x: Value | float, y: Value | float) -> Value:
        """As NumPy's; of two conditions, where ``y`` is False, which onnxruntime's own Where does not take."""
        if isinstance(x, Value) and y is False:
            return Value(self, self.node("And", [condition.name, x.name]), x.rank)
        names = [each.name if isinstance(each, Value) else self.constant(each) for each in (x, y)]
        rank = max([condition.rank, *(each.rank for each in (x, y) if isinstance(each, Value))])
        return Value(self, self.node("Where", [condition.name, *names]), rank)

    def cumsum(self, x: Value, axis: int) -> Value:
        """As NumPy's; from operator set 11 on."""
        return Value(self, self.node("CumSum", [x.name, self.constant(axis, np.int64)]), x.rank)

    def count(self, x: Value, channels: int) -> Value:
        """Elements of ``x`` for each channel."""
        size = self.cast(self.node("Size", [x.name]), np.float32)
        return Value(self, self.node("Div", [size, self.constant(channels)]), 0)


class Value:
    """A value of the graph, with the arithmetic that the equations use."""

    def __init__(self, to: Builder, name: str, rank: int) -> None:
        self._to = to
        self.name = name
        self.rank = rank

    @property
    def shape(self) -> tuple[None, ...]:
        """Of the right length; the lengths are known when the graph runs."""
        return (None,) * self.rank

    def _with(self, operator: str, other: Value | float, *, swapped: bool = False) -> Value:
        name = other.name if isinstance(other, Value) else self._to.constant(other)
        pair = [name, self.name] if swapped else [self.name, name]
        return Value(self._to, self._to.node(operator, pair), self.rank)

    def __add__(self, other: Value | float) -> Value:
        return self._with("Add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._with("Sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._with("Mul", other)

    def __rmul__(self, other: float) -> Value:
        return self._with("Mul", other, swapped=True)

    def __truediv__(self, other: Value | float) -> Value:
        return self._with("Div", other)

    def __lt__(self, other: Value | float) -> Value:
        return self._with("Less", other)

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: Value | float) -> Value:  # type: ignore[override]
        return self._with("Equal", other)

    def __getitem__(self, places: tuple[slice, ...]) -> Value:
        axes = [axis for axis, place in enumerate(places) if place.stop is not None]
        ends = [places[axis].stop for axis in axes]
        if not axes:
            return self
        given = [self._to.constant(each, np.int64) for each in ([0] * len(axes), ends, axes)]
        return Value(self._to, self._to.node("Slice", [self.name, *given]), self.rank)
