"""Keras 3 files: ``.keras`` (zip or folder), ``.weights.h5`` and sharded weights with their ``.weights.json``."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from numpy.typing import NDArray

from batchnorm.core.calibration import Bench
from batchnorm.core.record import LayerRecord

from .archive import MOST_TEXT, Archive
from .hdf5 import Hdf5File
from .hdf5_writer import Hdf5Writer, Wheres
from .keras_config import Config, Layer, read_layers
from .keras_graph import lazy_graph
from .keras_records import counted, ddof_of, norm_record, numbered, roles_of, unknown_record
from .keras_store import Store, Variables
from .marker import KEY, marked
from .modelfile import ModelFile, Runner, quoted, unreadable
from .patching import with_member

__all__ = [
    "bench",
    "load_json",
    "major_version",
    "mark",
    "read_folder",
    "read_shards",
    "read_weights",
    "read_zip",
    "runner",
]

Guess = tuple[LayerRecord, str | None, Wheres]
CONFIG, METADATA, WEIGHTS, INDEX = "config.json", "metadata.json", "model.weights.h5", "model.weights.json"
CUSTOM_NOTE = (
    "The config shows nothing of what {} holds (a custom class or subclassed model): its batch normalizations were "
    "found among the weights, and their epsilon, momentum and axis are unknown"
)
PICKLED = "model.weights.npz"
WEIGHTS_NOTE = "The file holds weights and no config: epsilon, momentum and axis are unknown"
LOWER_BOUND_NOTE = (
    "The optimizer scales the loss and skips steps that overflow; the layers are updated in those too, so that the "
    "numbers of updates are lower bounds"
)
SHARED_NOTE = "{} and {} are one layer, stored once; Keras itself cannot load such a file"
AMBIGUOUS_NOTE = (
    "{} has three arrays: the moving statistics and either gamma or beta; a weight file does not say which, and it "
    "is read as {}"
)


def read_zip(path: str, stream: IO[bytes]) -> ModelFile:
    """A ``.keras`` file, whatever its name."""
    archive = Archive(cast("Any", stream), path)
    names = archive.names()
    if CONFIG not in names or WEIGHTS not in names:
        _refuse_pickled(path, names)
        missing = CONFIG if CONFIG not in names else WEIGHTS
        found = ", ".join(quoted(name) for name in names[:5]) or "nothing"
        raise unreadable(
            path,
            f"a zip archive without {missing}, so no Keras model (it holds {found})",
            "Save the model with model.save('model.keras')",
        )
    config = load_json(archive.text(CONFIG), path, CONFIG)
    metadata = load_json(archive.text(METADATA), path, METADATA) if METADATA in names else {}
    weights, size = archive.stream(WEIGHTS)
    with contextlib.closing(weights):
        store = Store([Hdf5File(cast("Any", weights), size, path).root], path)
        return _whole_model(path, config, store, metadata)


def read_folder(path: str) -> ModelFile:
    """An unzipped ``.keras``: ``config.json`` beside the weights, which may be sharded."""
    with contextlib.ExitStack() as stack:
        config = load_json(_file_bytes(Path(path, CONFIG), path), path, CONFIG)
        whole, index = Path(path, WEIGHTS), Path(path, INDEX)
        if not whole.exists() and not index.exists():
            _refuse_pickled(path, os.listdir(path))
            raise unreadable(path, f"the folder holds {CONFIG} and no {WEIGHTS}", "Copy the whole folder")
        files = [whole] if whole.exists() else _shards(index, path)
        about = Path(path, METADATA)
        metadata = load_json(_file_bytes(about, path), path, METADATA) if about.exists() else {}
        return _whole_model(path, config, _open_store(files, path, stack), metadata)


def _refuse_pickled(path: str, names: Iterable[str]) -> None:
    if PICKLED in names:
        raise unreadable(
            path,
            f"its weights are a {PICKLED}, whose arrays are pickles, and nothing of a file is run",
            "Load it in the Keras that wrote it and save it again with model.save('model.keras')",
        )


def read_weights(path: str, root: Any) -> ModelFile:
    """A ``.weights.h5`` of Keras 3, by the root of its HDF5 file."""
    return _weights_only(path, "weights.h5", Store([root], path))


def read_shards(path: str) -> ModelFile:
    """A ``.weights.json`` and the files it names."""
    with contextlib.ExitStack() as stack:
        store = _open_store(_shards(Path(path), path), path, stack)
        return _weights_only(path, "weights.json", store)


def load_json(text: bytes | str, path: str, what: str) -> Config:
    """A JSON object, or the error that says where it is damaged."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise unreadable(path, f"{what} is damaged ({quoted(str(error))[1:-1]})", "Save the model again") from None
    if not isinstance(value, dict):
        raise unreadable(path, f"{what} holds a {type(value).__name__} where a model's config is an object")
    return cast("Config", value)


