"""``.safetensors``: a JSON header and raw bytes, read without the package of that name.

The header is bounded and checked before anything it says is used, and of the rest only the arrays of batch
normalizations are read: listing a file costs as much as its header, whatever its size.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord

from .marker import KEY, marked
from .modelfile import ModelFile, Pairs, quoted, rounded, unreadable
from .patching import Patch, copied
from .state_dict import Tensor, natural, norms_among, statistics_names

__all__ = ["arrays_of_shards", "mark", "named_arrays", "read", "read_index"]

MOST_HEADER = 100_000_000  # the format's own limit
ALIGNED = 8
"""Bytes that the length of a header is a multiple of, filled with spaces, as the format's own writer does."""
MOST_INDEX = 64 << 20
MOST_NAMES = 1_000_000
AGAIN = "Save or download the file again"
# Types smaller than a byte are left out: no batch normalization is stored in them.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    **{f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    "BOOL": np.dtype("?"),
}


def read(path: str) -> ModelFile:
    """The batch normalizations of a ``.safetensors`` file."""
    tensors, metadata = _tensors(Path(path), path)
    found = _model(path, tensors, metadata)
    layers = marked(found.layers, metadata.get(KEY))
    return replace(found, layers=layers, writer=partial(_write, path, layers), marker=mark)


def mark(place: Path, text: str) -> None:
    """Put a mark into the header's ``__metadata__``, the place for notes; the arrays follow as they were."""
    new = place.with_name(f"{place.name}.new")
    with place.open("rb") as source, new.open("wb") as target:
        header = _json(source.read(int.from_bytes(source.read(8), "little")), os.fspath(place), "the header")
        # Libraries that read metadata at all want to find the framework there.
        own = header.pop("__metadata__", None) or {"format": "pt"}
        packed = json.dumps({"__metadata__": own | {KEY: text}, **header}, separators=(",", ":")).encode()
        packed += b" " * (-len(packed) % ALIGNED)
        target.write(len(packed).to_bytes(8, "little") + packed)
        shutil.copyfileobj(source, target)
    os.replace(new, place)


def _write(path: str, records: Sequence[LayerRecord], target: Path, statistics: Pairs) -> None:
    """A copy of a file with new statistics; see `ModelFile.writer`."""
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = _json(stream.read(length), path, "the header")
    header.pop("__metadata__", None)
    names = statistics_names(header)
    patches: list[Patch] = []
    for record in records:
        for name, values in zip(names[record.name], statistics.get(record.name, ()), strict=False):
            patches.append((8 + length + header[name]["data_offsets"][0], rounded(record, values).tobytes()))
    copied(path, target, patches)


def read_index(path: str) -> ModelFile:
    """Those of all shards that a ``.safetensors.index.json`` names; they lie beside it, under plain names."""
    return _model(path, *_of_shards(path))


def named_arrays(path: str) -> list[dict[str, Tensor]]:
    """Every array of a file."""
    return [_tensors(Path(path), path)[0]]


def arrays_of_shards(path: str) -> list[dict[str, Tensor]]:
    """Every array of the shards that an index names."""
    return [_of_shards(path)[0]]


def _of_shards(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with open(path, "rb") as stream:
        index = _json(stream.read(MOST_INDEX), path, "the index")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise unreadable(path, "the index has no weight_map", AGAIN)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    for name in dict.fromkeys(cast("dict[str, Any]", weight_map).values()):
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise unreadable(path, f"the index names {quoted(name)}, which is no file beside it")
        shard = Path(path).with_name(name)
        if not shard.is_file():
            raise unreadable(path, f"the index names {quoted(name)}, which is not there", "Copy all files")
        held, metadata = _tensors(shard, path)
        tensors.update(held)
    return tensors, metadata


def _model(path: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> ModelFile:
    # The header is sorted by type and then by name, so that its order tells nothing of the model's.
    ordered = {name: tensors[name] for name in sorted(tensors, key=natural)}
    found = norms_among(ordered, mlx=metadata.get("format") == "mlx")
    return ModelFile(
        path=path, format="safetensors", layers=found.layers, other_layers=found.other_layers, notes=found.notes
    )


def _tensors(file: Path, path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > MOST_HEADER:
            raise unreadable(path, f"its header claims {length:,} bytes, more than the format allows", AGAIN)
        if size < 8 + length:
            raise unreadable(path, f"truncated: its header claims {length:,} bytes of a file of {size:,}", AGAIN)
        header = _json(stream.read(length), path, "the header")
    metadata = header.pop("__metadata__", {})
    if len(header) > MOST_NAMES:
        raise unreadable(path, f"its header names {len(header):,} arrays, more than any model has")
    tensors = dict(_entries(header, file, 8 + length, size, path))
    return tensors, cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}


def _entries(header: dict[str, Any], file: Path, start: int, size: int, path: str) -> Iterator[tuple[str, Tensor]]:
    left = size - start
    for name, entry in header.items():
        match entry:
            case {"dtype": str(code), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
                lengths: list[Any] = list(shape)
            case _:
                raise unreadable(path, f"the header's entry of {quoted(name)} is no array: {quoted(entry)}", AGAIN)
        if not all(type(length) is int and 0 <= length < 1 << 48 for length in lengths) or len(lengths) > 64:
            raise unreadable(path, f"{quoted(name)} has shape {quoted(lengths)}, which is none", AGAIN)
        dtype = DTYPES.get(code)
        if not 0 <= begin <= end or start + end > size:
            raise unreadable(path, f"truncated: {quoted(name)} ends at byte {start + end:,} of {size:,}", AGAIN)
        left -= end - begin
        if left < 0:
            raise unreadable(path, "its arrays overlap: together they are longer than the file", AGAIN)
        if dtype is None:
            continue
        if math.prod(lengths) * dtype.itemsize != end - begin:
            raise unreadable(
                path, f"{quoted(name)} is {code} of shape {quoted(lengths)} in {end - begin:,} bytes, which contradicts"
            )
        yield (
            name,
            Tensor(tuple(lengths), dtype.name, partial(_array, file, start + begin, end - begin, dtype, lengths)),
        )


def _array(file: Path, at: int, size: int, dtype: np.dtype[Any], shape: list[int]) -> NDArray[Any]:
    with file.open("rb") as stream:
        stream.seek(at)
        data = stream.read(size)
    if len(data) < size:
        raise unreadable(os.fspath(file), "it became shorter while it was read")
    return np.frombuffer(data, dtype).reshape(shape)


def _json(data: bytes, path: str, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise unreadable(path, f"{what} is no JSON ({quoted(str(error))[1:-1]})", AGAIN) from None
    if not isinstance(document, dict):
        raise unreadable(path, f"{what} is {quoted(document)}, no JSON object", AGAIN)
    return cast("dict[str, Any]", document)
