"""SavedModel folders of TensorFlow, tf.keras and Keras 3, read without TensorFlow; nothing of the graph is run.

``saved_model.pb`` is a protocol buffer: the functions of the model, and the objects whose variables they take.
``variables/`` holds the arrays. A batch normalization is found in the functions that the signatures call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord, Mode
from batchnorm.engines.session import Lazy, Places, Session

from .keras_records import MOST_UPDATES, numbered
from .modelfile import ModelFile, quoted, unreadable
from .protobuf import Message, WireError
from .saved_objects import OBJECT_GRAPH, Objects, keras_configs
from .tensor_bundle import Bundle
from .tf_graph import Frame, Function, Param, Variable, constant_of, walk
from .tf_norms import Found, fused, written_out

__all__ = ["read_folder"]

GRAPH, METADATA = "saved_model.pb", "keras_metadata.pb"
MOST_GRAPH = 2 << 30
MOST_METADATA = 256 << 20
ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
STABLEHLO_NOTE = (
    "The graph is compiled to StableHLO (an export from JAX or PyTorch): its batch normalizations were found by the "
    "names of their variables, and their epsilon and axis are unknown"
)
UNSEEN_NOTE = (
    "{} has moving statistics, but no function that can be called from outside normalises with them in a form that is "
    "known: its epsilon and axis are unknown"
)
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Opened:
    """The parts of a SavedModel."""

    path: str
    graph: Message
    functions: dict[str, Message]
    objects: Objects
    bundle: Bundle | None
    configs: dict[int, dict[str, Any]]


def read_folder(path: str) -> ModelFile:
    """A folder with ``saved_model.pb``.

    Records are in the order of the graph. A layer that the graph uses several times is there once. Momentum and the
    number of updates are known where tf.keras saved the model whole.

    Raises
    ------
    ModelFileError
        A file is missing or damaged.
    """
    try:
        opened = _open(path)
        entry, found, compiled = _search(opened)
        layers = [_Layer(opened, entry, uses) for uses in _grouped(found)]
        unseen = _unseen(opened, {layer.mean_name() for layer in layers})
        known = [(_with_statistics(layer, unseen), layer) for layer in layers]
    except WireError as error:
        raise unreadable(path, f"{GRAPH} is damaged ({error})", "Save or copy the model again") from None
    records = numbered([*(record for record, _ in known), *unseen.values()])
    notes = [STABLEHLO_NOTE] if compiled else [UNSEEN_NOTE.format(quoted(record.name)) for record in unseen.values()]
    places = {record.name: layer.places() for record, (_, layer) in zip(records, known, strict=False)}
    return ModelFile(
        path=path,
        format="savedmodel",
        layers=records,
        other_layers=() if records else tuple(_others(opened)),
        notes=tuple(notes),
        runner=Lazy(partial(_session, path, entry, tuple(record.name for record in records), places)),
    )


def _session(path: str, entry: str, names: tuple[str, ...], places: Places) -> Session:
    from batchnorm.engines.tensorflow import open_folder

    return open_folder(path, entry, names, places)


def _open(path: str) -> Opened:
    whole = Message(_bytes(Path(path, GRAPH), path, MOST_GRAPH))
    graphs = list(whole.messages(2))
    if not graphs:
        raise WireError("it holds no graph")
    serving = next((graph for graph in graphs if "serve" in graph.inner(1).texts(4)), graphs[0])
    graph = serving.inner(2)
    functions = {body.inner(1).text(1): body for body in graph.inner(2).messages(1)}
    folder, objects = Path(path, "variables"), Objects(serving.inner(7))
    bundle = Bundle(folder / "variables", path) if folder.is_dir() else None
    if bundle is not None:
        _locate(objects, bundle, path)
    metadata = Path(path, METADATA)
    configs = keras_configs(_bytes(metadata, path, MOST_METADATA)) if metadata.is_file() else {}
    return Opened(path, graph, functions, objects, bundle, configs)


def _locate(objects: Objects, bundle: Bundle, path: str) -> None:
    try:
        objects.locate(bundle)
    except WireError as error:
        file = f"variables/{bundle.file(OBJECT_GRAPH)}"
        raise unreadable(path, f"{file} is damaged ({error})", "Save or copy the model again") from None


def _bytes(file: Path, path: str, most: int) -> bytes:
    if file.stat().st_size > most:
        raise unreadable(path, f"{file.name} is larger than TensorFlow can write")
    return file.read_bytes()


def _search(opened: Opened) -> tuple[str, list[Found], bool]:
    """The first entry that normalises, what it normalises with, and whether it is compiled."""
    compiled = False
    roots = list(_roots(opened))
    for entry, frame in roots:
        found: list[Found] = []
        for inner, node in walk(frame, opened.functions):
            compiled |= node.op.startswith("XlaCallModule")
            if node.op.startswith("FusedBatchNorm") and "Grad" not in node.op:
                norm = fused(inner, node)
            else:
                norm = written_out(inner, node) if node.op == "Rsqrt" else None
            found += [norm] if norm is not None else []
        if found:
            return entry, found, False
    return (roots[0][0] if roots else ""), [], compiled


def _roots(opened: Opened) -> Iterator[tuple[str, Frame]]:
    """What can be called from outside; the whole graph in the files of TensorFlow 1, which have no objects."""
    for entry, name in opened.objects.entries().items():
        if name in opened.functions:
            body = Function.read(opened.functions[name])
            taken = opened.objects.bound(name)
            behind = body.arguments[len(body.arguments) - len(taken) :]
            yield entry, Frame(body, "", {key: Variable(number) for key, number in zip(behind, taken, strict=False)})
    if not opened.objects:
        yield "", Frame(Function("", (), opened.graph.messages(1)))


def _grouped(found: Iterable[Found]) -> list[list[Found]]:
    """The uses of each layer: those that share their variables."""
    groups: dict[object, list[Found]] = {}
    for norm in found:
        sources = [norm.mean, norm.variance]
        shared = all(param is not None and isinstance(param.source, Variable) for param in sources)
        key = (norm.mean.source, norm.variance.source) if shared and norm.mean and norm.variance else norm.exit
        groups.setdefault(key, []).append(norm)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer with all its uses in the graph."""

    opened: Opened
    entry: str
    uses: list[Found]

    def places(self) -> list[tuple[str, int, str]]:
        return [(use.entry, use.place, use.exit) for use in self.uses]

    def mean_name(self) -> str:
        """The name of the variable that holds its moving mean; empty where none does."""
        mean = self.uses[0].mean
        key = mean.source.key if mean is not None and isinstance(mean.source, Variable) else ""
        return key if isinstance(key, str) else self.opened.objects.variable_name(key)

    def record(self) -> LayerRecord:
        norm = self.uses[0]
        params: dict[str, Param | None] = dict(
            zip(ROLES, (norm.gamma, norm.beta, norm.mean, norm.variance), strict=True)
        )
        arrays = {role: array for role, param in params.items() if (array := self._array(role, param)) is not None}
        config = self._config()
        record = _record(self.opened.path, self._name(params), norm.kind, arrays)
        decay = _share(config.get("momentum"))
        return self._counted(
            record.replace(
                axis=norm.axis,
                epsilon=norm.epsilon,
                epsilon_source="unknown" if norm.epsilon is None else "file",
                averaging="unknown" if decay is None else "exponential",
                decay=decay,
                momentum=decay,
                ddof=self._ddof(),
                mode=self._mode(config),
            ),
            config,
        )

    def _array(self, role: str, param: Param | None) -> NDArray[Any] | None:
        if param is None:
            return None
        if isinstance(param.source, Variable):
            return _stored(self.opened, param.source.key)
        array = constant_of(param.source.node)
        if array is None or array.size == 0:
            return None
        neutral = {"gamma": 1, "beta": 0}.get(role)
        return None if neutral is not None and bool(np.all(array == neutral)) else array

    def _name(self, params: dict[str, Param | None]) -> str:
        """The path that its variables share; else the name scope of its nodes.

        tf.keras names variables by the layer alone, and nodes by the way from the model, which comes first.
        """
        keys = [param.source.key for param in params.values() if param and isinstance(param.source, Variable)]
        names = [key if isinstance(key, str) else self.opened.objects.variable_name(key) for key in keys]
        scopes = {name.rpartition("/")[0] for name in names}
        shared = scopes.pop() if len(scopes) == 1 else ""
        scope = self.uses[0].scope
        if shared and scope.endswith(f"/{shared}"):
            return scope.partition("/")[2]
        return shared or scope or self.uses[0].kind

    def _config(self) -> dict[str, Any]:
        """The layer's settings as tf.keras wrote them beside the graph."""
        mean = self.uses[0].mean
        key = mean.source.key if mean is not None and isinstance(mean.source, Variable) else None
        owner = self.opened.objects.owner(key) if isinstance(key, int) and self.opened.configs else None
        config: Any = self.opened.configs.get(-1 if owner is None else owner, {}).get("config")
        return cast("dict[str, Any]", config) if isinstance(config, dict) else {}

    def _ddof(self) -> int | None:
        if self.uses[0].kind != "batchnorm":
            return 1  # the fused operator hands out the unbiased variance
        return 0 if self.opened.configs or self.opened.objects.is_export() else None

    def _mode(self, config: dict[str, Any]) -> Mode:
        if any(use.training for use in self.uses):
            return "training"
        return "frozen" if config.get("trainable") is False else "inference"

    def _counted(self, record: LayerRecord, config: dict[str, Any]) -> LayerRecord:
        if record.decay is None or config.get("trainable") is False or self.opened.bundle is None:
            return record
        steps = self.opened.objects.steps(self.opened.bundle)
        if steps is None or not 0 <= steps < MOST_UPDATES:
            return record
        return record.with_updates(steps * len(self.uses), "optimizer iterations")