def major_version(text: Any) -> int | None:
    """The 3 of "3.15.1"."""
    major = text.partition(".")[0] if isinstance(text, str) else ""
    return int(major) if major.isascii() and major.isdigit() and len(major) < 4 else None


def runner(path: str, records: Sequence[LayerRecord]) -> Runner:
    """What runs the model of a file in Keras, which is imported only then; the model is loaded once."""
    names = tuple(record.name for record in records)

    @functools.cache
    def loaded() -> Runner:
        from batchnorm.engines.keras import open_file

        return open_file(path, names)

    return lambda x, capture: loaded()(x, capture)


def bench(path: str, records: Sequence[LayerRecord]) -> Callable[[], Bench]:
    """What measures the statistics of a file's model in Keras, which is imported only then."""

    def made() -> Bench:
        from batchnorm.engines.keras import load_layers
        from batchnorm.engines.keras_bench import ModelBench

        model, layers = load_layers(path, tuple(record.name for record in records))
        return ModelBench(model, [record for record in records if record.name in layers], layers)

    return made


def _whole_model(path: str, config: Config, store: Store, metadata: Config) -> ModelFile:
    old = (major_version(metadata.get("keras_version")) or 3) < 3
    layers, notes = _without_repeats(read_layers(config), store)
    steps, is_bound = store.iterations()
    records: list[LayerRecord] = []
    places: list[Wheres] = []
    others: list[str] = []
    notes += [LOWER_BOUND_NOTE] if is_bound else []
    for layer in layers:
        if layer.is_norm:
            record, where = _known(path, layer, store, old=old)
            records.append(counted(record, layer, steps, old=old))
            places.append(where)
            continue
        found = list(_hidden(path, layer, store, layers)) if layer.is_opaque else []
        records += [record for record, _, _ in found]
        places += [where for _, _, where in found]
        if found:
            notes.append(CUSTOM_NOTE.format(quoted("/".join(layer.names)) if layer.names else "the model"))
            notes += [note for _, note, _ in found if note]
        elif layer.kind != "InputLayer":
            others += ["/".join(layer.names)] if layer.names else _names_of(store)
    named = marked(numbered(records), metadata.get(KEY))
    return ModelFile(
        path=path,
        format="keras",
        layers=named,
        other_layers=tuple(others),
        notes=tuple(notes),
        runner=runner(path, named),
        lazy_graph=lazy_graph(config, functools.partial(_fetched, path)),
        bench=bench(path, named),
        writer=Hdf5Writer(path, named, places),
        marker=mark,
    )


def mark(place: Path, text: str) -> None:
    """Put a mark beside the version in ``metadata.json``, which Keras writes and reads nothing of."""
    held: Config
    if place.is_dir():
        file = place / METADATA
        held = json.loads(file.read_text("utf-8")) if file.exists() else {}
        file.write_text(json.dumps(held | {KEY: text}), "utf-8")
        return
    with zipfile.ZipFile(place) as archive:
        held = json.loads(archive.read(METADATA)) if METADATA in archive.namelist() else {}
    with_member(place, METADATA, json.dumps(held | {KEY: text}).encode())


def _fetched(path: str, layer: Layer, number: int) -> NDArray[Any]:
    """An array of a layer, out of the file opened anew."""
    with contextlib.ExitStack() as stack:
        if Path(path).is_dir():
            whole, index = Path(path, WEIGHTS), Path(path, INDEX)
            store = _open_store([whole] if whole.exists() else _shards(index, path), path, stack)
        else:
            archive = Archive(cast("Any", stack.enter_context(open(path, "rb"))), path)
            weights, size = archive.stream(WEIGHTS)
            stack.enter_context(contextlib.closing(weights))
            store = Store([Hdf5File(cast("Any", weights), size, path).root], path)
        variables = store.variables(layer.storage, layer.names)
        if variables is None or number not in variables.entries:
            raise unreadable(path, f"layer {quoted('/'.join(layer.names))} has no array {number}", "Save it again")
        return variables.entries[number].read()


def _without_repeats(layers: list[Layer], store: Store) -> tuple[list[Layer], list[str]]:
    """Join a layer object that sits in two models: Keras stores it once, where it comes first, and marks it nowhere."""
    kept: list[Layer] = []
    notes: list[str] = []
    for layer in layers:
        stored = not layer.is_norm or store.variables(layer.storage) is not None
        first = None if stored else next((other for other in kept if other.is_norm and _alike(other, layer)), None)
        if first is None:
            kept.append(layer)
            continue
        first.calls = first.calls + layer.calls
        pair = (quoted("/".join(first.names)), quoted("/".join(layer.names)))
        notes.append(SHARED_NOTE.format(*pair))
    return kept, notes


