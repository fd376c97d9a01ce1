"""``.pt2``, what torch.export.save writes: a zip of a JSON graph and raw weights, read without PyTorch.

The sample inputs, and weights of types that have no raw form, are pickles; they are never opened.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from batchnorm.core.calibration import Bench
from batchnorm.core.graph import Graph, LazyGraph
from batchnorm.core.record import LayerRecord
from batchnorm.engines.session import Lazy, Session
from batchnorm.errors import BatchnormError, Refused

from .archive import Archive
from .keras_records import numbered
from .marker import KEY, marked
from .modelfile import ModelFile, Pairs, quoted, rounded, unreadable
from .patching import Patch, patched_zip, with_member
from .pt2_graph import OPERATORS, Json, Norm, norms_of
from .pt2_operations import graph_of
from .state_dict import COUNTER, MOST_UPDATES

__all__ = ["DTYPES", "graph_member", "read"]

NEWEST_SCHEMA = 8
MOST_CHANNELS = 1 << 24
MOST_ELEMENTS = 1 << 26
MARK = f"extra/{KEY}"
AGAIN = "Save it again with torch.export.save, or download it again"
OLD_GRAPH = "serialized_exported_program.json"
# ScalarType of PyTorch's schema.
DTYPES: dict[Any, np.dtype[Any]] = {
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f2"),
    7: np.dtype("<f4"),
    8: np.dtype("<f8"),
    13: np.dtype(ml_dtypes.bfloat16),
}
ARRAYS_NOTE = "The weights of this file are stored as a pickle, which is not opened: only the settings are shown"
SOME_NOTE = "{} of {} batch normalizations have arrays that the file does not hold as raw numbers"
MULTIPLE_NOTE = "The archive holds {} programs; {} is read"


def read(path: str, stream: BinaryIO) -> ModelFile:
    """The batch normalizations of an exported program."""
    archive = Archive(stream, path)
    with _guard(path):
        return _model(path, archive)


@contextlib.contextmanager
def _guard(path: str) -> Generator[None]:
    try:
        yield
    except BatchnormError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        detail = quoted(f"{type(error).__name__}: {error}")[1:-1]
        raise unreadable(path, f"damaged, or no exported program ({detail})", AGAIN) from None


def _model(path: str, archive: Archive) -> ModelFile:
    graph_name, root, notes = graph_member(path, archive.names())
    program: Json = json.loads(archive.text(graph_name))
    _check_schema(path, program)
    weights = _Weights(path, archive, root)
    notes += [] if weights.entries or graph_name != OLD_GRAPH else [ARRAYS_NOTE]
    found, others = norms_of(program["graph_module"])
    mark = f"{root}{MARK}"
    text = archive.text(mark) if mark in archive.names() else None
    records = marked(numbered(weights.record(norm) for norm in found), text)
    missing = sum(norm.mean is not None and each.moving_mean is None for norm, each in zip(found, records, strict=True))
    if missing and ARRAYS_NOTE not in notes:
        notes.append(SOME_NOTE.format(missing, len(records)))
    places = {record.name: norm.calls for record, norm in zip(records, found, strict=True) if norm.calls}
    names = tuple(record.name for record in records)
    return ModelFile(
        path=path,
        format="pt2",
        layers=records,
        other_layers=others,
        notes=tuple(notes),
        runner=Lazy(partial(_session, path, names, places)),
        lazy_graph=LazyGraph(partial(_graph, path, program["graph_module"], root)),
        bench=partial(_bench, path, records, places, _buffers(records, found)),
        writer=partial(_write, path, records, _buffers(records, found), root),
        marker=partial(_mark, root),
        untouched=_untouched(records, places),
    )


def _mark(root: str, place: Path, text: str) -> None:
    """Put a mark where ``torch.export.save`` puts its ``extra_files``."""
    with_member(place, f"{root}{MARK}", text.encode())


def _buffers(records: Sequence[LayerRecord], found: Sequence[Norm]) -> dict[str, tuple[str, str]]:
    """Layer -> the names of its moving mean and variance in the program's state."""
    pairs = ((each.name, norm.arrays) for each, norm in zip(records, found, strict=True))
    names = {name: (arrays.get("moving_mean"), arrays.get("moving_variance")) for name, arrays in pairs}
    return {name: (mean, variance) for name, (mean, variance) in names.items() if mean and variance}


def _untouched(records: Sequence[LayerRecord], places: Mapping[str, Any]) -> dict[str, str]:
    """Layers whose statistics are not replaced, with the reason."""
    inside = {each.name: "inside a branch or a loop of the graph" for each in records if each.name not in places}
    fixed = {each.name: "the graph normalises it with the batch" for each in records if each.mode != "inference"}
    return inside | fixed


