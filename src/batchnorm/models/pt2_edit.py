"""Folded copies of exported programs: the JSON graph edited, new weights as members of their own, the rest as it is.

PyTorch is not needed for it. An operation without a bias gets a new parameter, right behind its kernel.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .archive import Archive
from .change import Change
from .pt2_file import graph_member
from .pt2_graph import Json
from .rewriting import rewritten

__all__ = ["fold"]


def fold(path: str, target: Path, changes: Sequence[Change]) -> None:
    """Write a copy of a program with other weights and fewer nodes.

    Parameters
    ----------
    path : str
        The program.
    target : Path
        Where it is written.
    changes : sequence of Change
        New kernels and biases, and the batch normalizations that they take in.
    """
    with open(path, "rb") as stream:
        archive = Archive(stream, path)
        graph_name, root, _ = graph_member(path, archive.names())
        config_name = f"{root}data/weights/{_stem(graph_name)}_weights_config.json"
        program: Json = json.loads(archive.text(graph_name))
        config: Json = json.loads(archive.text(config_name))
    editor = _Editor(program, config, set(archive.names()), f"{root}data/weights/")
    for change in changes:
        editor.apply(change)
    editor.finish([value for change in changes for norm in change.norms for value in norm.outputs])
    written = {graph_name: json.dumps(program).encode(), config_name: json.dumps(config).encode(), **editor.members}
    rewritten(path, target, written)


def _stem(graph_name: str) -> str:
    return Path(graph_name).stem


class _Editor:
    def __init__(self, program: Json, config: Json, names: set[str], folder: str) -> None:
        self._module: Json = program["graph_module"]
        self._graph: Json = self._module["graph"]
        self._specs: list[Json] = self._module["signature"]["input_specs"]
        self._config: Json = config["config"]
        self._names = names
        self._folder = folder
        self._replaced: dict[str, str] = {}
        self.members: dict[str, bytes] = {}

    def apply(self, change: Change) -> None:
        """New weights for one operation."""
        settings = change.operation.settings
        self._store(settings["kernel_name"], change.kernel)
        if "bias_name" in settings:
            self._store(settings["bias_name"], change.bias)
        else:
            self._add_bias(change)
        self._replaced.update({norm.outputs[0]: norm.inputs[0] for norm in change.norms})

    def finish(self, gone: list[str]) -> None:
        """Take the nodes out, and the parameters that nothing uses then."""
        nodes: list[Json] = self._graph["nodes"]
        removed = [node for node in nodes if any(name in gone for name in _values(node["outputs"]))]
        self._graph["nodes"] = [node for node in nodes if node not in removed]
        for value in gone:
            self._graph["tensor_values"].pop(value, None)
        _rename(self._graph["nodes"], self._replaced)
        _rename(self._graph["outputs"], self._replaced)
        _rename(self._module["signature"]["output_specs"], self._replaced)
        # The counter of a batch normalization is no argument of its node; its name tells that it goes along.
        candidates = {name for node in removed for name in _values(node["inputs"])}
        prefixes = {self._state_of(name).rpartition(".")[0] for name in candidates if self._state_of(name)}
        counters = {name for name, state in self._states() if state.removesuffix(".num_batches_tracked") in prefixes}
        used = set(_values(self._graph["nodes"])) | set(_values(self._graph["outputs"]))
        for name in (candidates | counters) - used:
            if state := self._state_of(name):
                self._drop(name, state)

    def _states(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for spec in self._specs:
            for kind, key in (("parameter", "parameter_name"), ("buffer", "buffer_name")):
                if kind in spec:
                    found.append((spec[kind]["arg"]["name"], spec[kind][key]))
        return found

    def _state_of(self, value: str) -> str:
        return next((state for name, state in self._states() if name == value), "")

    def _drop(self, value: str, state: str) -> None:
        keep = [index for index, spec in enumerate(self._specs) if value not in _values([spec])]
        self._specs[:] = [self._specs[index] for index in keep]
        self._graph["inputs"] = [each for each in self._graph["inputs"] if value not in _values([each])]
        self._graph["tensor_values"].pop(value, None)
        self._config.pop(state, None)

    def _store(self, name: str, array: NDArray[Any]) -> None:
        """A tensor in a member of its own: what shared its storage keeps the old one."""
        entry: Json = self._config[name]
        entry["path_name"] = self._member(array)
        meta: Json = entry["tensor_meta"]
        meta["strides"] = [{"as_int": step // array.itemsize} for step in np.ascontiguousarray(array).strides]
        meta["storage_offset"] = {"as_int": 0}

    def _member(self, array: NDArray[Any]) -> str:
        number = 0
        while f"{self._folder}weight_{number}" in self._names:
            number += 1
        name = f"weight_{number}"
        self._names.add(f"{self._folder}{name}")
        self.members[f"{self._folder}{name}"] = np.ascontiguousarray(array).tobytes()
        return name

    def _add_bias(self, change: Change) -> None:
        settings = change.operation.settings
        kernel_value, kernel_name = settings["kernel_value"], settings["kernel_name"]
        state = f"{kernel_name.rpartition('.')[0]}.bias".lstrip(".")
        while state in self._config:
            state += "_folded"
        value = f"{kernel_value}_bias"
        entry = copy.deepcopy(cast("Json", self._config[kernel_name]))
        entry["tensor_meta"]["sizes"] = [{"as_int": len(change.bias)}]
        self._config[state] = entry
        self._store(state, change.bias)
        self._graph["tensor_values"][value] = copy.deepcopy(entry["tensor_meta"])
        at = next(index for index, spec in enumerate(self._specs) if kernel_value in _values([spec]))
        self._specs.insert(at + 1, {"parameter": {"arg": {"name": value}, "parameter_name": state}})
        place = next(i for i, each in enumerate(self._graph["inputs"]) if kernel_value in _values([each]))
        self._graph["inputs"].insert(place + 1, {"as_tensor": {"name": value}})
        node = next(node for node in self._graph["nodes"] if settings["node"] in _values(node["outputs"]))
        arguments: list[Json] = node["inputs"]
        given = next((each for each in arguments if each["name"] == "bias"), None)
        if given is None:
            after = next(index for index, each in enumerate(arguments) if each["name"] == "weight")
            given = copy.deepcopy(arguments[after]) | {"name": "bias"}
            arguments.insert(after + 1, given)
        given["arg"] = {"as_tensor": {"name": value}}


def _values(part: Any) -> list[str]:
    """The names of every tensor mentioned in a part of the graph."""
    if isinstance(part, list):
        return [name for each in cast("list[Any]", part) for name in _values(each)]
    if not isinstance(part, dict):
        return []
    entry = cast("Json", part)
    found: list[str] = []
    for key, value in entry.items():
        if key in ("as_tensor", "arg") and isinstance(value, dict) and "name" in value:
            found.append(str(cast("Json", value)["name"]))
        elif key == "as_tensors" and isinstance(value, list):
            found += [str(each["name"]) for each in cast("list[Json]", value)]
        else:
            found += _values(value)
    return found


def _rename(part: Any, names: dict[str, str]) -> None:
    """Give tensors other names, wherever a part of the graph mentions them."""
    if isinstance(part, list):
        for each in cast("list[Any]", part):
            _rename(each, names)
    elif isinstance(part, dict):
        entry = cast("Json", part)
        if set(entry) == {"name"} and isinstance(entry["name"], str):
            while entry["name"] in names:
                entry["name"] = names[entry["name"]]
        for key, value in entry.items():
            if key != "metadata":
                _rename(value, names)
