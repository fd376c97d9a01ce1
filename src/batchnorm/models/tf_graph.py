"""TensorFlow's graphs in a SavedModel: nodes, functions that call each other, and where a value comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .protobuf import Message, WireError
from .tensor_bundle import DTYPES

__all__ = ["Constant", "Frame", "Function", "Node", "Param", "Variable", "constant_of", "walk"]

DEEPEST = 64
MOST_NODES = 500_000
COST_OF_CALL = 50  # in nodes: a graph that expands without end is one of small functions
LONGEST_WAY = 200
PASSES = {"Identity", "ReadVariableOp", "Reshape", "Cast", "Enter", "Squeeze", "ExpandDims", "StopGradient", "Neg"}
HANDLES = {"VarHandleOp", "VariableV2", "Variable"}
# Operators that run a function, and the first of their inputs that goes into it.
CALLS = {"PartitionedCall": 0, "StatefulPartitionedCall": 0, "If": 1, "StatelessIf": 1, "While": 0, "StatelessWhile": 0}
CONTENT, FLOATS = 4, {1: (5, "<f4"), 2: (6, "<f8")}
LARGEST_CONSTANT = 1 << 30


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a graph: ``inputs`` are ``node``, ``node:output:0`` or the name of an argument."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: dict[str, Message] = field(repr=False)

    @classmethod
    def read(cls, message: Message) -> Node:
        """From a NodeDef; inputs that only order the execution are left out."""
        inputs = tuple(name for name in message.texts(3) if not name.startswith("^"))
        return cls(message.text(1), message.text(2), inputs, dict(message.map(5)))

    def attribute(self, name: str) -> Message:
        """An attribute; empty where it is absent."""
        return self.attributes.get(name) or Message(b"")

    def called(self) -> list[str]:
        """The functions it runs."""
        return [name for value in self.attributes.values() if (name := value.inner(10).text(1))]


class Function:
    """The body of a function, or a whole graph, which has no arguments."""

    def __init__(self, name: str, arguments: tuple[str, ...], nodes: Iterator[Message]) -> None:
        self.name = name
        self.arguments = arguments
        self.nodes = {node.name: node for message in nodes if (node := Node.read(message))}
        self._consumers: dict[str, list[tuple[Node, int]]] | None = None

    @classmethod
    def read(cls, message: Message) -> Function:
        """From a FunctionDef."""
        signature = message.inner(1)
        arguments = tuple(argument.text(1) for argument in signature.messages(2))
        return cls(signature.text(1), arguments, message.messages(3))

    def node(self, reference: str) -> Node | None:
        """The node whose output a reference names; None for an argument."""
        return self.nodes.get(reference.partition(":")[0])

    def consumers(self, node: Node) -> list[tuple[Node, int]]:
        """Who takes the output of a node, and as which input."""
        if self._consumers is None:
            self._consumers = {}
            for other in self.nodes.values():
                for place, reference in enumerate(other.inputs):
                    self._consumers.setdefault(reference.partition(":")[0], []).append((other, place))
        return self._consumers.get(node.name, [])


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable: an object of the SavedModel by number, or, in old files, the name of its node."""

    key: int | str


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of the graph."""

    node: Node


@dataclass(frozen=True, slots=True)
class Param:
    """What a value is in the end, and what happened to it on the way."""

    source: Variable | Constant
    negated: bool = False
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """A function at one of the places where it is called.

    Parameters
    ----------
    body : Function
        What runs.
    path : str
        Names of the calls on the way here, each with a slash: the prefix of its nodes once the calls are inlined.
    bound : dict
        What stands behind the arguments: a variable, or a reference in the frame of the caller.
    """

    body: Function
    path: str = ""
    bound: dict[str, Variable | tuple[Frame, str]] = field(default_factory=dict[str, Any], repr=False)

    def param(self, reference: str) -> Param | None:
        """The variable or constant that a reference leads back to; None where it is computed from data."""
        frame, negated = self, False
        shape: tuple[int, ...] | None = None
        for _ in range(LONGEST_WAY):
            name = reference.partition(":")[0]
            behind = frame.bound.get(name)
            if isinstance(behind, Variable):
                return Param(behind, negated, shape)
            if behind is not None:
                frame, reference = behind
                continue
            node = frame.body.nodes.get(name)
            if node is None:
                return None
            if node.op == "Const":
                return Param(Constant(node), negated, shape)
            if node.op in HANDLES:
                return Param(Variable(_shared_name(node)), negated, shape)
            if node.op not in PASSES or not node.inputs:
                return None
            negated ^= node.op == "Neg"
            if node.op == "Reshape" and shape is None and len(node.inputs) > 1:
                shape = _target(frame, node.inputs[1])
            reference = next(iter(node.inputs))
        return None


def walk(frame: Frame, functions: dict[str, Message]) -> Iterator[tuple[Frame, Node]]:
    """Every node that runs, with the frame it runs in, in the order in which the file lists them.

    Raises
    ------
    WireError
        The functions call each other without end.
    """
    known: dict[str, Function] = {}
    yield from _walk(frame, functions, known, [MOST_NODES], 0)


def _walk(
    frame: Frame, functions: dict[str, Message], known: dict[str, Function], left: list[int], depth: int
) -> Iterator[tuple[Frame, Node]]:
    left[0] -= len(frame.body.nodes) + COST_OF_CALL
    if left[0] < 0 or depth > DEEPEST:
        raise WireError("its functions call each other without end")
    for node in frame.body.nodes.values():
        yield frame, node
        for name in node.called() if node.op in CALLS else []:
            if name not in known and name in functions:
                known[name] = Function.read(functions[name])
            if name in known:
                inner = _called(frame, node, known[name])
                yield from _walk(inner, functions, known, left, depth + 1)


def _called(frame: Frame, node: Node, body: Function) -> Frame:
    given = node.inputs[CALLS[node.op] :]
    bound: dict[str, Variable | tuple[Frame, str]] = {
        argument: (frame, reference) for argument, reference in zip(body.arguments, given, strict=False)
    }
    return Frame(body, f"{frame.path}{node.name}/", bound)


def constant_of(node: Node) -> NDArray[Any] | None:
    """The floating-point array of a Const; None where it holds something else."""
    tensor = node.attribute("value").inner(8)
    kind = tensor.integer(1)
    dtype = DTYPES.get(kind)
    shape = tuple(size.integer(1) for size in tensor.inner(2).messages(2))
    count = math.prod(shape)
    if dtype is None or any(length < 0 for length in shape) or count * dtype.itemsize > LARGEST_CONSTANT:
        return None
    content: bytes = tensor.content(CONTENT)
    if not content and kind in FLOATS:
        content = tensor.floats(*FLOATS[kind]).tobytes()
    elif not content and kind in (3, 9):
        content = np.asarray(tensor.integers({3: 7, 9: 10}[kind]), dtype).tobytes()
    elif not content:  # half precision: one number a half, in its low bytes
        content = np.asarray(tensor.integers(13), np.uint16).tobytes()
    if len(content) % dtype.itemsize or len(content) > count * dtype.itemsize:
        return None
    given = np.frombuffer(content, dtype)
    # The format leaves out repetitions of the last number at the end, and a tensor of zeros altogether.
    last: NDArray[Any] = given[-1:] if given.size else np.zeros(1, dtype)
    return np.concatenate([given, np.repeat(last, count - given.size)]).reshape(shape)


def _shared_name(node: Node) -> str:
    name = node.attribute("shared_name").text(2)
    return name or node.name


def _target(frame: Frame, reference: str) -> tuple[int, ...] | None:
    found = frame.param(reference)
    if found is None or not isinstance(found.source, Constant):
        return None
    array = constant_of(found.source.node)
    return None if array is None or array.ndim != 1 or array.dtype.kind != "i" else tuple(int(n) for n in array)
