"""ONNX graphs as data: nodes, names and where they come from. Nothing is run, and no array is read until asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .modelfile import quoted, unreadable
from .onnx_arrays import MOST_ELEMENTS, MOST_RANK, Constant, constant_of, dtype_name
from .protobuf import Message

__all__ = ["Declared", "Functions", "Graph", "Node", "Scope", "is_standard"]

MOST_IDENTITIES = 1000
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
MATTERING = (*CONTROL_FLOW, "BatchNormalization", "Add", "Sub")


def is_standard(domain: str) -> bool:
    """Whether a domain is ONNX' own."""
    return domain in ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Declared:
    """What a graph says of an input: its shape, 0 where a length is free, and its type."""

    shape: tuple[int, ...] = ()
    dtype: str = "float32"


class Node:
    """A node; its attributes are looked at when they are asked for."""

    __slots__ = ("_attributes", "_message", "domain", "inputs", "name", "op", "outputs")

    def __init__(self, message: Message) -> None:
        self._message = message
        self._attributes: dict[str, Message] | None = None
        self.inputs = message.texts(1)
        self.outputs = message.texts(2)
        self.name = message.text(3)
        self.op = message.text(4)
        self.domain = message.text(7)

    @property
    def title(self) -> str:
        """Its name, else its first output."""
        return self.name or next((name for name in self.outputs if name), self.op)

    @property
    def overload(self) -> str:
        """Which of several functions of one name it calls."""
        return self._message.text(8)

    @property
    def documentation(self) -> str:
        """Where PyTorch's older exporter writes a node's origin."""
        return self._message.text(6)

    @property
    def metadata(self) -> dict[str, str]:
        """What the exporter wrote beside it."""
        return self._message.pairs(9)

    def attribute(self, name: str) -> Message | None:
        """An AttributeProto; None where absent."""
        if self._attributes is None:
            self._attributes = {each.text(1): each for each in self._message.messages(5)}
        return self._attributes.get(name)

    def subgraphs(self) -> Iterator[Message]:
        """The graphs of a control-flow node."""
        if self.op in CONTROL_FLOW and is_standard(self.domain):
            for attribute in self._message.messages(5):
                graph = attribute.message(6)
                if graph is not None:
                    yield graph
                yield from attribute.messages(11)


@dataclass(slots=True)
class Graph:
    """The nodes of a graph or of a function's body, and what its names stand for."""

    nodes: list[Node]
    constants: dict[str, Message] = field(default_factory=dict[str, Message])
    inputs: dict[str, Declared] = field(default_factory=dict[str, Declared])
    outputs: frozenset[str] = frozenset()
    makers: dict[str, Node] = field(default_factory=dict[str, Node])
    _users: dict[str, list[Node]] | None = None

    @classmethod
    def of(cls, message: Message, *, is_function: bool = False) -> Graph:
        """Read a GraphProto, or a FunctionProto.

        Raises
        ------
        ValueError
            It has too many nodes, or they feed each other in a circle.
        """
        nodes = [Node(each) for each in message.messages(7 if is_function else 1)]
        graph = cls(nodes)
        for node in nodes:
            for name in node.outputs:
                graph.makers[name] = node
        if is_function:
            graph.inputs = dict.fromkeys(message.texts(4), Declared())
            graph.outputs = frozenset(message.texts(5))
        else:
            graph.constants = {each.text(8): each for each in message.messages(5)}
            graph.inputs = {each.text(1): _declared(each.message(2)) for each in message.messages(11)}
            graph.outputs = frozenset(each.text(1) for each in message.messages(12))
        graph.makers.pop("", None)
        graph.constants.pop("", None)
        _check_order(graph)
        return graph

    def users(self, name: str) -> list[Node]:
        """The nodes that take a value."""
        if self._users is None:
            self._users = {}
            for node in self.nodes:
                for each in dict.fromkeys(node.inputs):
                    self._users.setdefault(each, []).append(node)
        return self._users.get(name, [])


def _declared(type_of: Message | None) -> Declared:
    tensor = None if type_of is None else type_of.message(1)
    shape = None if tensor is None else tensor.message(2)
    if tensor is None:
        return Declared()
    lengths = () if shape is None else tuple(each.integer(1) for each in shape.messages(1))
    return Declared(lengths, dtype_name(tensor.integer(1)))


def _check_order(graph: Graph) -> None:
    """Kahn's algorithm, which comes to an end where a graph is cyclic."""
    waiting: dict[int, int] = {}
    users: dict[int, list[Node]] = {}
    for node in graph.nodes:
        makers = {id(maker): maker for name in node.inputs if (maker := graph.makers.get(name)) is not None}
        waiting[id(node)] = len(makers)
        for maker in makers:
            users.setdefault(maker, []).append(node)
    ready = [node for node in graph.nodes if not waiting[id(node)]]
    done = 0
    while ready:
        done += 1
        for user in users.get(id(ready.pop()), ()):
            waiting[id(user)] -= 1
            if not waiting[id(user)]:
                ready.append(user)
    if done < len(graph.nodes):
        stuck = next(node for node in graph.nodes if waiting[id(node)])
        raise ValueError(f"the graph is cyclic at node {quoted(stuck.title)}, whose inputs depend on its outputs")


