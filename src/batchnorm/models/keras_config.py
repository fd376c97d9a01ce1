"""Keras' config.json as plain data: which batch normalizations a model has, and where their variables are stored.

Nothing is built: a Lambda or a custom class is a dictionary with a name. The storage paths follow Keras'
``saving_lib``: a member of a model's list of layers is stored as ``layers/<class in snake case>_<counter>``, the layer
inside a wrapper under the wrapper's attribute.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

__all__ = [
    "Config",
    "Layer",
    "child_of",
    "class_name",
    "counted_name",
    "is_builtin",
    "is_norm_config",
    "read_layers",
    "settings_of",
    "snake_case",
    "training_of",
]

Config = dict[str, Any]
Call = tuple[bool | None, int | None]

NORM_KEYS = ("axis", "epsilon", "momentum")
KERAS_MODULES = ("keras", "tensorflow", "tf_keras")
FROZEN = "the layer is frozen (trainable=False): its statistics are not updated"


@dataclass(slots=True)
class Layer:
    """One layer of a config, with what the layers around it add.

    Parameters
    ----------
    names : tuple of str
        Its path from the model: names of the layers around it, and its own.
    storage : tuple of str
        Its group in a Keras 3 weight file.
    kind : str
        The class name as the config spells it.
    config : dict
        Its own settings.
    trainable : bool
        False where it, or anything around it, is frozen.
    calls : list of (bool or None, int or None)
        For each call in one step of the model: what the graph fixes as ``training=``, and how often a wrapper repeats
        the call (None where that is not known).
    is_norm, is_opaque : bool
        A batch normalization; a custom class that may hold some the config does not show.
    """

    names: tuple[str, ...]
    storage: tuple[str, ...]
    kind: str
    config: Config
    trainable: bool = True
    calls: list[Call] = field(default_factory=lambda: [(None, 1)])
    is_norm: bool = False
    is_opaque: bool = False


def snake_case(name: str) -> str:
    """Keras' own rule, which names the groups of a weight file: ``BatchNormalization`` -> ``batch_normalization``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def read_layers(model: Config) -> list[Layer]:
    """Every layer of a model's config that holds no other layer, in the order of the config.

    Parameters
    ----------
    model : dict
        ``{"class_name": ..., "config": {...}}``, of any Keras version.

    Returns
    -------
    list of Layer
        A layer object that the config shows in several places is there once, with all its calls. A model whose config
        shows no layers (a subclassed one) is there itself, with ``is_opaque`` and an empty path.
    """
    root = Layer((), (), class_name(model), settings_of(model))
    found: list[Layer] = []
    shared: dict[int | None, Layer] = {}
    for layer, mark in _walk(model, root):
        key = mark if isinstance(mark, int) else None
        known = shared.get(key)
        if known is None:
            found.append(layer)
            if key is not None:
                shared[key] = layer
            continue
        known.calls = known.calls + layer.calls
    return found


def _walk(item: Config, layer: Layer) -> Iterator[tuple[Layer, Any]]:
    settings = layer.config
    listed = settings.get("layers")
    if isinstance(listed, list):
        yield from _walk_model(cast("list[Any]", listed), layer)
        return
    if is_norm_config(settings):
        layer.is_norm = True
        yield layer, item.get("shared_object_id")
        return
    inner = [(key, value) for key, value in settings.items() if _holds_layer(value)]
    layer.is_opaque = not is_builtin(item)
    if not inner or layer.is_opaque:
        yield layer, item.get("shared_object_id")
    for key, value in inner:
        yield from _walk_wrapper(key, value, item, layer)


def _walk_model(listed: list[Any], parent: Layer) -> Iterator[tuple[Layer, Any]]:
    counters: dict[str, int] = {}
    sequential = all(isinstance(item, dict) and "inbound_nodes" not in item for item in listed)
    for position, item in enumerate(listed):
        if not isinstance(item, dict) or "class_name" not in item:
            continue
        entry = cast("Config", item)
        kind = class_name(entry)
        if sequential and position == 0 and kind == "InputLayer":
            continue
        child = child_of(entry, parent, ("layers", counted_name(kind, counters)))
        if not sequential:
            baked = _baked_training(entry.get("inbound_nodes"))
            child.calls = [(outer if own is None else own, times) for outer, times in parent.calls for own in baked]
        yield from _walk(entry, child)


