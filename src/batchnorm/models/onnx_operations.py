"""The nodes of an ONNX model in the vocabulary of `batchnorm.core.graph`; functions unrolled, constants left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from batchnorm.core.graph import Graph, Kind, NoGraph, Operation

from .onnx_arrays import Constant
from .onnx_graph import Functions, Node, Scope, is_standard
from .onnx_graph import Graph as OnnxGraph
from .onnx_unfused import unfused_record
from .protobuf import Message

__all__ = ["graph_of"]

MOST_OPERATIONS = 100_000
MOST_DEPTH = 30
KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        ("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Clip", "Tanh", "Softplus",
         "Softsign", "Softmax", "LogSoftmax", "Gelu", "Mish", "Celu", "ThresholdedRelu", "Swish", "Erf"),
        "activation",
    ),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "ReduceMean",
                     "ReduceMax", "GlobalLpPool"), "pool"),
    **dict.fromkeys(("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth"),
                    "reshape"),
    "Dropout": "dropout",
    "Pad": "pad",
    "Concat": "concat",
    "Identity": "identity",
    "Neg": "elementwise_linear",
    "Sum": "add",
}  # fmt: skip
FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
"""TensorProto.DataType of what a Cast may give."""
ARITHMETIC = ("Add", "Sub", "Mul", "Div")
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")


@dataclass(slots=True)
class _Step:
    """An operation on the way, and what else takes part in it."""

    operation: Operation
    kernel: Any = None  # where its kernel lies, to see whether others use it, too
    constant: tuple[str, Constant] | None = None  # the constant of an arithmetic operation, and its name


@dataclass(slots=True)
class _Place:
    """A graph that is being walked: what stands before its names, and what its names stand for outside."""

    scope: Scope
    prefix: str = ""
    names: dict[str, str] = field(default_factory=dict[str, str])

    def value(self, name: str) -> str:
        """The name of a value in the whole model."""
        return self.names.get(name, f"{self.prefix}{name}")


def graph_of(scope: Scope, functions: Functions, outputs: list[str]) -> Graph:
    """The graph of a model.

    Parameters
    ----------
    scope : Scope
        Its outermost graph.
    functions : Functions
        The functions that it brings along.
    outputs : list of str
        The names of its outputs, in their order.
    """
    try:
        return _Builder(functions).graph(scope, outputs)
    except (ValueError, IndexError, OverflowError, RecursionError) as error:
        raise NoGraph(f"its nodes do not tell how they are connected ({type(error).__name__})") from None


class _Builder:
    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._steps: list[_Step] = []
        self._flowing: set[str] = set()
        self._nodes = 0
        self._skipped: set[int] = set()

    def graph(self, scope: Scope, outputs: list[str]) -> Graph:
        inputs = [name for name in scope.graph.inputs if name not in scope.graph.constants]
        self._flowing.update(inputs)
        self._walk(_Place(scope), 0)
        steps = list(_with_biases(self._steps, set(outputs)))
        kernels = Counter(step.kernel for step in steps)
        operations = tuple(
            replace(step.operation, shared=step.kernel is not None and kernels[step.kernel] > 1) for step in steps
        )
        return Graph(operations=operations, inputs=tuple(inputs), outputs=tuple(outputs))

    def _walk(self, place: _Place, depth: int) -> None:
        if depth > MOST_DEPTH:
            raise NoGraph(f"its functions call each other more than {MOST_DEPTH} deep")
        for node in _ordered(place.scope.graph):
            self._nodes += 1
            if self._nodes > MOST_OPERATIONS:
                raise NoGraph(f"its functions expand to more than {MOST_OPERATIONS:,} nodes")
            called = self._functions.called(node)
            if called is not None:
                self._enter(place, node, *called, depth)
                continue
            self._node(place, node)

    def _enter(self, place: _Place, node: Node, message: Message, body: OnnxGraph, depth: int) -> None:
        scope = place.scope
        inner = Scope(
            path=scope.path, graph=body, opset=scope.opset, names=(*scope.names, node.title), outer=scope,
            arguments=dict(zip(body.inputs, node.inputs, strict=False)), call=node, function=message,
        )  # fmt: skip
        names = {own: place.value(given) for own, given in zip(body.inputs, node.inputs, strict=False)}
        # An output that is an input of the function as it is keeps its name there.
        names |= {own: place.value(given) for own, given in zip(message.texts(5), node.outputs, strict=False)
                  if own not in names}  # fmt: skip
        self._walk(_Place(inner, f"{place.prefix}{node.title}/", names), depth + 1)

    def _node(self, place: _Place, node: Node) -> None:
        if id(node) in self._skipped:
            return
        captured = _captured(node)
        inputs = tuple(
            value for name in (*node.inputs, *captured) if name and (value := place.value(name)) in self._flowing
        )
        outputs = tuple(place.value(name) for name in node.outputs if name)
        if not inputs and node.op not in RANDOM:
            return  # a constant, or made of constants
        self._flowing.update(outputs)
        operation = Operation(
            name="/".join((*place.scope.names, node.title)), kind="other", operator=node.op, inputs=inputs,
            outputs=outputs, settings={"node": node.title, "inside": bool(place.prefix)},
        )  # fmt: skip
        if not is_standard(node.domain):
            self._steps.append(_Step(operation))
            return
        unfused = unfused_record(place.scope, node)
        if unfused is not None:
            record, entry, leave = unfused
            self._skipped.update(_chain(place.scope, node, leave))
            settings = {**operation.settings, "axis": record.axis, "unfused": True}
            ends = {"inputs": (place.value(entry),), "outputs": (place.value(leave),)}
            self._steps.append(_Step(replace(operation, kind="batch_norm", settings=settings, **ends)))
            self._flowing.update(ends["outputs"])
            return
        self._steps.append(_described(operation, place.scope, node, len(inputs)))


def _chain(scope: Scope, node: Node, leave: str) -> Iterator[int]:
    """The nodes of a batch normalization that was exported as arithmetic: each feeds only the next."""
    while leave not in node.outputs:
        node = scope.graph.users(node.outputs[0])[0]
        yield id(node)


def _with_biases(steps: list[_Step], outputs: set[str]) -> Iterator[_Step]:
    """MatMul and the Add of a vector that alone follows it are one dense operation."""
    users: dict[str, list[_Step]] = {}
    for step in steps:
        for value in step.operation.inputs:
            users.setdefault(value, []).append(step)
    merged: set[int] = set()
    for step in steps:
        if id(step) in merged:
            continue
        value = step.operation.outputs[0] if step.operation.outputs else ""
        after = users.get(value, [])
        if step.operation.operator != "MatMul" or not step.operation.weights or len(after) != 1 or value in outputs:
            yield step
            continue
        found = _biased(step, after[0])
        merged.update({id(after[0])} if found is not step else ())
        yield found


def _biased(step: _Step, after: _Step) -> _Step:
    units = step.operation.settings["kernel_shape"][-1]
    constant, adds = after.constant, after.operation.operator == "Add"
    if constant is None or not adds or constant[1].size != units or constant[1].shape[-1:] != (units,):
        return step
    settings = {**step.operation.settings, "bias_name": constant[0], "bias_node": after.operation.settings["node"]}
    weights = {**step.operation.weights, "bias": constant[1].read}
    return replace(
        step, operation=replace(step.operation, outputs=after.operation.outputs, settings=settings, weights=weights)
    )


def _ordered(graph: OnnxGraph) -> Iterator[Node]:
    """The nodes in an order in which they can run; files are nearly always written in one."""
    done: set[str] = set()
    waiting = list(graph.nodes)
    while waiting:
        left: list[Node] = []
        for node in waiting:
            needed = (*node.inputs, *_captured(node))
            if all(name in done or name not in graph.makers for name in needed):
                done.update(node.outputs)
                yield node
            else:
                left.append(node)
        if len(left) == len(waiting):
            raise ValueError("cyclic")
        waiting = left


def _captured(node: Node) -> tuple[str, ...]:
    """Names that the branches and bodies of a control-flow node take from outside, and some of their own."""
    found: dict[str, None] = {}
    waiting = list(node.subgraphs())
    while waiting:
        inner = OnnxGraph.of(waiting.pop())
        for each in inner.nodes:
            found.update(dict.fromkeys(each.inputs))
            waiting += each.subgraphs()
        found.update(dict.fromkeys(inner.outputs))
    return tuple(found)


def _described(operation: Operation, scope: Scope, node: Node, flowing: int) -> _Step:
    settings = operation.settings
    if node.op == "BatchNormalization":
        held = tuple(_place_of(scope, node, index) for index in (3, 4))
        more = {"axis": 1, "opset": scope.opset} | ({} if None in held else {"statistics": held})
        return _Step(replace(operation, kind="batch_norm", settings={**settings, **more}))
    if node.op in ("Conv", "ConvTranspose"):
        return _weighted(operation, scope, node, "conv" if node.op == "Conv" else "conv_transpose",
                         _convolution(scope, node))  # fmt: skip
    if node.op == "Gemm" and flowing == 1:
        return _weighted(operation, scope, node, "dense", _gemm(scope, node))
    if node.op == "MatMul" and flowing == 1:
        more = {"channel_axis": -1, "kernel_out_axis": 1, "kernel_in_axis": 0}
        return _weighted(operation, scope, node, "dense", more)
    if node.op == "Transpose" and (order := scope.attribute(node, "perm")) is not None:
        return _Step(replace(operation, kind="reshape", settings={**settings, "permutation": tuple(order.integers(8))}))
    if node.op == "Dropout" and _rate(scope, node) == 0:
        return _Step(replace(operation, kind="identity"))
    if node.op in ARITHMETIC:
        kind: Kind = "elementwise_linear" if flowing == 1 else "add" if node.op in ("Add", "Sub") else "other"
        if node.op == "Div" and scope.constant(node.inputs[-1]) is None:
            kind = "other"
        name = next((name for name in node.inputs if scope.constant(name) is not None), "")
        constant = scope.constant(name)
        return _Step(replace(operation, kind=kind), constant=None if constant is None else (name, constant))
    if node.op == "Cast":
        to = scope.attribute(node, "to")
        dtype = FLOATS.get(0 if to is None else to.integer(3, 0))
        kind = "other" if dtype is None else "identity"  # to whole numbers it is no mere name
        return _Step(replace(operation, kind=kind, settings={**settings, "computes": dtype} if dtype else settings))
    return _Step(replace(operation, kind=KINDS.get(node.op, "other")))


def _rate(scope: Scope, node: Node) -> float | None:
    """What share a Dropout drops, where it is a constant: an attribute before opset 12, then an input."""
    attribute = scope.attribute(node, "ratio")
    if attribute is not None:
        return attribute.float32(2)
    held = scope.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    return float(held.read().reshape(-1)[0]) if held is not None and held.size == 1 else None


def _place_of(scope: Scope, node: Node, index: int) -> Any:
    """Where a constant of a node lies; two nodes with the same place share it."""
    found = scope.place(node.inputs[index]) if index < len(node.inputs) else None
    return None if found is None else (id(found[0].graph), found[1])


def _weighted(operation: Operation, scope: Scope, node: Node, kind: Kind, more: dict[str, Any] | None) -> _Step:
    kernel = scope.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if more is None:
        return _Step(operation)
    settings = {**operation.settings, **more}
    if kernel is None:
        return _Step(replace(operation, kind=kind, settings=settings))
    weights: dict[str, Callable[[], NDArray[Any]]] = {"kernel": kernel.read}
    settings |= {"kernel_name": node.inputs[1], "dtype": kernel.dtype, "kernel_shape": kernel.shape}
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = scope.constant(node.inputs[2])
        settings["bias_name"] = node.inputs[2]
        if bias is not None:
            weights["bias"] = bias.read
    if "rank" in more:
        settings["rank"] = len(kernel.shape) - 2
        same = more["same"] and any(length != 1 for length in kernel.shape[2:])  # which pads nothing for one tap
        settings["pads"] = more["pads"] or same
    return _Step(replace(operation, kind=kind, weights=weights, settings=settings), _place_of(scope, node, 1))


def _convolution(scope: Scope, node: Node) -> dict[str, Any]:
    transposed = node.op == "ConvTranspose"
    groups = scope.attribute(node, "group")
    padding, strides = scope.attribute(node, "pads"), scope.attribute(node, "strides")
    mode = scope.attribute(node, "auto_pad")
    pads = any(padding.integers(8)) if padding is not None else False
    return {
        "rank": 0,
        "groups": 1 if groups is None else groups.integer(3, 1),
        "channel_axis": 1,
        "strides": () if strides is None else tuple(strides.integers(8)),
        "pads": pads,
        "same": mode is not None and mode.text(4).startswith("SAME"),
        "kernel_out_axis": 1 if transposed else 0,
        "kernel_in_axis": 0 if transposed else 1,
    }


def _gemm(scope: Scope, node: Node) -> dict[str, Any] | None:
    def number(name: str) -> float:
        found = scope.attribute(node, name)
        value = None if found is None else found.float32(2)
        return 1.0 if value is None else value

    def flag(name: str) -> bool:
        found = scope.attribute(node, name)
        return found is not None and found.integer(3, 0) != 0

    if flag("transA") or scope.constant(node.inputs[1]) is None:
        return None
    out = 0 if flag("transB") else 1
    return {
        "channel_axis": -1, "kernel_out_axis": out, "kernel_in_axis": 1 - out,
        "alpha": number("alpha"), "beta": number("beta"),
    }  # fmt: skip