def _bench(
    path: str,
    records: Sequence[LayerRecord],
    places: dict[str, tuple[int, ...]],
    buffers: dict[str, tuple[str, str]],
) -> Bench:
    from batchnorm.engines.program_bench import ProgramBench
    from batchnorm.engines.torch_program import open_program

    program = open_program(path, [record.name for record in records], places, OPERATORS)
    able = [each for each in records if each.name in places and each.name in buffers and each.mode == "inference"]
    return ProgramBench(path, program, [each for each in able if each.moving_mean is not None], buffers)


def _write(
    path: str,
    records: Sequence[LayerRecord],
    buffers: dict[str, tuple[str, str]],
    root: str,
    target: Path,
    statistics: Pairs,
) -> None:
    """A copy of a program with new statistics; see `ModelFile.writer`."""
    members: dict[str, list[Patch]] = {}
    known = {record.name: record for record in records}
    names = [name for pair in buffers.values() for name in pair]
    places = _opened(path, root, lambda weights: {name: weights.place(name) for name in names})
    for name, pair in statistics.items():
        for buffer, values in zip(buffers[name], pair, strict=True):
            if places[buffer] is None:
                raise Refused(f"{path}: the statistics of {name} are not stored as raw numbers, one behind the other.")
            member, start, dtype = places[buffer]
            data = rounded(known[name], values).astype(dtype, copy=False).tobytes()
            members.setdefault(member, []).append((start, data))
    patched_zip(path, target, members)


def _graph(path: str, module: Json, root: str) -> Graph:
    raw: dict[str, bool] = _opened(path, root, lambda weights: {name: weights.is_raw(name) for name in weights.entries})

    def fetch(name: str) -> Callable[[], NDArray[Any]] | None:
        return partial(_opened, path, root, lambda weights: weights.tensor(name)) if raw.get(name) else None

    return graph_of(module, fetch)


def _opened(path: str, root: str, use: Callable[[_Weights], Any]) -> Any:
    """Something of the weights of a file that is opened anew."""
    with open(path, "rb") as stream, _guard(path):
        return use(_Weights(path, Archive(stream, path), root))


def _session(path: str, names: tuple[str, ...], places: dict[str, tuple[int, ...]]) -> Session:
    from batchnorm.engines.torch_program import open_program

    return open_program(path, names, places, OPERATORS)


def graph_member(path: str, names: tuple[str, ...]) -> tuple[str, str, list[str]]:
    """The member with the graph, and the folder that the archive's others lie in."""
    graphs = sorted(name for name in names if "models/" in name and name.endswith(".json"))
    if graphs:
        chosen = next((name for name in graphs if name.endswith("/model.json")), graphs[0])
        notes = [MULTIPLE_NOTE.format(len(graphs), quoted(chosen))] if len(graphs) > 1 else []
        return chosen, chosen[: chosen.rindex("models/")], notes
    if OLD_GRAPH in names:
        return OLD_GRAPH, "", []
    raise unreadable(
        path,
        "a PyTorch archive without a graph; a compiled package holds code and no record of its layers",
        "Save the program itself with torch.export.save",
    )


def _check_schema(path: str, program: Json) -> None:
    major = program["schema_version"]["major"]
    if type(major) is not int or major < 1:
        raise ValueError(f"schema version {major!r}")
    if major > NEWEST_SCHEMA:
        raise unreadable(
            path,
            f"its schema is version {major}, written by a newer PyTorch; {NEWEST_SCHEMA} is the newest that is known",
            "Update batchnorm",
        )


