"""Changed copies of ONNX models, made with the onnx package: folded, frozen. External data stay in a file beside."""

# onnx' generated protocol buffers are partly unknown to a type checker.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from batchnorm.core.graph import Operation
from batchnorm.errors import ModelFileError, Refused, require

from .change import Change

__all__ = ["all_nodes", "changed", "fold", "in_other_files", "loaded", "save", "subgraphs"]

PURPOSE = "Changing .onnx files"
FEWEST_VERSIONS = 4
FOLDED = "_folded"
NORM = "BatchNormalization"


def loaded(path: str, held: bytes | None = None) -> Any:
    """The ModelProto of a file, external data included, or of its bytes."""
    onnx: Any = require("onnx", "onnx", PURPOSE)
    try:
        return onnx.load(path) if held is None else onnx.load_from_string(held)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ModelFileError(f"{path}: onnx cannot load it ({type(error).__name__}: {text}).") from error


def in_other_files(path: str) -> set[str]:
    """The names of the arrays of a model that lie in files beside it."""
    onnx: Any = require("onnx", "onnx", PURPOSE)
    helper: Any = require("onnx.external_data_helper", "onnx", PURPOSE)
    model = onnx.load(path, load_external_data=False)
    return {each.name for each in helper._get_all_tensors(model) if helper.uses_external_data(each)}


def save(model: Any, place: Path, outside: set[str]) -> None:
    """Write a model; what is named, and what folding made, into a file ``<name>.data`` beside it."""
    onnx: Any = require("onnx", "onnx", PURPOSE)
    helper: Any = require("onnx.external_data_helper", "onnx", PURPOSE)
    for tensor in helper._get_all_tensors(model) if outside else ():
        if (tensor.name in outside or FOLDED in tensor.name) and tensor.HasField("raw_data"):
            helper.set_external_data(tensor, f"{place.name}.data")
    onnx.save(model, str(place))


def changed(original: Any, change: Callable[[Any], None]) -> Any:
    """A copy of a model, changed; it passes onnx' checker where the original does.

    Raises
    ------
    Refused
        The checker finds a fault in the copy that the original had not.
    """
    onnx: Any = require("onnx", "onnx", PURPOSE)
    copy = type(original)()
    copy.CopyFrom(original)
    change(copy)
    before = _fault(onnx, original)
    after = _fault(onnx, copy)
    if after is not None and before is None:
        raise Refused(f"the changed model would not pass onnx' checker ({after}).")
    return copy


def _fault(onnx: Any, model: Any) -> str | None:
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker's own, and what a model of over 2 GB or of an unknown version raises
        return " ".join(str(error).split())[:300]
    return None


def fold(model: Any, changes: Sequence[Change]) -> None:
    """Put new kernels and biases in, and take the batch normalizations out; in place."""
    helper: Any = require("onnx.numpy_helper", "onnx", PURPOSE)
    graph = model.graph
    gone = {value for change in changes for norm in change.norms for value in norm.outputs}
    names = _taken(graph)
    for change in changes:
        _replace_weights(model, change, helper, names)
    through = {norm.outputs[0]: norm.inputs[0] for change in changes for norm in change.norms}
    norms = {value for value in through if value in gone}
    kept = [node for node in graph.node if not (node.op_type == NORM and node.output and node.output[0] in norms)]
    removed = [node for node in graph.node if node.op_type == NORM and node.output and node.output[0] in norms]
    constants = [name for node in removed for name in node.input[1:]]
    del graph.node[:]
    graph.node.extend(kept)
    _bypass(graph, through)
    _drop_unused(graph, constants)


def _taken(graph: Any) -> set[str]:
    values = {name for node in graph.node for name in (*node.input, *node.output)}
    return values | {each.name for each in (*graph.initializer, *graph.input)}