@dataclass(slots=True)
class Functions:
    """The functions that a model brings along, read when they are called first."""

    messages: dict[tuple[str, str, str], Message]
    _read: dict[tuple[str, str, str], Graph] = field(default_factory=dict[tuple[str, str, str], Graph])
    _matters: dict[int, bool] = field(default_factory=dict[int, bool])

    def called(self, node: Node) -> tuple[Message, Graph] | None:
        """The function that a node calls; None where it is an operator."""
        if not self.messages:
            return None
        key = (node.domain, node.op, node.overload)
        message = self.messages.get(key)
        if message is None:
            return None
        if key not in self._read:
            self._read[key] = Graph.of(message, is_function=True)
        return message, self._read[key]

    def matters(self, body: Graph) -> bool:
        """Whether a function, or one that it calls, can hold a batch normalization."""
        if id(body) not in self._matters:
            self._matters[id(body)] = True  # one that calls itself must not be passed over
            called = [found[1] for node in body.nodes if (found := self.called(node)) is not None]
            own = any(is_standard(node.domain) and node.op in MATTERING for node in body.nodes)
            self._matters[id(body)] = own or any(self.matters(each) for each in called)
        return self._matters[id(body)]


@dataclass(slots=True, eq=False)
class Scope:
    """A graph in its place: where a name that the graph does not make comes from.

    Attributes
    ----------
    outer : Scope or None
        The graph around a control-flow body, or around the call of a function.
    arguments : dict or None
        Input of the function -> name in ``outer``; None where the names of ``outer`` are seen as they are.
    call : Node or None
        The node that calls the function.
    """

    path: str
    graph: Graph
    opset: int
    names: tuple[str, ...] = ()
    outer: Scope | None = None
    arguments: dict[str, str] | None = None
    call: Node | None = None
    function: Message | None = None
    folded: dict[Any, Any] = field(default_factory=dict[Any, Any])

    def place(self, name: str) -> tuple[Scope, str] | None:
        """The scope that makes, holds or is given a name; None for a name that nobody knows."""
        scope: Scope | None = self
        while scope is not None and name:
            graph = scope.graph
            if name in graph.makers or name in graph.constants:
                return scope, name
            if scope.arguments is not None:
                if name not in scope.arguments:
                    return None
                name = scope.arguments[name]
            elif name in graph.inputs:
                return scope, name
            scope = scope.outer
        return None

    def maker(self, name: str) -> tuple[Scope, Node] | None:
        """The node that makes a value, and its scope; None for constants, inputs and unknown names."""
        found = self.place(name)
        node = None if found is None else found[0].graph.makers.get(found[1])
        return None if node is None or found is None else (found[0], node)

    def attribute(self, node: Node, name: str) -> Message | None:
        """A node's attribute; one that refers to an attribute of the function is looked up at its call."""
        found = node.attribute(name)
        scope: Scope | None = self
        while found is not None and (referred := found.text(21)):
            while scope is not None and scope.call is None:  # a control-flow body inside the function
                scope = scope.outer
            if scope is None or scope.call is None or scope.function is None:
                return None
            defaults = {each.text(1): each for each in scope.function.messages(11)}
            found = scope.call.attribute(referred) or defaults.get(referred)
            scope = scope.outer
        return found

    def constant(self, name: str) -> Constant | None:
        """The array behind a name, through Identity nodes; None where it is no constant."""
        found = self.place(name)
        for _ in range(MOST_IDENTITIES):
            if found is None:
                return None
            scope, name = found
            held = scope.graph.constants.get(name)
            if held is not None:
                return constant_of(scope.path, name, held)
            node = scope.graph.makers.get(name)
            if node is None or not is_standard(node.domain):
                return None
            if node.op != "Identity" or not node.inputs:
                return _value(scope, node)
            found = scope.place(node.inputs[0])
        return None


def _value(scope: Scope, node: Node) -> Constant | None:
    """The value of a Constant or ConstantOfShape node."""
    if node.op == "ConstantOfShape" and node.inputs:
        lengths = scope.constant(node.inputs[0])
        if lengths is None or lengths.size > MOST_RANK or "int" not in lengths.dtype:
            return None
        attribute = scope.attribute(node, "value")
        tensor = None if attribute is None else attribute.message(5)
        value = Constant((1,), "float32", lambda: np.zeros(1, np.float32))
        if tensor is not None:
            value = constant_of(scope.path, node.title, tensor)
        return _filled(scope.path, node, tuple(int(length) for length in lengths.read().reshape(-1)), value)
    if node.op != "Constant":
        return None
    tensor = None if (attribute := scope.attribute(node, "value")) is None else attribute.message(5)
    if tensor is not None:
        return constant_of(scope.path, node.title, tensor)
    for name in ("value_float", "value_floats"):
        attribute = scope.attribute(node, name)
        if attribute is not None:
            single = attribute.float32(2)
            array = np.float32(single or 0) if name == "value_float" else attribute.floats(7, "<f4")
            return Constant(np.shape(array), "float32", lambda array=array: np.asarray(array, np.float32))
    return None


def _filled(path: str, node: Node, shape: tuple[int, ...], value: Constant) -> Constant | None:
    if value.size != 1 or any(length < 0 for length in shape):
        return None
    if math.prod(shape) > MOST_ELEMENTS:
        raise unreadable(path, f"node {quoted(node.title)} makes an array of shape {quoted(list(shape))}")
    return Constant(shape, value.dtype, lambda: np.full(shape, value.read().reshape(())))
