"""``.onnx``: every BatchNormalization of the graph, its subgraphs and its functions, of opset 1 to the newest.

Roles go by the position of an input, never by its name. Arrays stay where they are, in the file or beside it, but for
the vectors of batch normalizations.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from batchnorm.core.calibration import Bench
from batchnorm.core.graph import Graph as OperationGraph
from batchnorm.core.graph import LazyGraph
from batchnorm.core.record import LayerRecord, Mode
from batchnorm.engines.session import Lazy, Session
from batchnorm.errors import BatchnormError

from .keras_records import numbered
from .marker import KEY, marked
from .modelfile import ModelFile, quoted, unreadable
from .onnx_arrays import Constant
from .onnx_graph import Functions, Graph, Node, Scope, is_standard
from .onnx_operations import graph_of
from .onnx_unfused import unfused_record
from .onnx_writer import put_mark, shared, write
from .protobuf import Message
from .stack_trace import innermost_line

__all__ = ["from_bytes", "read"]

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
NORM_VERSIONS = (1, 6, 7, 9, 14, 15)
FLOAT_TYPES = ("float64", "float32", "float16", "bfloat16")
VALUES = ("Constant", "ConstantOfShape", "Identity")
REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "GlobalAveragePool", "AveragePool", "ReduceL2")
MOST_NODES = 100_000
MOST_DEPTH = 30
MOST_STEPS_BACK = 64
MOST_ELEMENTS = 1 << 26
MOST_OTHERS = 200
AGAIN = "Save or download the file again"
INPUT_NOTE = "{} of {} batch normalizations take parameters from outside the graph; their values are not in the file"
COMPUTED_NOTE = "{} of {} batch normalizations take parameters that the graph computes; they are not in the file"
UNFUSED_NOTE = (
    "{} of {} are batch normalizations that were exported as multiplications and additions: what was folded into one "
    "constant cannot be told apart"
)


def read(path: str) -> ModelFile:
    """The batch normalizations of an ``.onnx`` file."""
    with open(path, "rb") as stream:
        try:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise unreadable(path, "the file is empty", AGAIN) from None
        with data:
            return from_bytes(path, data)


def from_bytes(path: str, data: Any) -> ModelFile:
    """Those of a serialized ModelProto.

    Parameters
    ----------
    path : str
        How messages call it, and beside what external data lie.
    data : bytes or mmap
        What the protocol buffer's serialization gives.

    Raises
    ------
    ModelFileError
        It is no ONNX model, damaged, cyclic, or its arrays do not fit its nodes.
    """
    with _guard(path):
        model = Message(data)
        graph = model.message(7)
        if graph is None:
            raise ValueError("it holds no graph")
        functions = Functions({(f.text(10), f.text(1), f.text(13)): f for f in model.messages(25)})
        scope = Scope(path, Graph.of(graph), _opset(model, model.integer(1)))
        held = data if isinstance(data, bytes) else None
        mark = next((each.text(2) for each in model.messages(14) if each.text(1) == KEY), None)
        found = _Walk(path, functions, model.text(2), held).model(scope, mark)
    return replace(found, lazy_graph=LazyGraph(partial(_graph, path, held)))


def _graph(path: str, held: bytes | None) -> OperationGraph:
    """The graph of a file, which is opened anew, or of a serialized model."""
    data: Any = held
    if data is None:
        with open(path, "rb") as stream:  # the mapping outlives the stream, for arrays that are read later
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    with _guard(path):
        model = Message(data)
        graph = model.inner(7)
        functions = Functions({(f.text(10), f.text(1), f.text(13)): f for f in model.messages(25)})
        scope = Scope(path, Graph.of(graph), _opset(model, model.integer(1)))
        return graph_of(scope, functions, [each.text(1) for each in graph.messages(12)])


def _session(path: str, held: bytes | None, names: tuple[str, ...], places: dict[str, tuple[str, str]]) -> Session:
    from batchnorm.engines.onnxruntime import open_model

    return open_model(path, held, names, places)


def _bench(path: str, held: bytes | None, records: tuple[LayerRecord, ...], calls: dict[str, list[str]]) -> Bench:
    from batchnorm.engines.onnx_bench import OnnxBench

    able = [each for each in records if each.name in calls and each.mode == "inference"]
    able = [each for each in able if each.moving_mean is not None and each.moving_variance is not None]
    return OnnxBench(path, held, able, {each.name: calls[each.name] for each in able})


def _untouched(records: tuple[LayerRecord, ...], whole: dict[str, str], twins: dict[str, str]) -> dict[str, str]:
    """Layers whose statistics are not replaced, with the reason."""
    found: dict[str, str] = {}
    for record in records:
        if record.name in twins:
            found[record.name] = f"holds the statistics of {twins[record.name]}"
        elif record.name not in whole:
            found[record.name] = "not one BatchNormalization of the outermost graph"
        elif record.mode != "inference":
            found[record.name] = "the graph normalises it with the batch"
    return found


@contextmanager
def _guard(path: str) -> Generator[None]:
    try:
        yield
    except BatchnormError:
        raise
    except (ValueError, IndexError, OverflowError, RecursionError) as error:
        raise unreadable(path, f"damaged, or no ONNX model ({quoted(str(error))[1:-1]})", AGAIN) from None


def _opset(message: Message, ir_version: int = 10, field: int = 8) -> int:
    versions = [each.integer(2) for each in message.messages(field) if is_standard(each.text(1))]
    if versions:
        return max(versions)
    if ir_version < 3:  # opsets came with version 3
        return 1
    raise ValueError("it names no version of ONNX' operators")


class _Walk:
    """A walk through every graph of a model, in the order of its nodes."""

    def __init__(self, path: str, functions: Functions, producer: str, held: bytes | None) -> None:
        self.path = path
        self.held = held
        self.producer = producer
        self.functions = functions
        self.nodes_left = MOST_NODES
        self.elements_left = MOST_ELEMENTS
        self.others: list[str] = []
        self.statistics: dict[str, tuple[str, str]] = {}
        self.outside = self.computed = self.unfused = 0

    def model(self, scope: Scope, mark: str | None) -> ModelFile:
        """What is found, and what should be known of it."""
        found = list(self._records(scope))
        records = marked(numbered(record for record, _ in found), mark)
        places = {record.name: place for record, (_, place) in zip(records, found, strict=True) if place is not None}
        names = tuple(record.name for record in records)
        counts = ((self.outside, INPUT_NOTE), (self.computed, COMPUTED_NOTE), (self.unfused, UNFUSED_NOTE))
        notes = tuple(note.format(count, len(records)) for count, note in counts if count)
        whole = {name: leave for name, (_, leave) in places.items() if leave in self.statistics}
        inputs = {name: self.statistics[leave] for name, leave in whole.items()}
        twins = shared(records, inputs)
        calls = {name: [leave] for name, leave in whole.items() if name not in twins}
        for twin, owner in twins.items():
            calls[owner].append(whole[twin])
        return ModelFile(
            path=self.path,
            format="onnx",
            layers=records,
            other_layers=tuple(self.others),
            notes=notes,
            runner=Lazy(partial(_session, self.path, self.held, names, places)),
            bench=partial(_bench, self.path, self.held, records, calls),
            writer=partial(write, self.path, self.held, records, calls),
            marker=put_mark,
            untouched=_untouched(records, whole, twins),
        )

    def _records(self, scope: Scope) -> Iterator[tuple[LayerRecord, tuple[str, str] | None]]:
        """Each with the values that go in and come out, where those are values of the outermost graph."""
        for place, node in self._visit(scope, ()):
            record: LayerRecord | None = None
            ends: tuple[str, str] | None = None
            if is_standard(node.domain):
                if node.op == "BatchNormalization":
                    record, ends = self._norm(place, node), (node.inputs[0], node.outputs[0] if node.outputs else "")
                    if place.outer is None:
                        self.statistics[ends[1]] = (node.inputs[3], node.inputs[4])
                elif (unfused := unfused_record(place, node)) is not None:
                    record, ends = unfused[0], unfused[1:]
                    self.unfused += 1
            if record is None:
                if len(self.others) < MOST_OTHERS and node.op not in VALUES:
                    self.others.append("/".join((*place.names, node.title)))
                continue
            self.elements_left -= record.channels
            if self.elements_left < 0:
                raise unreadable(self.path, "its batch normalizations claim more parameters than any model has")
            yield record, ends if place.outer is None and ends is not None and all(ends) else None

    def _visit(self, scope: Scope, inside: tuple[int, ...]) -> Iterator[tuple[Scope, Node]]:
        if len(inside) > MOST_DEPTH:
            raise ValueError(f"its graphs are nested more than {MOST_DEPTH} deep")
        self.nodes_left -= len(scope.graph.nodes) if inside else 0
        if self.nodes_left < 0:
            raise ValueError(f"its functions and branches expand to more than {MOST_NODES:,} nodes")
        for node in scope.graph.nodes:
            called = self.functions.called(node)
            if called is None:
                yield scope, node
                for subgraph in node.subgraphs():
                    inner = Scope(self.path, Graph.of(subgraph), scope.opset, scope.names, scope)
                    yield from self._visit(inner, (*inside, 0))
                continue
            message, body = called
            if not self.functions.matters(body):
                continue
            if id(body) in inside:
                raise ValueError(f"function {quoted(node.op)} calls itself")
            arguments = dict(zip(body.inputs, node.inputs, strict=False))
            inner = Scope(
                path=self.path,
                graph=body,
                opset=_opset(message, field=9),
                names=(*scope.names, node.title),
                outer=scope,
                arguments=arguments,
                call=node,
                function=message,
            )
            yield from self._visit(inner, (*inside, id(body)))

    def _norm(self, scope: Scope, node: Node) -> LayerRecord:
        name = "/".join((*scope.names, node.title))
        if len(node.inputs) < 5:
            raise unreadable(
                self.path,
                f"node {quoted(name)} is a BatchNormalization of {len(node.inputs)} inputs; it takes 5",
                AGAIN,
            )
        version = max((each for each in NORM_VERSIONS if each <= scope.opset), default=1)
        held = {role: scope.constant(each) for role, each in zip(ROLES, node.inputs[1:5], strict=True)}
        shape, dtype = self._vectors(name, scope, node, held)
        mode = self._mode(scope, node, version, held)
        momentum = _number(scope, node, "momentum", 0.9)
        # A momentum of 1 keeps everything; in a graph that updates nothing it is PyTorch's momentum=None.
        is_cumulative = momentum == 1 and mode != "training"
        arrays: dict[str, Any] = {role: None if each is None else each.read() for role, each in held.items()}
        return LayerRecord(
            name=name,
            kind=node.op,
            channels=int(np.prod(shape)) if shape else 0,
            channel_shape=shape,
            axis=1 if len(shape) < 2 else tuple(range(1, 1 + len(shape))),
            dtype=dtype,
            epsilon=_number(scope, node, "epsilon", 1e-5),
            epsilon_source="file",
            averaging="cumulative" if is_cumulative else "exponential",
            decay=None if is_cumulative else momentum,
            momentum=momentum,
            ddof=self._ddof(mode),
            mode=mode,
            source=_source(node),
            **arrays,
        )

    def _ddof(self, mode: Mode) -> int | None:
        """PyTorch stores the unbiased variance; ONNX' own training mode the biased one; of others nothing is known."""
        if mode == "batch-statistics":
            return None
        return 1 if self.producer == "pytorch" else (0 if mode == "training" else None)

    def _vectors(
        self, name: str, scope: Scope, node: Node, held: dict[str, Constant | None]
    ) -> tuple[tuple[int, ...], str]:
        """The shape and type that all parameters share; what the graph declares counts where there is no value."""
        known = {role: (each.shape, each.dtype) for role, each in held.items() if each is not None}
        for role, given in zip(ROLES, node.inputs[1:5], strict=True):
            place = None if role in known else scope.place(given)
            if place is not None and place[1] in place[0].graph.inputs:
                declared = place[0].graph.inputs[place[1]]
                if declared.shape and all(declared.shape):
                    known[role] = (declared.shape, declared.dtype)
        shapes = {shape for shape, _ in known.values()}
        per_element = _integer(scope, node, "spatial", 1) == 0 and scope.opset < 9
        fits = len(shapes) < 2 and all((len(shape) == 1 or per_element) and 0 not in shape for shape in shapes)
        if not fits or any(dtype not in FLOAT_TYPES for _, dtype in known.values()):
            found = ", ".join(f"{role} {list(shape)} {dtype}" for role, (shape, dtype) in known.items())
            raise unreadable(
                self.path,
                f"node {quoted(name)} should have vectors of one length, and has {quoted(found)[1:-1]}",
                AGAIN,
            )
        if not known:
            return (), "float32"
        statistics = known.get("moving_variance") or known.get("moving_mean") or next(iter(known.values()))
        return shapes.pop(), statistics[1]

    def _mode(self, scope: Scope, node: Node, version: int, held: dict[str, Constant | None]) -> Mode:
        missing = [given for role, given in zip(ROLES, node.inputs[1:5], strict=True) if held[role] is None]
        computed = [given for given in missing if scope.maker(given) is not None]
        self.computed += bool(computed)
        self.outside += len(missing) > len(computed)
        statistics = [given for given in node.inputs[3:5] if given in computed]
        if any(_from_batch(scope, given) for given in statistics):
            return "batch-statistics"
        if version < 7:
            return "inference" if _integer(scope, node, "is_test", 0) else "training"
        if version < 14:
            return "training" if any(node.outputs[1:]) else "inference"
        return "training" if _integer(scope, node, "training_mode", 0) else "inference"