def _alike(first: Layer, second: Layer) -> bool:
    return _unmarked(first.config) == _unmarked(second.config)


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        settings = cast("Config", value)
        return {key: _unmarked(inner) for key, inner in settings.items() if key != "shared_object_id"}
    return value


def _known(path: str, layer: Layer, store: Store, *, old: bool) -> tuple[LayerRecord, Wheres]:
    roles = roles_of(layer.config)
    name = quoted("/".join(layer.names))
    variables = store.variables(layer.storage, layer.names)
    if variables is None or len(variables) < len(roles):
        found = "none" if variables is None else f"{len(variables)} of {len(roles)}"
        raise unreadable(
            path,
            f"layer {name} should have the arrays {', '.join(roles)} at {quoted('/'.join(layer.storage))}; "
            f"the file holds {found}",
            "A model that was saved before it was built has none: call it once on data, then save; otherwise the "
            "file is damaged",
        )
    arrays = dict(zip(roles, variables.read(len(roles)), strict=True))
    record = norm_record(path, layer, arrays, ddof=ddof_of(layer.config.get("axis"), old=old))
    # This package's layer keeps one more: how much of the initial value is left.
    is_debiased = layer.config.get("statistics") == "debiased" and len(variables) > len(roles)
    return record, variables.statistics(len(roles), 1 if is_debiased else 0)


def _hidden(path: str, layer: Layer, store: Store, layers: list[Layer]) -> Iterator[Guess]:
    """Batch normalizations below a layer whose config does not show them, less those that another config shows."""
    shown = {other.storage for other in layers if other.is_norm}
    for variables in store.discover(layer.storage, layer.names):
        if variables.path not in shown and variables.may_be_norm():
            yield _guessed(path, variables)


def _guessed(path: str, variables: Variables) -> Guess:
    """A record from arrays alone; the number of arrays tells which there are, but for three."""
    count = {2: 2, 5: 2, 3: 3, 6: 3}.get(len(variables), 4)
    arrays = variables.read(count)
    names, where = variables.names or ("batch_normalization",), variables.statistics(count)
    if count != 3:
        return unknown_record(path, names, arrays, "BatchNormalization"), None, where
    record = unknown_record(path, names, arrays[1:], "BatchNormalization")
    # Every gamma starts at 1 and every beta at 0; a trained vector lies nearer to where it started.
    values = arrays[0].astype(float)
    role = "gamma" if float(abs(values - 1).mean()) < float(abs(values).mean()) else "beta"
    return record.replace(**{role: arrays[0]}), AMBIGUOUS_NOTE.format(quoted("/".join(names)), role), where


def _weights_only(path: str, kind: str, store: Store) -> ModelFile:
    found: list[Guess] = []
    others: list[str] = []
    for variables in store.discover():
        if variables.may_be_norm():
            found.append(_guessed(path, variables))
        elif len(variables):
            others.append("/".join(variables.names) or "the model itself")
    notes = [WEIGHTS_NOTE, *(note for _, note, _ in found if note)]
    named = numbered(record for record, _, _ in found)
    return ModelFile(
        path=path,
        format=kind,
        layers=named,
        other_layers=tuple(others),
        notes=tuple(notes),
        writer=Hdf5Writer(path, named, [where for _, _, where in found]),
    )


def _names_of(store: Store) -> list[str]:
    return ["/".join(variables.names) for variables in store.discover() if len(variables) and variables.names]


def _open_store(files: Sequence[Path], path: str, stack: contextlib.ExitStack) -> Store:
    roots: list[Any] = []
    for file in files:
        try:
            stream = stack.enter_context(file.open("rb"))
        except OSError as error:
            raise unreadable(path, f"{quoted(file.name)} cannot be read ({error.strerror})", "Copy all files") from None
        roots.append(Hdf5File(stream, os.fstat(stream.fileno()).st_size, os.fspath(file)).root)
    return Store(roots, path)


def _shards(index: Path, path: str) -> list[Path]:
    """The files that an index names; they lie beside it, under plain names."""
    weight_map = load_json(_file_bytes(index, path), path, index.name).get("weight_map")
    if not isinstance(weight_map, dict):
        raise unreadable(path, f"{quoted(index.name)} has no weight_map, so it is no index of Keras weights")
    names: dict[str, None] = {}
    for value in cast("dict[str, Any]", weight_map).values():
        for name in cast("list[Any]", value) if isinstance(value, list) else [value]:
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
                raise unreadable(path, f"{quoted(index.name)} names {quoted(name)}, which is no file beside it")
            names[name] = None
    return [index.with_name(name) for name in names]


def _file_bytes(file: Path, path: str) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_TEXT + 1)
    except OSError as error:
        raise unreadable(path, f"{quoted(file.name)} cannot be read ({error.strerror})") from None
    if len(data) > MOST_TEXT:
        raise unreadable(path, f"{quoted(file.name)} is larger than any configuration")
    return data
