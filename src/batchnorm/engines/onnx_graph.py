"""What stands in an ONNX graph: its batch normalizations, what feeds what, and which values are constants."""

# pyright: reportUnknownMemberType=false
# onnx' messages are generated, and have no types.

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np

__all__ = [
    "MEAN",
    "SCALE",
    "SHIFT",
    "VARIANCE",
    "constants",
    "feeds",
    "make_dense",
    "names_in",
    "norm_nodes",
    "put_in_order",
    "rectified",
]

SCALE, SHIFT, MEAN, VARIANCE = 1, 2, 3, 4
"""Which inputs of the operator are its parameters and its statistics."""
NOISE = ("Random", "Multinomial", "Bernoulli")
"""How the names of operators begin that give other values at each run."""


def norm_nodes(model: Any) -> list[Any]:
    """The batch normalizations of the outermost graph."""
    return [
        node
        for node in model.graph.node
        if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx") and len(node.input) > VARIANCE
    ]


def names_in(node: Any) -> set[str]:
    """Everything a node takes, also inside its branches and loops, whose own values may be called like others later."""
    names = {name for name in node.input if name}
    for graph in _graphs(node):
        taken = {output.name for output in graph.output}.union(*(names_in(inner) for inner in graph.node))
        own = {each.name for each in (*graph.input, *graph.initializer)}
        own |= {each.values.name for each in graph.sparse_initializer}
        names |= taken - own.union(*(inner.output for inner in graph.node))
    return names


def _graphs(node: Any) -> list[Any]:
    """Its branches and loops."""
    return [graph for each in node.attribute for graph in (*([each.g] if each.HasField("g") else []), *each.graphs)]


def constants(model: Any, nodes: Sequence[Any]) -> dict[str, Any]:
    """Values that no input reaches: name -> its node, of ``nodes`` of the graph; None for what the file holds."""
    noisy = _drawing(model.functions)
    found: dict[str, Any] = {each.name: None for each in model.graph.initializer}
    for node in nodes:
        if not _graphs(node) and not _draws(node, noisy) and all(name in found for name in node.input if name):
            found |= dict.fromkeys((name for name in node.output if name), node)
    return found


def _drawing(functions: Sequence[Any]) -> set[tuple[str, str]]:
    """Functions of a model that give other values at each run."""
    found = set[tuple[str, str]]()
    for _ in functions:  # one calls another, at most as deep as there are any
        found |= {(each.domain, each.name) for each in functions if any(_draws(node, found) for node in each.node)}
    return found


def _draws(node: Any, drawing: set[tuple[str, str]]) -> bool:
    if node.op_type.startswith(NOISE) or (node.domain, node.op_type) in drawing:
        return True
    if node.op_type == "Dropout" and any(node.input[2:]):  # it may be told to train
        return True
    return any(_draws(inner, drawing) for graph in _graphs(node) for inner in graph.node)


def put_in_order(graph: Any) -> None:
    """Sort the nodes of a graph so that each comes after what it takes, as onnxruntime does when it loads one."""
    nodes = list(graph.node)
    maker = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    seen, order = set[int](), dict[int, int]()
    for start in range(len(nodes)):
        waiting = [start]
        while waiting:
            place = waiting[-1]
            seen.add(place)
            before = {maker[name] for name in names_in(nodes[place]) if name in maker} - seen
            waiting.extend(sorted(before, reverse=True))
            if not before:
                order.setdefault(waiting.pop(), len(order))
    if list(order) != list(range(len(nodes))):
        ranks = {tuple(node.output): order[place] for place, node in enumerate(nodes)}
        own: Any = graph.node
        own.sort(key=lambda node: ranks[tuple(cast("Any", node).output)])  # pyright: ignore[reportUnknownLambdaType]


def make_dense(onnx: Any, graph: Any, folder: str) -> None:
    """Write out what a graph holds as sparse arrays, which onnxruntime would, but for those it is to hand out."""
    for each in graph.sparse_initializer:
        values, places = (onnx.numpy_helper.to_array(part, folder) for part in (each.values, each.indices))
        dense = np.zeros(tuple(each.dims), values.dtype)
        dense[np.unravel_index(places, dense.shape) if places.ndim == 1 else tuple(places.T)] = values
        graph.initializer.append(onnx.numpy_helper.from_array(dense, each.values.name))
    del graph.sparse_initializer[:]


def feeds(nodes: Sequence[Any], layer_of: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Layer -> the layers that what it gives arrives at; a layer of several nodes may feed itself.

    ``layer_of`` names the layer of a node by its output; ``nodes`` are in an order in which they can run.
    """
    fed: dict[str, frozenset[str]] = {}
    found: dict[str, set[str]] = {name: set() for name in layer_of.values()}
    for node in nodes:
        sources = frozenset[str]().union(*(fed.get(name, frozenset()) for name in names_in(node)))
        own = layer_of.get(node.output[0]) if node.output else None
        if own is not None:
            for source in sources:
                found[source].add(own)
            sources |= {own}
        fed |= dict.fromkeys(node.output, sources)
    return _closed(found)


def rectified(graph: Any, outputs: Collection[str]) -> dict[str, str]:
    """Those of the values that nothing takes but one Relu -> its output."""
    takers: dict[str, list[Any]] = {name: [] for name in outputs}
    for node in graph.node:
        for name in names_in(node) & takers.keys():
            takers[name].append(node)
    found = {name: nodes[0] for name, nodes in takers.items() if len(nodes) == 1}
    found = {name: node for name, node in found.items() if node.op_type == "Relu" and node.domain in ("", "ai.onnx")}
    own = {output.name for output in graph.output}
    return {name: node.output[0] for name, node in found.items() if name not in own}


def _closed(found: dict[str, set[str]]) -> dict[str, frozenset[str]]:
    """With what is fed by what is fed."""
    changed = True
    while changed:
        changed = False
        for fed in found.values():
            more = cast("set[str]", set().union(*(found[each] for each in fed))) - fed
            changed |= bool(more)
            fed |= more
    return {name: frozenset(fed) for name, fed in found.items()}
