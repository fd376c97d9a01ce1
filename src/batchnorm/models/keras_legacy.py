"""Keras' older ``.h5`` files: whole models and weights of Keras 1, Keras 2, tf.keras, and Keras 3's old format.

A group a layer, ``model_weights/<layer>``, whose attribute ``weight_names`` lists the arrays below it. A nested model
or wrapper is one group, so that an inner layer is told by the names of its arrays.
"""

from __future__ import annotations

import os
import pathlib
import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord

from .hdf5 import Dataset, Group, Hdf5File
from .hdf5_mark import mark_hdf5
from .hdf5_writer import Hdf5Writer, Wheres
from .keras_config import Layer, read_layers
from .keras_file import CUSTOM_NOTE, WEIGHTS_NOTE, bench, load_json, major_version, runner
from .keras_graph import lazy_graph
from .keras_records import counted, ddof_of, norm_record, numbered, roles_of, unknown_record
from .marker import KEY, marked
from .modelfile import ModelFile, quoted, unreadable

__all__ = ["is_legacy", "mark", "read_legacy"]

# Keras 1 calls the moving variance running_std; it holds the variance.
ROLES = {
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "moving_mean",
    "moving_variance": "moving_variance",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
    "running_var": "moving_variance",
}
WEIGHT_NAME = re.compile(rf"^(.*?)[/_]?({'|'.join(ROLES)})(_\d+)?(:\d+)?$", re.DOTALL)
# iterations in Keras 2, iter in tf.keras until 2.10, iteration since.
COUNTER_NAME = re.compile(r"^iter(ations?)?(_\d+)?(:\d+)?$")


@dataclass(slots=True)
class Arrays:
    """The arrays of one batch normalization inside a layer's group."""

    prefix: str
    roles: dict[str, Dataset] = field(default_factory=dict[str, Dataset])

    def statistics(self) -> Wheres:
        """Where in the file the moving statistics lie."""
        return [self.roles[role].where for role in ("moving_mean", "moving_variance")]


def is_legacy(root: Group) -> bool:
    """Whether an HDF5 file has the layout of these formats."""
    return (
        root.attribute("model_config") is not None
        or root.group("model_weights") is not None
        or bool(_text_list(root, "layer_names"))
    )


def read_legacy(path: str, root: Group) -> ModelFile:
    """The model of such a file; without ``model_config`` it is a file of weights."""
    text = root.attribute("model_config")
    weights = root.group("model_weights") or root
    if text is None:
        return _weights_only(path, weights)
    if not isinstance(text, str):
        raise unreadable(path, "its attribute model_config is no text", "Save the model again")
    config = load_json(text, path, "the attribute model_config")
    layers = read_layers(config)
    version = _version(root) or _version(weights)
    norms = [layer for layer in layers if layer.is_norm]
    held, hidden = _assign(path, norms, weights, _others(layers))
    steps = _iterations(root)
    old = version is None or version < 3
    records = [
        counted(_record(path, layer, found, old=old), layer, steps, old=old)
        for layer, found in zip(norms, held, strict=True)
    ]
    records += [_unknown(path, top, arrays) for top, arrays in hidden]
    places = [found.statistics() for found in (*held, *(arrays for _, arrays in hidden))]
    named = marked(numbered(records), root.attribute(KEY))
    others = ["/".join(layer.names) for layer in layers if not layer.is_norm and layer.kind != "InputLayer"]
    return ModelFile(
        path=path,
        format="hdf5",
        layers=named,
        other_layers=tuple(name for name in others if name and name not in (top for top, _ in hidden)),
        notes=tuple(CUSTOM_NOTE.format(quoted(top)) for top in dict.fromkeys(top for top, _ in hidden)),
        runner=runner(path, named),
        lazy_graph=lazy_graph(config, partial(_fetched, path)),
        bench=bench(path, named),
        writer=Hdf5Writer(path, named, places),
        marker=mark,
    )


