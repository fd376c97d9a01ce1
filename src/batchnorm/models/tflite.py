"""``.tflite`` files, read without TensorFlow. Their converter folds every batch normalization.

What is left is at most a multiplication and an addition by channel; the names of tensors tell where they came from.
Where both went into a convolution, nothing can be told apart, and the record says only that there was one.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord
from batchnorm.engines.session import Lazy, Session

from .flatbuffer import FlatError
from .keras_records import numbered
from .modelfile import ModelFile, quoted, unreadable
from .tflite_graph import Graph, Operator, graphs

__all__ = ["read"]

# bn/batchnorm/mul_1 and bn/FusedBatchNormV3, at any depth, with the number that makes a repeated name its own.
WRITTEN_OUT = re.compile(r"(?P<scope>[^;]*?)/?\bbatchnorm(_\d+)?/(mul|add|sub|Rsqrt|Neg)(_\d+)?\d*$")
FUSED = re.compile(r"(?P<scope>[^;]*?)/?FusedBatchNorm(V[23])?(_\d+)?\d*$")
NAMED = re.compile(r"(?P<scope>(?:[^;]*/)?[^/;]*batch_?norm(?:alization)?[^/;]*)(?:/[^;]*)?$", re.IGNORECASE)
LINEAR = {
    "CONV_2D": 0, "CONV_3D": 4, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0,
    "CONV_3D_TRANSPOSE": 3,
}  # fmt: skip
FOLDED_NOTE = (
    "The converter to LiteRT folds batch normalizations: their statistics, epsilon and momentum are not in the file. "
    "{} kept a scale (shown as gamma) and a shift (as beta) of their own"
)
MERGED_NOTE = "; what {} did is part of the weights of the operator that their kind names, and cannot be taken out"
TOGETHER_NOTE = "{} share one multiplication and addition, so that neither's scale and shift is known"
QUANTIZED_NOTE = "The constants are quantized: scales and shifts are shown to the precision of their integers"


@dataclass(frozen=True, slots=True)
class Affine:
    """A multiplication by channel and the addition behind it."""

    mul: Operator
    add: Operator
    scale: NDArray[Any]
    shift: NDArray[Any]
    constants: tuple[int, int]
    x: int


@dataclass(slots=True)
class Found:
    """What a walk over the graph has found, by the scope in the names."""

    records: dict[str, LayerRecord] = field(default_factory=dict[str, LayerRecord])
    places: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    together: list[str] = field(default_factory=list[str])
    quantized: bool = False


def read(path: str) -> ModelFile:
    """What is left of the batch normalizations of a ``.tflite`` file.

    Returns
    -------
    ModelFile
        Records without statistics: ``kind`` says what a layer was folded into; ``gamma`` and ``beta`` are the
        effective scale and shift, where the file still holds them.

    Raises
    ------
    ModelFileError
        The file is damaged.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _model(path, graphs(data)[0])
        except (FlatError, struct.error, OverflowError) as error:
            raise unreadable(path, f"damaged ({quoted(str(error))[1:-1]})", "Save or download the file again") from None


def _model(path: str, graph: Graph) -> ModelFile:
    found = _search(graph)
    records = numbered(found.records.values())
    places = {record.name: place for record in records if (place := found.places.get(record.name)) is not None}
    names = tuple(record.name for record in records)
    return ModelFile(
        path=path,
        format="tflite",
        layers=records,
        other_layers=() if records else tuple(dict.fromkeys(each.op for each in graph.operators)),
        notes=tuple(_notes(found)),
        runner=Lazy(partial(_session, path, names, places)),
    )


def _session(path: str, names: tuple[str, ...], places: dict[str, tuple[int, int]]) -> Session:
    from batchnorm.engines.litert import open_file

    return open_file(path, names, places)


def _notes(found: Found) -> Iterator[str]:
    if not found.records:
        return
    merged = [name for name, record in found.records.items() if record.gamma is None and name not in found.together]
    kept = sum(record.gamma is not None for record in found.records.values())
    note = FOLDED_NOTE.format(f"{kept} of {len(found.records)}")
    yield note + (MERGED_NOTE.format(f"the other {len(merged)}") if merged else "")
    if found.together:
        yield TOGETHER_NOTE.format(" and ".join(map(quoted, found.together)))
    if found.quantized:
        yield QUANTIZED_NOTE


