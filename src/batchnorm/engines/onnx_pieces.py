"""An ONNX graph that stops at some of its nodes: it is cut there, and what comes next is told what they give.

Between two stops onnxruntime runs a piece of the graph, a model of its own. Constants are part of every piece that
needs them, so that each is optimized as the whole graph would be. What no result needs is left out.
"""

# pyright: reportUnknownMemberType=false
# onnx' messages are generated, and have no types.

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .onnx_graph import constants, names_in
from .onnx_types import as_array, input_like, run

__all__ = ["Piece", "Pieces"]

Open = Callable[[bytes], Any]
NAMED = 4
"""The first version of the format in which what the file holds is no input of the graph."""


@dataclass(eq=False)
class Piece:
    """Nodes that run together, and the node at which they end.

    Attributes
    ----------
    nodes : list
        In an order in which they can run; may be empty.
    stop : node or None
        What is computed next, by whoever runs the piece; None after the last.
    takes, gives, needs : list of str
        Values from before, values that are needed later, and those of them that ``stop`` needs.
    done : list of str
        Values that nothing needs any more once ``stop`` is computed.
    """

    nodes: list[Any]
    stop: Any = None
    takes: list[str] = field(default_factory=list[str])
    gives: list[str] = field(default_factory=list[str])
    needs: list[str] = field(default_factory=list[str])
    done: list[str] = field(default_factory=list[str])
    session: Any = None


class _Step(NamedTuple):
    """A node, whether the graph is cut before it, and whether a piece runs it."""

    node: Any
    stops: bool
    runs: bool


class Pieces:
    """The pieces of one graph for one set of stops and results.

    Parameters
    ----------
    onnx, ort : module
        The packages.
    model : ModelProto
        Its outermost graph is cut; the model is not changed.
    stops : collection of str
        First outputs of the nodes to stop at.
    replaced : mapping of str to str
        Those of them that whoever runs the pieces computes -> the value that he gives: the same, or that of a node
        behind it, which he computes, too. The others compute their output themselves.
    wanted : sequence of str
        Values to be left at the end.
    needs : callable
        What a stop needs of the graph: names of values.
    """

    def __init__(
        self,
        onnx: Any,
        ort: Any,
        model: Any,
        stops: Collection[str],
        replaced: Mapping[str, str],
        wanted: Sequence[str],
        needs: Callable[[Any], list[str]],
    ) -> None:
        self._onnx, self._ort, self._model, self._nodes = onnx, ort, model, list(model.graph.node)
        self._fixed = constants(model, self._nodes)
        self.wanted, self._needs = tuple(wanted), needs
        self._types: dict[str, str] = {}
        self._pieces = _cut(self._kept({*stops}, replaced))
        self._connect()

    def _kept(self, stops: set[str], replaced: Mapping[str, str]) -> list[_Step]:
        """The nodes that the stops and the results need, less the constants."""
        needed, kept, given = set(self.wanted), list[_Step](), {*replaced, *replaced.values()}
        for node in reversed(self._nodes):
            stops_here = bool(node.output) and node.output[0] in stops
            runs = any(name in needed and name not in self._fixed for name in node.output)
            runs &= not (node.output and node.output[0] in given)
            if stops_here or runs:
                kept.append(_Step(node, stops_here, runs))
            needed |= {*self._needs(node)} if stops_here else set()
            needed |= names_in(node) if runs else set()
        return kept[::-1]

    def _connect(self) -> None:
        """Say of each piece what it takes and gives, and what it is the last to use."""
        last: dict[str, int] = {}
        made = [{name for node in piece.nodes for name in node.output} for piece in self._pieces]
        for place, piece in enumerate(self._pieces):
            taken = set[str]().union(*(names_in(node) for node in piece.nodes)) - made[place]
            piece.takes = sorted(taken - self._fixed.keys())
            piece.needs = [] if piece.stop is None else self._needs(piece.stop)
            last |= dict.fromkeys((*piece.takes, *piece.needs), place)
        last |= dict.fromkeys(self.wanted, len(self._pieces))
        for place, piece in enumerate(self._pieces):
            needs = {*piece.needs}
            constant = (needs if piece.stop is not None else {*self.wanted}) & self._fixed.keys()
            piece.gives = sorted(
                {name for name in made[place] if last.get(name, -1) > place or name in needs} | constant
            )
            piece.done = [name for name, use in last.items() if use == place]

    def run(self, held: dict[str, Any], opened: Open) -> Iterator[tuple[Any, dict[str, Any], bool]]:
        """Run one piece after the other, and halt at each stop for whoever computes it and puts its output in ``held``.

        Yields the node, the values that are held, and whether nobody needs the first of those it needs afterwards.
        ``held`` begins with the inputs; ``opened`` makes a session of a serialized model.
        """
        own = set(held)
        for piece in self._pieces:
            if piece.gives:
                if piece.session is None:
                    piece.session = opened(self._serialized(piece, held))
                    piece.takes = [each.name for each in piece.session.get_inputs()]
                    self._types |= {each.name: each.type for each in piece.session.get_outputs()}
                kinds = {name: self._types[name] for name in piece.gives}
                held |= run(self._ort, piece.session, kinds, {name: held[name] for name in piece.takes})
            if piece.stop is not None:
                entry = piece.needs[0]
                yield piece.stop, held, entry in piece.done and entry not in own
            for name in piece.done:
                if name not in own:  # what was given may be a result, too
                    held.pop(name, None)
        held |= {name: as_array(self._ort, held[name]) for name in self.wanted}

    def _serialized(self, piece: Piece, held: dict[str, Any]) -> bytes:
        """The piece as a model, with the constants that it needs."""
        model: Any = self._onnx.ModelProto(ir_version=max(self._model.ir_version, NAMED), producer_name="batchnorm")
        model.opset_import.extend(self._model.opset_import)
        model.functions.extend(self._model.functions)
        nodes, names = self._with_constants(piece)
        model.graph.name = "piece"
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(each for each in self._model.graph.initializer if each.name in names)
        takes = [name for name in piece.takes if name in held]
        model.graph.input.extend(input_like(self._onnx, name, held[name], self._types.get(name)) for name in takes)
        for name in piece.gives:
            model.graph.output.add().name = name
        return bytes(model.SerializeToString())

    def _with_constants(self, piece: Piece) -> tuple[list[Any], set[str]]:
        """The nodes and those of constants they need, in order, and the names of all they take."""
        names = set[str]().union(piece.gives, *(names_in(node) for node in piece.nodes))
        chosen = {id(node) for node in piece.nodes}
        before = list[Any]()
        for node in reversed(self._nodes):
            if id(node) not in chosen and any(self._fixed.get(name) is node and name in names for name in node.output):
                before.append(node)
                names |= names_in(node)
        return [*before[::-1], *piece.nodes], names


def _cut(steps: Sequence[_Step]) -> list[Piece]:
    """The nodes up to each stop; one that computes its output itself is the first of the next piece."""
    pieces = [Piece([])]
    for node, stops, runs in steps:
        if stops:
            pieces[-1].stop = node
            pieces.append(Piece([]))
        if runs:
            pieces[-1].nodes.append(node)
    return pieces