def mark(place: pathlib.Path, text: str) -> None:
    """Put a mark beside Keras' own attributes at the root."""
    mark_hdf5(place, KEY, text)


def _fetched(path: str, layer: Layer, number: int) -> NDArray[Any]:
    """An array of a layer, out of the file opened anew."""
    with open(path, "rb") as stream:
        root = Hdf5File(stream, os.fstat(stream.fileno()).st_size, path).root
        weights = root.group("model_weights") or root
        group = weights.group((layer.names[0],)) or weights.group(layer.names[0])
        names = _text_list(group, "weight_names") if group is not None else []
        own = [name for name in names if layer.names[-1] in name.split("/")[:-1]] or names
        found = group.find(own[number]) if group is not None and number < len(own) else None
        if not isinstance(found, Dataset):
            raise unreadable(path, f"layer {quoted('/'.join(layer.names))} has no array {number}", "Save it again")
        return found.read()


def _others(layers: list[Layer]) -> list[Layer]:
    """Layers that may hide a batch normalization; Keras 1 had one class for it and for what normalises each sample."""
    return [layer for layer in layers if not layer.is_norm and layer.kind != "BatchNormalization"]


def _record(path: str, layer: Layer, found: Arrays, *, old: bool) -> LayerRecord:
    roles = roles_of(layer.config)
    missing = [role for role in roles if role not in found.roles]
    if missing:
        raise unreadable(
            path,
            f"layer {quoted('/'.join(layer.names))} has no {' and no '.join(missing)}; the file holds "
            f"{', '.join(found.roles) or 'none of its arrays'}",
            "The file is damaged, or was saved before the model was built",
        )
    arrays = {role: found.roles[role].read() for role in roles}
    return norm_record(path, layer, arrays, ddof=ddof_of(layer.config.get("axis"), old=old))


def _assign(
    path: str, norms: list[Layer], weights: Group, others: list[Layer]
) -> tuple[list[Arrays], list[tuple[str, Arrays]]]:
    """The arrays of each layer, and those of layers that a custom class hides.

    A layer is told by name within the group of its outermost layer, by its place where names do not tell.
    """
    pools: dict[str, list[Arrays]] = {}
    members: dict[str, list[Layer]] = {}
    for layer in norms:
        members.setdefault(layer.names[0], []).append(layer)
    for top in members:
        group = weights.group((top,)) or weights.group(top)
        if group is None:
            raise unreadable(
                path, f"the file holds no arrays of layer {quoted(top)}", "The file is damaged, or its save was cut off"
            )
        pools[top] = _arrays_of(path, group)
    held = [_match(path, layer, members[layer.names[0]], pools[layer.names[0]]) for layer in norms]
    hidden: list[tuple[str, Arrays]] = []
    for top in dict.fromkeys(layer.names[0] for layer in others if layer.names):
        group = weights.group((top,))
        found = pools[top] if top in pools else _arrays_of(path, group) if group is not None else []
        hidden += [(top, arrays) for arrays in found if arrays not in held]
    return held, hidden


def _match(path: str, layer: Layer, siblings: list[Layer], pool: list[Arrays]) -> Arrays:
    by_name = [arrays for arrays in pool if _is_named(arrays.prefix, layer.names)]
    if len(by_name) == 1:
        return by_name[0]
    if len(pool) == len(siblings):
        return pool[siblings.index(layer)]
    raise unreadable(
        path,
        f"layer {quoted('/'.join(layer.names))} cannot be told apart: the file holds {len(pool)} sets of arrays for "
        f"{len(siblings)} batch normalizations of {quoted(layer.names[0])}",
        "The file is damaged, or its arrays were renamed",
    )


def _is_named(prefix: str, names: tuple[str, ...]) -> bool:
    """Whether ``left/bn`` belongs to a layer of that path: the last names agree, the one before may be missing."""
    parts = prefix.split("/")
    if parts[-1] != names[-1]:
        return False
    return len(parts) < 2 or len(names) < 2 or parts[-2] == names[-2] or parts[-2] not in names


