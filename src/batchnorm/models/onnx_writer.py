"""Statistics into a copy of an ONNX file: their tensors change, and nothing else of the model."""

# pyright: reportUnknownMemberType=false
# onnx' messages are generated, and have no types.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm.core.record import LayerRecord
from batchnorm.errors import Refused, require

from .marker import KEY
from .modelfile import Pairs, rounded
from .onnx_beside import copied

__all__ = ["put_mark", "shared", "write"]

MEAN, VARIANCE = 3, 4
OTHER_HOMES = ("float_data", "double_data", "int32_data", "external_data", "data_location")
"""Where else a tensor may keep its numbers."""


def write(
    path: str,
    held: bytes | None,
    records: Sequence[LayerRecord],
    calls: Mapping[str, Sequence[str]],
    target: Path,
    statistics: Pairs,
) -> None:
    """See `ModelFile.writer`; ``calls`` are the outputs of each layer's nodes.

    Statistics become tensors in the file, also where they lay beside it; what else lies beside it stays there, and is
    copied where ``target`` is in another folder.

    Raises
    ------
    Refused
        A layer is no BatchNormalization of the outermost graph; another file of the same name lies beside the target.
    """
    onnx: Any = require("onnx", "onnx", "Writing .onnx files")
    model: Any = onnx.load(path, load_external_data=False) if held is None else onnx.load_from_string(held)
    nodes = {node.output[0]: node for node in model.graph.node if node.output}
    known = {record.name: record for record in records}
    for name, pair in statistics.items():
        if name not in calls:
            raise Refused(f"{path}: {name} is not one BatchNormalization of the outermost graph; it stays as it is.")
        own = [nodes[output] for output in calls[name]]
        for place, values in zip((MEAN, VARIANCE), pair, strict=True):
            _put(onnx, model, own, place, rounded(known[name], values))
    with nullcontext() if held is not None else copied(model, Path(path), target):
        target.write_bytes(model.SerializeToString())


def put_mark(place: Path, text: str) -> None:
    """Put a mark into the model's ``metadata_props``."""
    onnx: Any = require("onnx", "onnx", "Writing .onnx files")
    model: Any = onnx.load(place, load_external_data=False)
    entry = next((each for each in model.metadata_props if each.key == KEY), None) or model.metadata_props.add()
    entry.key, entry.value = KEY, text
    place.write_bytes(model.SerializeToString())


def shared(records: Iterable[LayerRecord], inputs: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Layer -> the first layer whose statistics it shares: one layer, called twice.

    Equal tensors that an exporter joined because no training has moved them yet are no shared layer.
    """
    first: dict[tuple[str, str], str] = {}
    found: dict[str, str] = {}
    for record in records:
        if record.name in inputs and not record.untouched():
            owner = first.setdefault(inputs[record.name], record.name)
            if owner != record.name:
                found[record.name] = owner
    return found


def _put(onnx: Any, model: Any, own: Sequence[Any], place: int, values: Any) -> None:
    """Other numbers as the input of these nodes: in its tensor if nobody else takes it, or in a new one."""
    graph = model.graph
    name = own[0].input[place]
    tensor = next((each for each in graph.initializer if each.name == name), None)
    ours = {id(node) for node in own}
    others = sum(
        given == name and not (id(node) in ours and number == place)
        for node in _all_nodes(graph)
        for number, given in enumerate(node.input)
    )
    others += any(output.name == name for output in graph.output)
    made = onnx.numpy_helper.from_array(np.asarray(values), name)
    if tensor is not None and not others:
        tensor.raw_data = made.raw_data
        for field in OTHER_HOMES:
            tensor.ClearField(field)
        return
    made.name = _new_name(graph, name)
    graph.initializer.append(made)
    for node in own:
        node.input[place] = made.name


def _all_nodes(graph: Any) -> Iterable[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _all_nodes(inner)


def _new_name(graph: Any, name: str) -> str:
    taken = {each.name for each in graph.initializer} | {output for node in graph.node for output in node.output}
    number = 2
    while f"{name}#{number}" in taken:
        number += 1
    return f"{name}#{number}"
