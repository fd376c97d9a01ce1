"""Put other layers in the place of some inside a live layer or subclassed model, without losing Keras' tracking."""

# Keras ships no type information, and tracking has no public door: what is touched of it is touched here only.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

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
)


def replace_layers(owner: Any, swap: Swap, seen: set[int] | None = None) -> None:
    """Replace the layers that ``owner`` holds in attributes, lists, tuples, dicts and sets, at any depth.

    ``swap`` gets each layer and returns the one to put there; where it returns the same one, its own sublayers are
    looked at in turn.
    """
    seen = set() if seen is None else seen
    if id(owner) in seen:
        return
    seen.add(id(owner))
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
    return [(name, value) for name, value in held.items() if name not in BOOKS and name != "_modules"]


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
            list.__setitem__(value, i, _replaced(item, owner, swap, seen))
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            dict.__setitem__(value, key, _replaced(item, owner, swap, seen))
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