def _from_batch(scope: Scope, name: str) -> bool:
    """Whether a value is computed by averaging something."""
    waiting, seen = [(scope, name)], 0
    while waiting and seen < MOST_STEPS_BACK:
        seen += 1
        found = waiting[0][0].maker(waiting.pop(0)[1])
        if found is None:
            continue
        if found[1].op in REDUCTIONS:
            return True
        waiting.extend((found[0], each) for each in found[1].inputs)
    return False


def _number(scope: Scope, node: Node, name: str, default: float) -> float:
    attribute = scope.attribute(node, name)
    value = None if attribute is None else attribute.float32(2)
    # The shortest decimal that is this float32: what the user who wrote 0.001 had in mind.
    return default if value is None else float(str(np.float32(value)))


def _integer(scope: Scope, node: Node, name: str, default: int) -> int:
    attribute = scope.attribute(node, name)
    return default if attribute is None else attribute.integer(3, default)


def _source(node: Node) -> str | None:
    """The line of Python behind a node, as PyTorch's exporter leaves it: ``"bn at net.py:12 in forward: ..."``."""
    metadata = node.metadata
    trace = metadata.get("pkg.torch.onnx.stack_trace") or node.documentation
    line = innermost_line(trace)
    scopes = re.findall(r"'([^']*)'", metadata.get("pkg.torch.onnx.name_scopes", ""))
    module = scopes[-2] if len(scopes) > 1 else ""
    return " at ".join(part for part in (module, line) if part) or None