class _Weights:
    """The arrays of a program by their names in it, read when a layer needs them."""

    def __init__(self, path: str, archive: Archive, root: str) -> None:
        self.path = path
        self.archive = archive
        self.entries: dict[str, tuple[str, Json]] = {}
        self.elements_left = MOST_ELEMENTS
        names = archive.names()
        self.is_big = f"{root}byteorder" in names and archive.text(f"{root}byteorder").strip() == b"big"
        for kind in ("weights", "constants"):
            folder = f"{root}data/{kind}/"
            for name in names:
                if name.startswith(folder) and name.endswith("_config.json"):
                    config = json.loads(archive.text(name))["config"]
                    self.entries.update({key: (folder, entry) for key, entry in cast("Json", config).items()})

    def record(self, norm: Norm) -> LayerRecord:
        """A layer's record with its arrays."""
        shapes = {role: shape for role, name in norm.arrays.items() if (shape := self._shape(name)) is not None}
        channels = set(shapes.values())
        if len(channels) > 1 or any(len(shape) != 1 or shape[0] < 1 for shape in channels):
            held = ", ".join(f"{role} {shape}" for role, shape in shapes.items())
            raise unreadable(self.path, f"layer {quoted(norm.name)} should have vectors of one length, and has {held}")
        values: dict[str, Any] = {role: self._array(name) for role, name in norm.arrays.items()}
        known = [
            values[role] for role in ("moving_variance", "moving_mean", "gamma", "beta") if values.get(role) is not None
        ]
        if any(each.dtype.kind not in "fV" for each in known):
            raise unreadable(self.path, f"layer {quoted(norm.name)} has parameters of type {known[0].dtype}")
        record = LayerRecord(
            name=norm.name,
            kind=norm.kind,
            channels=next((shape[0] for shape in channels), 0),
            axis=1,
            dtype=known[0].dtype.name if known else "float32",
            epsilon=norm.epsilon,
            epsilon_source="file",
            averaging="cumulative" if norm.is_cumulative else "exponential",
            # 1 - 0.1 is not quite 0.9: without the noise of the subtraction.
            decay=None if norm.is_cumulative else round(1 - norm.momentum, 12),
            momentum=norm.momentum,
            ddof=1 if norm.mean is not None else None,
            mode=norm.mode,
            source=norm.source,
            **values,
        )
        return self._counted(record, norm)

    def _counted(self, record: LayerRecord, norm: Norm) -> LayerRecord:
        counter = None if norm.prefix is None else self._array(f"{norm.prefix}.{COUNTER}")
        if counter is None or counter.size != 1 or counter.dtype.kind != "i":
            return record
        count = int(counter.reshape(()))
        if not 0 <= count < MOST_UPDATES:
            return record.replace(updates_doubt=f"{COUNTER} is {count}, which no training makes")
        return record.with_updates(count, "num_batches_tracked")

    def place(self, name: str) -> tuple[str, int, np.dtype[Any]] | None:
        """The member that an array lies in, where it begins there, and its type; None where it is not raw."""
        folder, entry = self.entries[name]
        meta = entry["tensor_meta"]
        dtype = DTYPES.get(meta["dtype"])
        strides = [_integer(each) for each in meta["strides"]]
        if entry["use_pickle"] or dtype is None or strides != [1]:
            return None
        order = dtype.newbyteorder(">") if self.is_big else dtype
        return f"{folder}{entry['path_name']}", _integer(meta["storage_offset"]) * dtype.itemsize, order

    def _shape(self, name: str) -> tuple[int, ...] | None:
        if name not in self.entries:
            return None
        sizes = [_integer(each) for each in self.entries[name][1]["tensor_meta"]["sizes"]]
        if any(size < 0 for size in sizes):
            raise ValueError(f"sizes {sizes}")
        return tuple(sizes)

    def _array(self, name: str) -> NDArray[Any] | None:
        shape = self._shape(name)
        if shape is None:
            return None
        folder, entry = self.entries[name]
        meta = entry["tensor_meta"]
        dtype = DTYPES.get(meta["dtype"])
        if entry["use_pickle"] or dtype is None or len(shape) > 1:
            return None
        count = shape[0] if shape else 1
        self.elements_left -= count
        if count > MOST_CHANNELS or self.elements_left < 0:
            raise unreadable(self.path, f"{quoted(name)} claims {count:,} numbers, more than a layer has channels")
        stride = _integer(meta["strides"][0]) if shape else 1
        return self._strided(f"{folder}{entry['path_name']}", dtype, count, stride, _integer(meta["storage_offset"]))

    def is_raw(self, name: str) -> bool:
        """Whether a tensor's numbers lie in the file as they are, one after the other."""
        entry = self.entries[name][1]
        meta = entry["tensor_meta"]
        return not entry["use_pickle"] and meta["dtype"] in DTYPES

    def tensor(self, name: str) -> NDArray[Any]:
        """A whole tensor of any rank."""
        shape = self._shape(name) or ()
        folder, entry = self.entries[name]
        meta = entry["tensor_meta"]
        dtype = DTYPES[meta["dtype"]]
        strides = tuple(_integer(each) for each in meta["strides"])
        if 0 in shape or any(stride < 0 for stride in strides) or len(strides) != len(shape):
            raise ValueError(f"strides {strides} of shape {shape}")
        last = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        flat = self._strided(f"{folder}{entry['path_name']}", dtype, last + 1, 1, _integer(meta["storage_offset"]))
        steps = tuple(stride * dtype.itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(flat, shape, steps).copy()

    def _strided(self, member: str, dtype: np.dtype[Any], count: int, stride: int, offset: int) -> NDArray[Any]:
        """Part of a storage, which several tensors may share."""
        length = ((count - 1) * stride + 1) * dtype.itemsize
        start = offset * dtype.itemsize
        stream, size = self.archive.stream(member)
        with contextlib.closing(stream):
            if stride < 0 or offset < 0 or start + length > size:
                raise ValueError(f"{member} holds {size:,} bytes and should hold {start + length:,}")
            stream.seek(start)
            data = stream.read(length)
        array = np.frombuffer(data, dtype.newbyteorder(">") if self.is_big else dtype)
        array = array[::stride] if stride else np.repeat(array, count)
        return array.astype(dtype)


def _integer(value: Any) -> int:
    """A size as the schema spells it, ``{"as_int": 3}``."""
    number = value["as_int"]
    if type(number) is not int or abs(number) >= 1 << 48:
        raise ValueError(f"{number!r} is no size")
    return number