def _search(graph: Graph) -> Found:
    """One pass in the order of the operators; a layer counts where its names come up first."""
    found = Found()
    taken: set[int] = set()
    for operator in graph.operators:
        affine = _affine(graph, operator)
        if affine is not None:
            taken.add(id(affine.add))
            _keep_affine(graph, affine, found)
        elif operator.op in LINEAR and id(operator) not in taken:
            _keep_merged(graph, operator, found)
    return found


def _keep_affine(graph: Graph, affine: Affine, found: Found) -> None:
    numbers = (*affine.constants, *affine.mul.outputs, *affine.add.outputs)
    scopes = [scope for scope in _scopes(graph.names(numbers)) if scope not in found.records]
    channels = max(affine.scale.size, affine.shift.size)
    if len(scopes) > 1:
        found.together += [scope for scope in scopes if scope not in found.together]
    for scope in scopes:
        alone = len(scopes) == 1 and min(affine.scale.size, affine.shift.size) in (1, channels)
        record = _record(scope, f"{affine.mul.op}/{affine.add.op} (folded)", channels, affine.scale.shape)
        if alone:
            scale, shift = (np.broadcast_to(part.reshape(-1), (channels,)) for part in (affine.scale, affine.shift))
            record = record.replace(gamma=scale, beta=-shift if affine.add.op == "SUB" else shift)
            if not (affine.mul.activated or affine.add.activated):
                found.places[scope] = (affine.x, affine.add.outputs[0])
            found.quantized |= graph.is_quantized(affine.constants[0])
        found.records[scope] = record


def _keep_merged(graph: Graph, operator: Operator, found: Found) -> None:
    weights = operator.inputs[1] if len(operator.inputs) > 1 else -1
    if not graph.is_constant(weights):
        return
    constants = tuple(number for number in operator.inputs if graph.is_constant(number))
    shape = graph.tensors[weights].shape
    axis = LINEAR[operator.op]
    if len(shape) <= axis or shape[axis] < 1:
        return
    for scope in _scopes(graph.names((*constants, *operator.outputs))):
        if scope not in found.records:
            found.records[scope] = _record(scope, f"{operator.op} (folded)", shape[axis], ())


def _record(scope: str, kind: str, channels: int, shape: tuple[int, ...]) -> LayerRecord:
    long = [place for place, length in enumerate(shape) if length > 1]
    last = not long or long[0] == len(shape) - 1
    return LayerRecord(
        name=scope,
        kind=kind,
        channels=channels,
        axis=-1 if last else long[0],
        dtype="float32",
        epsilon=None,
        epsilon_source="unknown",
        mode="inference",
    )


def _affine(graph: Graph, mul: Operator) -> Affine | None:
    """The multiplication by a vector that this operator is, with the addition of one behind it."""
    scaled = _by_constant(graph, mul) if mul.op == "MUL" else None
    users = graph.users.get(mul.outputs[0], []) if scaled is not None and mul.outputs else []
    if scaled is None or len(users) != 1 or users[0].op not in ("ADD", "SUB") or mul.activated:
        return None
    shifted = _by_constant(graph, users[0])
    if shifted is None or (users[0].op == "SUB" and shifted[1] != users[0].inputs[1]) or not users[0].outputs:
        return None
    return Affine(mul, users[0], scaled[0], shifted[0], (scaled[1], shifted[1]), scaled[2])


def _by_constant(graph: Graph, operator: Operator) -> tuple[NDArray[Any], int, int] | None:
    """The vector that an operator takes beside data, its tensor, and the tensor of the data."""
    if len(operator.inputs) != 2:
        return None
    for data, number in (operator.inputs, operator.inputs[::-1]):
        if graph.is_constant(number) and not graph.is_constant(data):
            shape = graph.tensors[number].shape
            if math.prod(shape) < 1:
                return None
            array = graph.constant(number)
            return None if array is None else (array, number, data)
    return None


def _scopes(names: list[str]) -> list[str]:
    """The layers that names tell of, in their order and once each."""
    scopes: dict[str, None] = {}
    for name in names:
        match = WRITTEN_OUT.match(name) or FUSED.match(name) or NAMED.match(name)
        if match is not None:
            scopes[match["scope"] or "batch_normalization"] = None
    return list(scopes)
