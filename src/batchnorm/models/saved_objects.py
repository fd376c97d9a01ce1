"""The objects of a SavedModel: the variables a function takes, where they are stored, what Keras says of them."""

from __future__ import annotations

import json
from typing import Any, cast

from .protobuf import Message, WireError
from .tensor_bundle import Bundle

__all__ = ["OBJECT_GRAPH", "Objects", "keras_configs"]

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "VARIABLE_VALUE"
COUNTERS = (("optimizer", "iter"), ("optimizer", "_iterations"), ("optimizer", "iterations"))
FIRST = ("serving_default", "serve")


class Objects:
    """The tree of objects that TensorFlow saved, from its root, which is number 0."""

    def __init__(self, graph: Message) -> None:
        self._nodes = list(graph.messages(1))
        self._functions = dict(graph.map(2))
        self._keys: dict[int, str] = {}

    def __bool__(self) -> bool:
        return bool(self._nodes)

    def children(self, number: int) -> dict[str, int]:
        """The objects under one object, by the names of its attributes."""
        if not 0 <= number < len(self._nodes):
            return {}
        return {child.text(2): child.integer(1) for child in self._nodes[number].messages(1)}

    def variable_name(self, number: int) -> str:
        """The name a variable was made with, ``left/bn/gamma``; empty where the object is none."""
        if not 0 <= number < len(self._nodes):
            return ""
        return self._nodes[number].inner(7).text(6).partition(":")[0]

    def variables(self) -> dict[int, str]:
        """Number and name of every variable; of one that is reached in several ways, the first."""
        return {number: name for number in range(len(self._nodes)) if (name := self.variable_name(number))}

    def bound(self, function: str) -> list[int]:
        """The objects that a function takes behind its own arguments."""
        known = self._functions.get(function)
        return [] if known is None else known.integers(2)

    def entries(self) -> dict[str, str]:
        """What can be called from outside: signature -> function; attributes of the root where there is none.

        The signature that serves by default comes first.
        """
        signatures = self.children(self.children(0).get("signatures", -1))
        found = {key: self._nodes[number].inner(8).text(1) for key, number in signatures.items()}
        if not any(found.values()):
            found = {f".{key}": names[0] for key, number in self.children(0).items() if (names := self._traces(number))}
        first = {key: found[key] for key in FIRST if found.get(key)}
        return first | {key: name for key, name in found.items() if name}

    def locate(self, bundle: Bundle) -> None:
        """Find where the checkpoint keeps each variable: both trees have the same names from their roots."""
        data = bundle.string(OBJECT_GRAPH)
        if data is None:
            return
        stored = list(Message(data).messages(1))
        pairs, seen = [(0, 0)], {0}
        for ours, theirs in pairs:
            if not 0 <= theirs < len(stored):
                raise WireError("its checkpoint names an object that does not exist")
            for attribute in stored[theirs].messages(2):
                if attribute.text(1) == VALUE:
                    self._keys[ours] = attribute.text(3)
            names = {child.text(2): child.integer(1) for child in stored[theirs].messages(1)}
            for name, number in self.children(ours).items():
                if number not in seen and name in names:
                    seen.add(number)
                    pairs.append((number, names[name]))

    def key(self, number: int) -> str | None:
        """The name of a variable in the checkpoint."""
        return self._keys.get(number)

    def steps(self, bundle: Bundle) -> int | None:
        """The count of the optimizer's steps, where it was saved with the model."""
        for way in COUNTERS:
            number = 0
            for name in way:
                number = self.children(number).get(name, -1)
            array = bundle.array(self._keys.get(number, ""))
            if array is not None and array.shape == () and array.dtype.kind == "i":
                return int(array)
        return None

    def owner(self, number: int) -> int | None:
        """The object that holds a variable as its moving mean."""
        for owner in range(len(self._nodes)):
            if self.children(owner).get("moving_mean") == number:
                return owner
        return None

    def is_export(self) -> bool:
        """Whether Keras' ``model.export`` wrote it."""
        return "_all_variables" in self.children(0)

    def _traces(self, number: int) -> list[str]:
        names = self._nodes[number].inner(6).texts(1) if 0 <= number < len(self._nodes) else []
        return [name for name in names if name in self._functions]


def keras_configs(data: bytes) -> dict[int, dict[str, Any]]:
    """What ``keras_metadata.pb`` of tf.keras says: object -> its layer as JSON; what is no JSON is left out."""
    found: dict[int, dict[str, Any]] = {}
    for node in Message(data).messages(1):
        try:
            value: Any = json.loads(node.content(5))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found[node.integer(2)] = cast("dict[str, Any]", value)
    return found
