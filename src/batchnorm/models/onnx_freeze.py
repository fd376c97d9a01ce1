"""ONNX models whose batch normalizations are taken out of training mode: attributes and outputs, nothing else."""

# onnx' generated protocol buffers are partly unknown to a type checker.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchnorm.errors import ModelFileError, require

from .onnx_beside import copied
from .onnx_edit import all_nodes, subgraphs

__all__ = ["freeze", "without_data", "write"]

PURPOSE = "Changing .onnx files"
NORM = "BatchNormalization"
BY_OUTPUTS, BY_ATTRIBUTE = 7, 14
MEAN, VARIANCE = 3, 4


def without_data(path: str) -> Any:
    """The ModelProto of a file; arrays that lie in other files stay there."""
    onnx: Any = require("onnx", "onnx", PURPOSE)
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ModelFileError(f"{path}: onnx cannot load it ({type(error).__name__}: {text}).") from error


def write(model: Any, source: str, goal: Path, place: Path) -> None:
    """Write a model to ``place``, which will be ``goal``; its other files, if it has any, are copied beside it.

    Raises
    ------
    Refused
        See `batchnorm.models.onnx_beside.copied`.
    """
    with copied(model, Path(source), goal):
        place.write_bytes(model.SerializeToString())


def freeze(model: Any) -> dict[str, str | None]:
    """Take every batch normalization out of training mode, in place.

    Returns
    -------
    dict
        Node -> None where it was changed; else why it was not. Those that were in inference mode are left out.

    Notes
    -----
    In inference the moving statistics stay what they are: whatever used the new mean and variance (the second and third
    output) takes the old ones.
    """
    versions = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    opset = max(versions, default=1)
    found: dict[str, str | None] = {}
    for holder, node in _nodes(model):
        if node.op_type == NORM and node.domain in ("", "ai.onnx") and _is_training(node, opset):
            title = node.name or node.output[0]
            why = _batch_outputs_used(holder, node)
            found[title] = why
            if why is None:
                _to_inference(holder, node, opset)
    return found


def _nodes(model: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [model.graph, *model.functions]
    while waiting:
        holder = waiting.pop(0)
        for node in list(holder.node):
            yield holder, node
            for attribute in node.attribute:
                waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _is_training(node: Any, opset: int) -> bool:
    values = {each.name: each.i for each in node.attribute}
    if opset >= BY_ATTRIBUTE:
        return bool(values.get("training_mode", 0))
    if opset >= BY_OUTPUTS:
        return any(node.output[1:])
    return not values.get("is_test", 0)


def _users(holder: Any, value: str) -> bool:
    outputs = {each if isinstance(each, str) else each.name for each in holder.output}
    outputs |= {each.name for inner in subgraphs(holder) for each in inner.output}
    return value in outputs or any(value in node.input for node in all_nodes(holder))


def _batch_outputs_used(holder: Any, node: Any) -> str | None:
    used = [value for value in node.output[3:] if value and _users(holder, value)]
    return f"the graph uses the batch's own statistics ({used[0]}), which inference does not compute" if used else None


def _to_inference(holder: Any, node: Any, opset: int) -> None:
    helper: Any = require("onnx.helper", "onnx", PURPOSE)
    for attribute in [each for each in node.attribute if each.name in ("training_mode", "is_test")]:
        node.attribute.remove(attribute)
    if opset < BY_OUTPUTS:
        node.attribute.append(helper.make_attribute("is_test", 1))
    at = list(holder.node).index(node)
    for place, value in zip((MEAN, VARIANCE), node.output[1:3], strict=False):
        if value and _users(holder, value):
            holder.node.insert(at, helper.make_node("Identity", [node.input[place]], [value], name=f"{value}_kept"))
            at += 1
    node = holder.node[at]
    del node.output[1:]
