"""Folded copies of live Keras models: made anew from an edited config, every other weight copied over."""

from __future__ import annotations

import copy
import pathlib
import sys
from collections.abc import Iterator, Sequence
from inspect import isfunction
from typing import Any, cast

from batchnorm.engines.keras import array_of
from batchnorm.engines.randomness import random_state_kept
from batchnorm.errors import Refused, require

from .change import Change
from .keras_config import Config, class_name, settings_of

__all__ = ["folded", "save"]

Path = tuple[str, ...]
TRAINING = ("compile_config",)


def folded(model: Any, changes: Sequence[Change]) -> Any:
    """A copy of a functional or sequential model, without the batch normalizations and not compiled.

    Raises
    ------
    Refused
        Keras cannot make the model again from its config, or the copy's layers are not those of the original.
    """
    keras: Any = sys.modules["keras"]
    gone = {tuple(norm.settings["path"]) for change in changes for norm in change.norms}
    biased = {tuple(change.operation.settings["path"]) for change in changes}
    config: Config = copy.deepcopy(keras.saving.serialize_keras_object(model))
    _edit(config, (), gone, biased)
    try:
        with random_state_kept():
            made = keras.saving.deserialize_keras_object(config, custom_objects=_classes(model), safe_mode=False)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise Refused(
            f"Keras cannot make the folded model from its config ({type(error).__name__}: {text})."
        ) from error
    _copy_weights(keras, model, made, {tuple(change.operation.settings["path"]): change for change in changes}, gone)
    return made


def _classes(model: Any) -> dict[str, Any]:
    """The user's own classes and functions in a live model, by name: nothing of it needs to be registered to be found.

    Where two have one name neither is there, and what is registered counts.
    """
    found: dict[str, set[Any]] = {}
    for layer in model._flatten_layers():
        held = cast("dict[str, Any]", vars(layer)).values()
        own: list[Any] = [type(layer), *(each for each in held if isfunction(each))]
        for each in own:
            if not str(each.__module__).startswith(("keras.", "batchnorm.")):
                found.setdefault(each.__name__, set()).add(each)
    return {name: known.pop() for name, known in found.items() if len(known) == 1}


def save(model: Any, place: pathlib.Path) -> None:
    """Write a model as Keras does.

    HDF5's library crashes the process where a disk is full: it writes into memory, and Python into the file.
    """
    if place.suffix == ".keras":
        model.save(place)
        return
    h5py: Any = require("h5py", "keras", "Writing .h5 files")
    form: Any = require("keras.src.legacy.saving.legacy_h5_format", "keras", "Writing .h5 files")
    with h5py.File(place.name, "w", driver="core", backing_store=False) as held:
        form.save_model_to_hdf5(model, held, include_optimizer=False)
        held.flush()
        image = held.id.get_file_image()
    place.write_bytes(image)


def _edit(item: Config, path: Path, gone: set[Path], biased: set[Path]) -> None:
    for key in TRAINING:
        item.pop(key, None)
    settings = settings_of(item)
    listed = settings.get("layers")
    if path in biased:
        settings["use_bias"] = True
        # What a layer was built with is of no use where it gets one array more.
        settings.setdefault("bias_initializer", "zeros")
    if not isinstance(listed, list):
        return
    members = cast("list[Config]", listed)
    for member in list(members):
        own = (*path, str(settings_of(member).get("name", member.get("name"))))
        if own in gone:
            _bypass(settings, members, member)
        else:
            _edit(member, own, gone, biased)


def _bypass(settings: Config, members: list[Config], norm: Config) -> None:
    """Take a layer out of its model: what took its output takes its input."""
    members.remove(norm)
    nodes = norm.get("inbound_nodes")
    if not nodes:
        return
    source = _tensors(nodes)[0]  # a mask may come with it, which inference does not look at
    name = str(norm.get("name"))
    for member in members:
        for tensor in _tensors(member.get("inbound_nodes")):
            if tensor["config"]["keras_history"][0] == name:
                tensor["config"] = copy.deepcopy(source["config"])
    settings["output_layers"] = _renamed(settings.get("output_layers"), name, source["config"]["keras_history"])


def _tensors(value: Any) -> list[Config]:
    if isinstance(value, (list, tuple)):
        return [each for entry in cast("list[Any]", value) for each in _tensors(entry)]
    if not isinstance(value, dict):
        return []
    entry = cast("Config", value)
    if class_name(entry) == "__keras_tensor__":
        return [entry]
    return [each for inner in entry.values() for each in _tensors(inner)]


def _renamed(value: Any, name: str, source: Any) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(inner, name, source) for key, inner in cast("Config", value).items()}
    if isinstance(value, (list, tuple)):
        parts = cast("list[Any]", value)
        if len(parts) == 3 and parts[0] == name and not isinstance(parts[1], (list, tuple, dict)):
            return list(source)
        return [_renamed(each, name, source) for each in parts]
    return value


def _copy_weights(keras: Any, model: Any, made: Any, changes: dict[Path, Change], gone: set[Path]) -> None:
    theirs = dict(_leaves(keras, model, (), set()))
    ours = dict(_leaves(keras, made, (), set()))
    if set(theirs) - gone != set(ours):
        odd = sorted(map("/".join, (set(theirs) - gone) ^ set(ours)))
        raise Refused(f"the folded copy has other layers than the model ({', '.join(odd[:3])}).")
    for path, layer in ours.items():
        change = changes.get(path)
        values = [array_of(each) for each in theirs[path].weights]
        if change is not None:
            first = int(change.operation.settings.get("kernel_index", 0))
            values = [*values[:first], change.kernel, change.bias]
        if len(values) != len(layer.weights):
            raise Refused(f"layer {'/'.join(path)} of the folded copy holds other arrays than before.")
        layer.set_weights(values)


def _leaves(keras: Any, layer: Any, path: Path, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    """Each layer that is no functional or sequential model, by its path."""
    is_model = isinstance(layer, (keras.Sequential, keras.models.Model)) and hasattr(layer, "_operations")
    if not is_model and not isinstance(layer, keras.Sequential):
        if layer.weights:
            yield path, layer
        return
    if id(layer) in seen:
        return
    seen.add(id(layer))
    for child in layer.layers:
        yield from _leaves(keras, child, (*path, str(child.name)), seen)
