"""Which layer feeds which, out of Keras' config as plain data: functional and sequential, nested models unrolled.

Nothing is built or run. A call of a nested model is the calls of its layers, so that a model that is called twice is
there twice, under the same names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

from batchnorm.core.graph import Graph, LazyGraph, NoGraph, Operation

from .keras_config import Config, Layer, child_of, class_name, counted_name, settings_of, training_of
from .keras_operations import Fetch, described

__all__ = ["graph_of", "lazy_graph"]

Reference = tuple[str, int, int]

MOST_OPERATIONS = 100_000
CONSTANT = "_CONSTANT_VALUE"


def lazy_graph(config: Config, fetch: Fetch | None = None) -> LazyGraph:
    """The graph of a model's config.

    Parameters
    ----------
    config : dict
        ``{"class_name": ..., "config": {...}}``, of any Keras version.
    fetch : callable, optional
        Reads the arrays of convolutions and dense layers; without it operations have no weights.
    """
    return LazyGraph(lambda: graph_of(config, fetch))


def graph_of(config: Config, fetch: Fetch | None = None) -> Graph:
    """The graph of a model's config, as `lazy_graph` gives it.

    Raises
    ------
    NoGraph
        The config does not tell it.
    """
    try:
        return _Builder(fetch).graph(config)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise NoGraph(f"the config does not tell how its layers are connected ({type(error).__name__})") from None


@dataclass(slots=True)
class _Call:
    """One node of a functional model: a call of a layer."""

    layer: str
    index: int
    references: list[Reference]
    node: Any


@dataclass(slots=True)
class _Member:
    """A layer of a functional model."""

    item: Config
    layer: Layer
    calls: list[_Call] = field(default_factory=list[_Call])


class _Builder:
    """Collects the operations of a model, calls in an order in which they can run."""

    def __init__(self, fetch: Fetch | None) -> None:
        self._fetch = fetch
        self._operations: list[Operation] = []
        self._keys: list[Any] = []
        self._names: dict[Any, str] = {}

    def graph(self, config: Config) -> Graph:
        root = Layer((), (), class_name(config), settings_of(config))
        if not isinstance(root.config.get("layers"), list):
            raise NoGraph(f"the config of a {root.kind or 'model'} shows no layers (a subclassed model)")
        inputs: list[str] = []
        outputs = self._model(root, "", inputs, None)
        shared = _twice(self._keys)
        operations = tuple(
            replace(each, shared=key in shared) for each, key in zip(self._operations, self._keys, strict=True)
        )
        return Graph(operations=operations, inputs=tuple(inputs), outputs=tuple(outputs))

    def _model(self, layer: Layer, prefix: str, inputs: list[str], wrapper: str | None) -> list[str]:
        """Unroll a model that is fed ``inputs``; where there are none it is the outermost, and its own are put in."""
        items = [cast("Config", each) for each in layer.config["layers"]]
        if all("inbound_nodes" not in each for each in items):
            return self._sequential(items, layer, prefix, inputs, wrapper)
        return self._functional(items, layer, prefix, inputs, wrapper)

    def _sequential(
        self, items: list[Config], parent: Layer, prefix: str, inputs: list[str], wrapper: str | None
    ) -> list[str]:
        if not inputs:
            named = str(settings_of(items[0]).get("name", "input")) if items else "input"
            inputs.append(named if items and class_name(items[0]) == "InputLayer" else "input")
        counters: dict[str, int] = {}
        flowing = list(inputs)
        for position, item in enumerate(items):
            kind = class_name(item)
            if kind == "InputLayer":
                if position:
                    counted_name(kind, counters)
                continue
            child = child_of(item, parent, ("layers", counted_name(kind, counters)))
            flowing = self._call(item, child, prefix, flowing, None, [f"{prefix}{child.names[-1]}"], wrapper)
        return flowing

    def _functional(
        self, items: list[Config], parent: Layer, prefix: str, inputs: list[str], wrapper: str | None
    ) -> list[str]:
        members = _members(items, parent)
        entries = list(_references(parent.config.get("input_layers"), members))
        exits = _counted_from_zero(members, list(_references(parent.config.get("output_layers"), members)))
        if not inputs:
            inputs.extend(f"{prefix}{name}" for name, _, _ in entries)
        values: dict[Reference, str] = dict(zip(entries, inputs, strict=False))
        wanted: dict[tuple[str, int], set[int]] = {}
        for name, node, tensor in [*exits, *(r for m in members.values() for call in m.calls for r in call.references)]:
            wanted.setdefault((name, node), {0}).add(tensor)
        waiting = [call for member in members.values() for call in member.calls]
        while waiting:
            left: list[_Call] = []
            for call in waiting:
                if all(each in values for each in call.references):
                    self._run(members[call.layer], call, prefix, values, wanted, wrapper)
                else:
                    left.append(call)
            if len(left) == len(waiting):
                raise NoGraph("its layers wait for each other, or for a value from outside the model")
            waiting = left
        return [values[each] for each in exits]

    def _run(
        self,
        member: _Member,
        call: _Call,
        prefix: str,
        values: dict[Reference, str],
        wanted: dict[tuple[str, int], set[int]],
        wrapper: str | None,
    ) -> None:
        tensors = sorted(wanted.get((call.layer, call.index), {0}))
        base = f"{prefix}{call.layer}"
        names = [base if not (call.index or each) else f"{base}:{call.index}:{each}" for each in tensors]
        flowing = [values[each] for each in call.references]
        found = self._call(member.item, member.layer, prefix, flowing, call.node, names, wrapper, call.index)
        values.update({(call.layer, call.index, each): name for each, name in zip(tensors, found, strict=False)})

    def _call(
        self,
        item: Config,
        layer: Layer,
        prefix: str,
        inputs: list[str],
        node: Any,
        outputs: list[str],
        wrapper: str | None,
        index: int = 0,
    ) -> list[str]:
        """Add one call of a layer; the names of the values it gives."""
        if isinstance(layer.config.get("layers"), list):
            inside = f"{prefix}{layer.names[-1]}{f'@{index}' if index else ''}/"
            return self._model(layer, inside, inputs, wrapper) if inputs else outputs
        if layer.kind == "TimeDistributed" and isinstance(layer.config.get("layer"), dict):
            inner_item = cast("Config", layer.config["layer"])
            inner = child_of(inner_item, layer, ("layer",))
            return self._call(inner_item, inner, prefix, inputs, node, outputs, "TimeDistributed", index)
        self._add(item, layer, inputs, node, outputs, wrapper)
        return outputs

    def _add(
        self, item: Config, layer: Layer, inputs: list[str], node: Any, outputs: list[str], wrapper: str | None
    ) -> None:
        if len(self._operations) >= MOST_OPERATIONS:
            raise NoGraph(f"its models call each other more than {MOST_OPERATIONS:,} times")
        mark = item.get("shared_object_id")
        key = mark if isinstance(mark, int) else layer.storage
        name = self._names.setdefault(key, "/".join(layer.names))
        operation = Operation(
            name=name, kind="other", operator=layer.kind, inputs=tuple(inputs), outputs=tuple(outputs)
        )
        extra: dict[str, Any] = {} if wrapper is None else {"wrapper": wrapper}
        if (training := training_of(node)) is not None:
            extra["training"] = training
        self._operations.append(described(operation, item, layer, self._fetch, extra, node))
        self._keys.append(key)


def _twice(keys: list[Any]) -> set[Any]:
    return {key for key, count in Counter(keys).items() if count > 1}


def _members(items: list[Config], parent: Layer) -> dict[str, _Member]:
    counters: dict[str, int] = {}
    members: dict[str, _Member] = {}
    for item in items:
        kind = class_name(item)
        child = child_of(item, parent, ("layers", counted_name(kind, counters)))
        members[str(item.get("name", child.names[-1]))] = _Member(item, child)
    for name, member in members.items():
        nodes = cast("list[Any]", member.item.get("inbound_nodes") or [])
        member.calls = [_Call(name, index, list(_references(node, members)), node) for index, node in enumerate(nodes)]
    return members


def _counted_from_zero(members: dict[str, _Member], exits: list[Reference]) -> list[Reference]:
    """References that count the calls of a layer from 0, in place; the same of the model's outputs is returned.

    Keras 2 counts those of a nested model from 1: its own making is call 0, and not in the config. Keras 3 does so in
    the list of outputs alone.
    """
    calls = [call for member in members.values() for call in member.calls]
    within = [each for call in calls for each in call.references]
    last: dict[str, int] = {}
    for name, node, _ in (*exits, *within):
        last[name] = max(last.get(name, 0), node)
    late = {name for name, member in members.items() if member.calls and last.get(name, 0) == len(member.calls)}
    for call in calls:
        call.references = _earlier(call.references, late - {name for name, node, _ in within if not node})
    return _earlier(exits, late)


def _earlier(references: list[Reference], late: set[str]) -> list[Reference]:
    return [(name, node - (name in late), tensor) for name, node, tensor in references]


def _references(value: Any, members: dict[str, _Member]) -> Iterator[Reference]:
    """Every tensor in the arguments of a call, or in the list of a model's outputs, in their order."""
    if isinstance(value, dict):
        entry = cast("Config", value)
        if entry.get("class_name") == "__keras_tensor__":
            name, node, tensor = entry["config"]["keras_history"]
            yield str(name), int(node), int(tensor)
            return
        for each in entry.values():
            yield from _references(each, members)
    elif isinstance(value, (list, tuple)):
        parts = cast("list[Any]", value)
        if _is_reference(parts, members):
            yield str(parts[0]), int(parts[1]), int(parts[2])
            parts = parts[3:]
        elif parts and parts[0] == CONSTANT:
            return
        for each in parts:
            yield from _references(each, members)


def _is_reference(parts: list[Any], members: dict[str, _Member]) -> bool:
    """Keras 1 and 2, and the lists of inputs and outputs of Keras 3: ``["dense", 0, 0]``, arguments may follow."""
    is_triple = len(parts) >= 3 and isinstance(parts[0], str) and type(parts[1]) is int and type(parts[2]) is int
    return is_triple and parts[0] in members