def _record(path: str, name: str, kind: str, arrays: Arrays) -> LayerRecord:
    sizes = {role: array.size for role, array in arrays.items()}
    statistics = arrays.get("moving_mean", arrays.get("moving_variance", next(iter(arrays.values()), None)))
    if statistics is None or len(set(sizes.values())) != 1 or 0 in sizes.values():
        found = ", ".join(f"{role} {list(array.shape)}" for role, array in arrays.items()) or "no arrays"
        raise unreadable(
            path,
            f"layer {quoted(name)} should hold vectors of one length, and holds {found}",
            "The folder is damaged or incomplete",
        )
    given: dict[str, Any] = dict(arrays)
    return LayerRecord(
        name=name,
        kind=kind,
        channels=int(statistics.size),
        axis=-1,
        dtype=statistics.dtype.name,
        epsilon=None,
        epsilon_source="unknown",
        **given,
    )


def _stored(opened: Opened, key: int | str) -> NDArray[Any] | None:
    if opened.bundle is None:
        raise unreadable(opened.path, "the folder holds no variables", "Copy the whole folder")
    name = key if isinstance(key, str) else opened.objects.key(key)
    return None if name is None else opened.bundle.array(name)


def _share(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and 0 <= value <= 1 else None


def _unseen(opened: Opened, taken: set[str]) -> dict[str, LayerRecord]:
    """Layers that only the names of their variables betray: the graph is compiled, or has them only for training."""
    groups: dict[str, dict[str, int]] = {}
    for number, name in opened.objects.variables().items():
        scope, _, role = name.rpartition("/")
        if role in ROLES:
            groups.setdefault(scope, {}).setdefault(role, number)
    found: dict[str, LayerRecord] = {}
    for scope, numbers in groups.items():
        if not {"moving_mean", "moving_variance"} <= set(numbers):
            continue
        if opened.objects.variable_name(numbers["moving_mean"]) in taken:
            continue
        arrays = {role: array for role, n in numbers.items() if (array := _stored(opened, n)) is not None}
        if len(arrays) == len(numbers):
            found[scope] = _record(opened.path, scope or "batch_normalization", "batchnorm", arrays)
    return found


def _with_statistics(layer: _Layer, unseen: dict[str, LayerRecord]) -> LayerRecord:
    """A layer that its graph runs in training mode takes the statistics that lie beside its gamma and beta."""
    record = layer.record()
    if record.moving_mean is not None or record.name not in unseen:
        return record
    beside = unseen[record.name]
    if beside.channels != record.channels:
        return record
    del unseen[record.name]
    return record.replace(moving_mean=beside.moving_mean, moving_variance=beside.moving_variance)


def _others(opened: Opened) -> list[str]:
    """The paths of the variables, for the message that there is no batch normalization."""
    scopes = [name.rpartition("/")[0] for name in opened.objects.variables().values()]
    return [scope for scope in dict.fromkeys(scopes) if scope]
