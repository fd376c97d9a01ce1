"""The graphs of a ``.tflite`` file: operators by name, tensors with their names, and the constants among them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .flatbuffer import FlatError, Table, root

__all__ = ["Graph", "Operator", "Tensor", "graphs"]

OPERATORS = {
    0: "ADD", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE", 9: "FULLY_CONNECTED", 18: "MUL", 41: "SUB",
    67: "TRANSPOSE_CONV", 114: "QUANTIZE", 132: "CONV_3D", 133: "CONV_3D_TRANSPOSE",
}  # fmt: skip
TYPES = {0: "<f4", 1: "<f2", 2: "<i4", 3: "u1", 4: "<i8", 7: "<i2", 9: "i1", 10: "<f8"}
DEQUANTIZE = "DEQUANTIZE"
MOST_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the file declares it."""

    name: str
    shape: tuple[int, ...]
    type: int
    buffer: int
    table: Table


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator: its name, the numbers of its tensors, and whether an activation was merged into it."""

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    activated: bool


class Graph:
    """One graph of the file; the first is the model, others are bodies of branches and loops."""

    def __init__(self, data: Any, table: Table, operators: list[str], buffers: list[Table]) -> None:
        self._data = data
        self._buffers = buffers
        self.tensors = [
            Tensor(tensor.text(3), tuple(tensor.numbers(0)), tensor.integer(1, "<b"), tensor.integer(2, "<I"), tensor)
            for tensor in table.tables(0)
        ]
        self.operators = [self._operator(each, operators) for each in table.tables(3)]
        self.makers = {number: each for each in self.operators for number in each.outputs}
        self.users: dict[int, list[Operator]] = {}
        for each in self.operators:
            for number in each.inputs:
                self.users.setdefault(number, []).append(each)

    def names(self, numbers: tuple[int, ...]) -> list[str]:
        """The names behind tensors; one that stands for several joins theirs with a semicolon."""
        found = [self.tensors[number].name.split(";") for number in numbers if 0 <= number < len(self.tensors)]
        return [name for names in found for name in names]

    def is_constant(self, number: int) -> bool:
        """Whether the file holds the values of a tensor."""
        if not 0 <= number < len(self.tensors):
            return False
        maker = self.makers.get(number)
        if maker is not None:
            return maker.op == DEQUANTIZE and bool(maker.inputs) and self.is_stored(maker.inputs[0])
        return self.is_stored(number)

    def is_stored(self, number: int) -> bool:
        """Whether its bytes are in the file."""
        if not 0 <= number < len(self.tensors) or number in self.makers:
            return False
        return self._bytes(self.tensors[number])[1] > 0

    def constant(self, number: int) -> NDArray[Any] | None:
        """The values of a constant as floating-point numbers, quantized ones scaled back; None where it has none."""
        maker = self.makers.get(number)
        if maker is not None:
            held = self.is_constant(number)
            return self.constant(maker.inputs[0]) if held else None
        if not self.is_stored(number):
            return None
        tensor = self.tensors[number]
        dtype, count = TYPES.get(tensor.type), math.prod(tensor.shape)
        start, size = self._bytes(tensor)
        if dtype is None or count > MOST_ELEMENTS or any(length < 0 for length in tensor.shape):
            return None
        if size != count * np.dtype(dtype).itemsize:
            raise FlatError(f"a constant of shape {list(tensor.shape)} has {size:,} bytes")
        array = np.frombuffer(bytes(self._data[start : start + size]), dtype).reshape(tensor.shape)
        return array if array.dtype.kind == "f" else _scaled(array, tensor.table.table(4))

    def is_quantized(self, number: int) -> bool:
        """Whether a tensor holds integers that stand for real numbers."""
        known = 0 <= number < len(self.tensors)
        return known and np.dtype(TYPES.get(self.tensors[number].type, "<f4")).kind in "iu"

    def _bytes(self, tensor: Tensor) -> tuple[int, int]:
        if not 0 <= tensor.buffer < len(self._buffers):
            raise FlatError("a tensor names a buffer that does not exist")
        buffer = self._buffers[tensor.buffer]
        start, size = buffer.data(0)
        offset, outside = buffer.integer(1, "<Q"), buffer.integer(2, "<Q")
        if offset > 1:  # models over 2 GB keep their arrays behind the table
            start, size = offset, outside
        if start + size > len(self._data):
            raise FlatError("a constant lies outside of the file")
        return start, size

    def _operator(self, table: Table, operators: list[str]) -> Operator:
        index = table.integer(0, "<I")
        if index >= len(operators):
            raise FlatError("an operator has a code that does not exist")
        op, options = operators[index], table.table(4)
        # The options of these operators begin with padding, strides or the activation itself.
        place = {"ADD": 0, "MUL": 0, "SUB": 0}.get(op)
        activated = options is not None and place is not None and options.integer(place, "<b") != 0
        return Operator(op, tuple(table.numbers(1)), tuple(table.numbers(2)), activated)


def graphs(data: Any) -> list[Graph]:
    """The graphs of a file.

    Raises
    ------
    FlatError
        It is damaged.
    """
    model = root(data)
    operators = [_operator_name(code) for code in model.tables(1)]
    buffers = model.tables(4)
    found = [Graph(data, table, operators, buffers) for table in model.tables(2)]
    if not found:
        raise FlatError("it holds no graph")
    return found


def _operator_name(code: Table) -> str:
    number = max(code.integer(0, "<b"), code.integer(3, "<i"))
    return OPERATORS.get(number, f"operator {number}")


def _scaled(array: NDArray[Any], quantization: Table | None) -> NDArray[Any] | None:
    """Integers as the real numbers they stand for: ``scale*(integer - zero point)``, one scale or one a channel."""
    scales = [] if quantization is None else quantization.numbers(2, "f")
    if quantization is None or not scales:
        return None
    zeros = quantization.numbers(3, "q") or [0] * len(scales)
    axis = quantization.integer(6)
    if len(zeros) != len(scales) or (len(scales) > 1 and (axis >= array.ndim or array.shape[axis] != len(scales))):
        raise FlatError("the scales of a quantized constant do not fit its shape")
    shape = [1] * array.ndim
    if len(scales) > 1:
        shape[axis] = len(scales)
    scale, zero = (np.asarray(values, np.float64).reshape(shape or ()) for values in (scales, zeros))
    return (scale * (array - zero)).astype(np.float32)