def _arrays_of(path: str, group: Group) -> list[Arrays]:
    found: dict[str, Arrays] = {}
    for name in _text_list(group, "weight_names"):
        match = WEIGHT_NAME.match(name)
        if match is None:
            continue
        dataset = group.find(name)
        if not isinstance(dataset, Dataset):
            raise unreadable(
                path, f"{quoted('/'.join(group.where))} lists the array {quoted(name)}, and the file does not hold it",
                "The file is damaged",
            )  # fmt: skip
        prefix = match.group(1)
        found.setdefault(prefix, Arrays(prefix)).roles[ROLES[match.group(2)]] = dataset
    return [arrays for arrays in found.values() if "moving_mean" in arrays.roles or "moving_variance" in arrays.roles]


def _weights_only(path: str, weights: Group) -> ModelFile:
    records: list[LayerRecord] = []
    places: list[Wheres] = []
    others: list[str] = []
    for top in _text_list(weights, "layer_names") or weights.names():
        group = weights.group((top,)) or weights.group(top)
        found = _arrays_of(path, group) if group is not None else []
        whole = [arrays for arrays in found if len(arrays.roles) >= 2]
        records += [_unknown(path, top, arrays) for arrays in whole]
        places += [arrays.statistics() for arrays in whole]
        if group is not None and not found and _text_list(group, "weight_names"):
            others.append(top)
    named = numbered(records)
    return ModelFile(
        path=path,
        format="hdf5 weights",
        layers=named,
        other_layers=tuple(others),
        notes=(WEIGHTS_NOTE,),
        writer=Hdf5Writer(path, named, places),
    )


def _unknown(path: str, top: str, arrays: Arrays) -> LayerRecord:
    inner = [part for part in arrays.prefix.split("/") if part]
    names = (top,) if len(inner) < 2 and _same_layer(top, inner) else (top, *(part for part in inner if part != top))
    missing = [role for role in ("moving_mean", "moving_variance") if role not in arrays.roles]
    if missing:
        raise unreadable(path, f"layer {quoted('/'.join(names))} has no {missing[0]}", "The file is damaged")
    statistics = [arrays.roles[role].read() for role in ("moving_mean", "moving_variance")]
    record = unknown_record(path, names, statistics, "BatchNormalization")
    given = {role: arrays.roles[role].read() for role in ("gamma", "beta") if role in arrays.roles}
    return record.replace(**given)


def _same_layer(top: str, inner: list[str]) -> bool:
    return not inner or inner[0] == top or inner[0].startswith(f"{top}_")


def _iterations(root: Group) -> int | None:
    """The optimizer's count of steps, wherever in ``optimizer_weights`` the optimizer of the day kept it."""
    group = root.group("optimizer_weights")
    for name in _text_list(group, "weight_names") if group is not None else ():
        if COUNTER_NAME.match(name.rpartition("/")[2]):
            dataset = group.find(name) if group is not None else None
            if isinstance(dataset, Dataset) and dataset.shape in ((), (1,)):
                value = dataset.read().reshape(())
                return int(value) if value.dtype.kind in "iuf" and 0 <= float(value) < 2**53 else None
    return None


def _text_list(group: Group, name: str) -> list[str]:
    """A list in an attribute, which Keras splits over ``name0``, ``name1``, ... where it exceeds 64 kB."""
    whole = group.attribute(name)
    if whole is not None:
        return cast("list[str]", whole) if isinstance(whole, list) else []
    parts: list[str] = []
    number = 0
    while isinstance(part := group.attribute(f"{name}{number}"), list):
        parts += cast("list[str]", part)
        number += 1
    return parts


def _version(group: Group) -> int | None:
    return major_version(group.attribute("keras_version"))