def _replace_weights(model: Any, change: Change, helper: Any, names: set[str]) -> None:
    graph = model.graph
    settings = change.operation.settings
    node = _node(graph, change.operation)
    old = [node.input[1]]
    node.input[1] = _added(model, change.kernel, f"{node.input[1]}{FOLDED}", helper, names)
    if settings.get("bias_node") is not None:
        adding = _maker(graph, change.operation.outputs[0])
        at = list(adding.input).index(settings["bias_name"])
        old.append(adding.input[at])
        adding.input[at] = _added(model, change.bias, f"{settings['bias_name']}{FOLDED}", helper, names)
    elif node.op_type == "MatMul":
        _add_after(model, node, _added(model, change.bias, f"{node.input[1]}_bias", helper, names), names)
    else:
        bias = _added(model, change.bias, f"{node.input[1]}_bias", helper, names)
        if len(node.input) > 2:
            old.append(node.input[2])
            node.input[2] = bias
        else:
            node.input.append(bias)
    _drop_unused(graph, old)


def _node(graph: Any, operation: Operation) -> Any:
    """The node with the kernel: that of MatMul where an Add after it is part of the operation."""
    found = _maker(graph, operation.outputs[0])
    if operation.settings.get("bias_node") is not None:
        return next(maker for name in found.input if (maker := _maker(graph, name)) is not None)
    return found


def _maker(graph: Any, value: str) -> Any:
    return next((node for node in graph.node if value in node.output), None)


def _add_after(model: Any, node: Any, bias: str, names: set[str]) -> None:
    """A MatMul without a bias gets an Add; the product takes another name, so that what uses it needs no change."""
    helper: Any = require("onnx.helper", "onnx", PURPOSE)
    output = node.output[0]
    product = _free(f"{output}_product", names)
    node.output[0] = product
    add = helper.make_node("Add", [product, bias], [output], name=_free(f"{node.name or output}_bias", names))
    at = list(model.graph.node).index(node)
    model.graph.node.insert(at + 1, add)


def _added(model: Any, array: NDArray[Any], name: str, helper: Any, names: set[str]) -> str:
    free = _free(name, names)
    model.graph.initializer.append(helper.from_array(array, free))
    if model.ir_version < FEWEST_VERSIONS:  # there every initializer is an input, too
        maker: Any = require("onnx.helper", "onnx", PURPOSE)
        tensor = model.graph.initializer[-1]
        model.graph.input.append(maker.make_tensor_value_info(free, tensor.data_type, list(array.shape)))
    return free


def _free(name: str, names: set[str]) -> str:
    free, number = name, 2
    while free in names:
        free, number = f"{name}_{number}", number + 1
    names.add(free)
    return free


def _bypass(graph: Any, through: Mapping[str, str]) -> None:
    """What took the output of a batch normalization takes its input; an output of the model keeps its name."""
    outputs = {each.name for each in graph.output}

    def source(value: str) -> str:
        while value in through:
            value = through[value]
        return value

    renamed = {source(value): value for value in through if value in outputs}
    for node in all_nodes(graph):
        for at, name in enumerate(node.input):
            node.input[at] = renamed.get(source(name), source(name))
        for at, name in enumerate(node.output):
            node.output[at] = renamed.get(name, name)
    for inner in subgraphs(graph):
        for each in inner.output:
            each.name = renamed.get(source(each.name), source(each.name))
    gone = {*through, *renamed} - set(renamed.values())
    stale = [info for info in graph.value_info if info.name in gone]
    for info in stale:
        graph.value_info.remove(info)


def all_nodes(graph: Any) -> Iterable[Any]:
    """The nodes of a graph or function, and those of their branches and loops."""
    yield from graph.node
    for inner in subgraphs(graph):
        yield from inner.node


def subgraphs(graph: Any) -> Iterable[Any]:
    """The branches and loops of a graph or function, however deep."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield inner
                yield from subgraphs(inner)


def _drop_unused(graph: Any, names: Iterable[str]) -> None:
    """Take out constants that nothing uses any more."""
    used = {name for node in all_nodes(graph) for name in node.input} | {each.name for each in graph.output}
    used |= {each.name for inner in subgraphs(graph) for each in inner.output}
    for name in dict.fromkeys(names):
        if not name or name in used:
            continue
        for held in (graph.initializer, graph.input, graph.value_info):
            for each in [each for each in held if each.name == name]:
                held.remove(each)
        for node in [node for node in graph.node if list(node.output) == [name] and node.op_type == "Constant"]:
            graph.node.remove(node)
