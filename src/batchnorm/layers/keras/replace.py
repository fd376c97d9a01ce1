"""Put other layers in the place of some inside a live layer or model, without losing Keras' tracking or its graphs."""

# Keras ships no type information, and tracking has no public door: what is touched of it is touched here only.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras.src.ops.function import map_graph
from keras.src.ops.node import KerasHistory
from keras.src.utils.tracking import DotNotTrackScope

__all__ = ["replace_layers"]

Swap = Callable[[Any], Any]

# Keras' own books, kept up to date through the tracker.
BOOKS = (
    "_layers",
    "_tracker",
    "_metrics",
    "_losses",
    "_compile_metrics",
    "_torch_params",
    "_nested_inputs",
    "_operations",
    "_operations_by_depth",
    "_nodes",
    "_nodes_by_depth",
)


def replace_layers(owner: Any, swap: Swap, seen: set[int] | None = None) -> None:
    """Replace the layers that ``owner`` holds in attributes, lists, tuples, dicts, sets and its graph, at any depth.

    ``swap`` gets each layer and returns the one to put there; where it returns the same one, its own sublayers are
    looked at in turn. It must answer alike each time it is given a layer: graphs may share some.
    """
    seen = set() if seen is None else seen
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, keras.src.models.Functional):
        _rewire(owner, swap, seen)
    for name, value in _attributes(owner):
        new = _replaced(value, owner, swap, seen)
        if new is not value:
            _set(owner, name, new)
    if hasattr(owner, "_torch_params"):
        owner._track_variables()


def _attributes(owner: Any) -> list[tuple[str, Any]]:
    held = {
        **vars(owner),
        **(vars(owner).get("_modules") or {}),
    }  # on PyTorch a layer is a Module and holds layers there
    kept = {*BOOKS, "_modules"} - ({"_layers"} if isinstance(owner, keras.Sequential) else set())  # there, its own list
    return [(name, value) for name, value in held.items() if name not in kept]


def _rewire(graph: Any, swap: Swap, seen: set[int]) -> None:
    for old in list(graph.layers):
        new = _layer(old, graph, swap, seen)
        if new is not old:
            _take_place(old, new)
    with DotNotTrackScope():
        books = map_graph(graph._inputs, graph._outputs)
        graph._nodes, graph._nodes_by_depth, graph._operations, graph._operations_by_depth = books


def _take_place(old: Any, new: Any) -> None:
    """Let the nodes of a graph that call ``old`` call ``new``."""
    with DotNotTrackScope():
        new._inbound_nodes, new._outbound_nodes = old._inbound_nodes, old._outbound_nodes
    for index, node in enumerate(new._inbound_nodes):
        node.operation = new
        for place, output in enumerate(node.outputs):
            output._keras_history = KerasHistory(operation=new, node_index=index, tensor_index=place)


def _replaced(value: Any, owner: Any, swap: Swap, seen: set[int]) -> Any:
    if isinstance(value, keras.layers.Layer):
        return _layer(value, owner, swap, seen)
    if isinstance(value, tuple):
        items = [_replaced(item, owner, swap, seen) for item in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    # Containers change in place: other attributes may refer to them. The plain methods, because Keras' own ones
    # would track a second time.
    if isinstance(value, list):
        for i, item in enumerate(value):
            if (new := _replaced(item, owner, swap, seen)) is not item:
                list.__setitem__(value, i, new)
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            if (new := _replaced(item, owner, swap, seen)) is not item:
                dict.__setitem__(value, key, new)
    elif isinstance(value, set):
        items = [_replaced(item, owner, swap, seen) for item in value]
        set.clear(value)
        set.update(value, items)
    return value


def _layer(layer: Any, owner: Any, swap: Swap, seen: set[int]) -> Any:
    new = swap(layer)
    if new is layer:
        replace_layers(layer, swap, seen)
    elif owner._tracker.is_in_store("layers", layer):
        owner._tracker.replace_tracked_value("layers", layer, new)
    return new


def _set(owner: Any, name: str, value: Any) -> None:
    locked = owner._tracker.locked
    owner._tracker.unlock()
    try:
        setattr(owner, name, value)
    finally:
        if locked:
            owner._tracker.lock()