def _walk_wrapper(key: str, value: Any, item: Config, parent: Layer) -> Iterator[tuple[Layer, Any]]:
    times = _time_steps(item) if class_name(item).endswith("TimeDistributed") else 1
    counters: dict[str, int] = {}
    entries = cast("list[Any]", value) if isinstance(value, list) else [value]
    for entry in entries:
        storage = (key, counted_name(class_name(entry), counters)) if isinstance(value, list) else (key,)
        child = child_of(entry, parent, storage)
        child.calls = [(baked, None if times is None or of is None else of * times) for baked, of in parent.calls]
        yield from _walk(entry, child)


def child_of(item: Config, parent: Layer, storage: tuple[str, ...]) -> Layer:
    """A layer inside another, and where its variables are stored."""
    settings = settings_of(item)
    kind = class_name(item)
    name = settings.get("name", item.get("name"))
    return Layer(
        names=(*parent.names, str(name) if name is not None else snake_case(kind)),
        storage=(*parent.storage, *storage),
        kind=kind,
        config=settings,
        trainable=parent.trainable and parent.config.get("trainable", True) is not False
        and settings.get("trainable", True) is not False,
        calls=list(parent.calls),
    )  # fmt: skip


def settings_of(item: Config) -> Config:
    """A layer's own settings."""
    settings = item.get("config")
    if isinstance(settings, list):  # Keras before 2.2.3: the config of a Sequential model is the list of its layers
        return {"layers": settings}
    return cast("Config", settings) if isinstance(settings, dict) else {}


def class_name(item: Config) -> str:
    """The class as the config spells it."""
    return str(item.get("class_name", ""))


def counted_name(kind: str, counters: dict[str, int]) -> str:
    """The next free name of a class in a list of layers: ``conv2d``, ``conv2d_1``."""
    base = snake_case(kind.rpartition(">")[2])
    count = counters.get(base, -1) + 1
    counters[base] = count
    return f"{base}_{count}" if count else base


def is_norm_config(settings: Config) -> bool:
    """Whether settings are those of a batch normalization."""
    # Keras 1 had a mode 1 that normalised each sample: no batch normalization.
    return all(key in settings for key in NORM_KEYS) and settings.get("mode") != 1


def is_builtin(item: Config) -> bool:
    """Whether a layer is one of Keras' own."""
    module = item.get("module")
    if ">" in class_name(item) or item.get("registered_name") not in (None, class_name(item)):
        return False
    # Files of Keras 1 and 2 name no module; what they can be asked for is a nested layer, which is looked for anyway.
    if not isinstance(module, str):
        return "module" not in item
    return module.partition(".")[0] in KERAS_MODULES and class_name(item) not in ("Model", "Layer")


def _holds_layer(value: Any, depth: int = 0) -> bool:
    """Whether a setting is a serialised layer, or a list of them, with a batch normalization inside."""
    if isinstance(value, list):
        return any(_holds_layer(entry, depth) for entry in cast("list[Any]", value) if isinstance(entry, dict))
    if not isinstance(value, dict) or "class_name" not in value:
        return False
    entry = cast("Config", value)
    settings = settings_of(entry)
    return is_norm_config(settings) or any(_holds_layer(inner, depth + 1) for inner in settings.values())


def _baked_training(nodes: Any) -> list[bool | None]:
    """What each call of a functional layer fixes as ``training``; one call where the config shows none."""
    if not isinstance(nodes, list) or not nodes:
        return [None]
    return [training_of(node) for node in cast("list[Any]", nodes)]


def training_of(node: Any) -> bool | None:
    """What a call fixes as ``training``; None where it fixes nothing."""
    if isinstance(node, dict):  # Keras 3
        kwargs: Any = cast("Config", node).get("kwargs")
    else:  # Keras 1 and 2: [[layer, node, tensor, kwargs], ...], or a single such list
        first: Any = cast("list[Any]", node)[0] if isinstance(node, list) and node else None
        entry = cast("list[Any]", first if isinstance(first, list) else node if isinstance(node, list) else [])
        kwargs = entry[3] if len(entry) > 3 else None
    value: Any = cast("Config", kwargs).get("training") if isinstance(kwargs, dict) else None
    return value if isinstance(value, bool) else None


def _time_steps(item: Config) -> int | None:
    shape = _first_shape(item.get("inbound_nodes"))
    if shape is None:
        build: Any = item.get("build_config")
        shape = cast("Config", build).get("input_shape") if isinstance(build, dict) else None
    if not isinstance(shape, (list, tuple)) or len(cast("list[Any]", shape)) < 2:
        return None
    steps: Any = cast("list[Any]", shape)[1]
    return steps if isinstance(steps, int) and steps > 0 else None


def _first_shape(nodes: Any) -> Any:
    try:
        return nodes[0]["args"][0]["config"]["shape"]
    except (TypeError, KeyError, IndexError):
        return None
