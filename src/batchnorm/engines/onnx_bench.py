"""ONNX models as a bench: the graph is rewritten in memory so that its statistics are inputs, or the batch's own.

Moments are computed in the graph, by the equations of the core written as nodes. What a run does not need is left out
of it, so that a pass stops at the layers it measures.
"""

# pyright: reportUnknownMemberType=false
# onnx' messages are generated, and have no types.

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.core import equations
from batchnorm.core.accumulator import Accumulator
from batchnorm.core.calibration import Trace
from batchnorm.core.padding import LeftOut, Told
from batchnorm.core.record import LayerRecord
from batchnorm.errors import Refused, require

from .onnx_masks import Shapes, along, counted, empty, masks_of, require_masks
from .onnx_namespace import OLDEST, Builder
from .onnxruntime import ERRORS_ONLY, EXTERNAL, PURPOSE, WAY_OUT, input_of
from .session import feed, refused

__all__ = ["OnnxBench", "norm_nodes", "opset_of"]

MEAN, VARIANCE = 3, 4
PARTS = ("high", "low", "variance", "count")
KEPT = 6


class OnnxBench:
    """A `Bench` over onnxruntime.

    Parameters
    ----------
    path : str
        The file, beside which external data lie.
    held : bytes or None
        The serialized model where it is no file.
    records : sequence of LayerRecord
        Layers that can be measured.
    calls : mapping of str to sequence of str
        Layer -> the outputs of its nodes; several where they share their statistics.
    """

    def __init__(
        self, path: str, held: bytes | None, records: Sequence[LayerRecord], calls: Mapping[str, Sequence[str]]
    ) -> None:
        self._onnx: Any = require("onnx", "onnx", "Recalibrating .onnx files")
        self._ort: Any = require("onnxruntime", "onnx", PURPOSE)
        self.records = tuple(records)
        self._path = path
        self._model: Any = (
            self._onnx.load(path, load_external_data=False) if held is None else self._onnx.load_from_string(held)
        )
        self._opset = opset_of(self._model)
        if self._opset < OLDEST:
            raise Refused(
                f"{path}: its operators are those of version {self._opset}; recalibrating takes {OLDEST} or newer. "
                "Convert it with onnx.version_converter."
            )
        nodes = {node.output[0]: node for node in norm_nodes(self._model)}
        self._calls = {name: [nodes[output] for output in outputs] for name, outputs in calls.items()}
        self._outputs = [output.name for output in self._model.graph.output]
        self._ranks: dict[str, int] = {}
        self._seen: dict[Any, Shapes] = {}
        self._statistics: dict[str, tuple[Any, Any]] = {}
        self._sessions: dict[Any, Any] = {}
        self._inputs: list[Any] = []

    @contextlib.contextmanager
    def session(self) -> Generator[None]:
        """See `Bench`."""
        self._statistics = {record.name: (record.moving_mean, record.moving_variance) for record in self.records}
        try:
            yield
        finally:
            self._statistics = {}
            self._sessions.clear()

    def trace(self, batch: Any, told: Told | None = None) -> Trace:
        """See `Bench`."""
        require_masks(self._path, self._opset, told)
        self._learn_ranks(batch)
        self.outputs(batch)
        start = time.perf_counter()
        self.outputs(batch)
        seconds = time.perf_counter() - start
        places = {node.output[0]: place for place, node in enumerate(self._model.graph.node) if node.output}
        last = {name: max(places[node.output[0]] for node in nodes) for name, nodes in self._calls.items()}
        first = {name: min(places[node.output[0]] for node in nodes) for name, nodes in self._calls.items()}
        order = tuple(sorted(first, key=lambda name: first[name]))
        count = max(len(self._model.graph.node), 1)
        padded = along(told, self._shapes(batch))
        return Trace(order, self._feeds(), {name: last[name] / count for name in order}, True, seconds, padded)

    def _learn_ranks(self, batch: Any) -> None:
        """How many axes the input of each layer has; a batch of the data shows it."""
        entries = [node.input[0] for nodes in self._calls.values() for node in nodes]
        found = self._run(batch, (), (), entries)
        self._ranks = {name: np.ndim(found[name]) for name in entries}

    def measure(
        self,
        batch: Any,
        layers: Collection[str],
        training: Collection[str] = (),
        left_out: LeftOut | None = None,
    ) -> dict[str, Accumulator]:
        """See `Bench`."""
        if not self._ranks:
            self._learn_ranks(batch)
        masks = self._masks(batch, left_out, {*layers, *training})
        found = self._run(batch, tuple(sorted(layers)), tuple(sorted({*training} - empty(masks))), (), masks)
        measured: dict[str, Accumulator] = {}
        for name in layers:
            for call in range(len(self._calls[name])):
                high, low, variance, count = (found[f"{name}:{call}:{part}"] for part in PARTS)
                if not all(np.all(np.isfinite(each)) for each in (high, low, variance)):
                    raise Refused(
                        f"recalibrate: the input of {name} is not finite on this data, so that its statistics would "
                        "not be either. batchnorm check names weights that are not."
                    )
                one = Accumulator.from_parts(round(float(count)), high, low, variance)
                measured[name] = measured[name].merge(one) if name in measured else one
        return measured

    def outputs(self, batch: Any, training: Collection[str] = (), left_out: LeftOut | None = None) -> Any:
        """See `Bench`."""
        if training and not self._ranks:
            self._learn_ranks(batch)
        masks = self._masks(batch, left_out, training)
        found = self._run(batch, (), tuple(sorted({*training} - empty(masks))), self._outputs, masks)
        return [found[name] for name in self._outputs]

    def write(self, layer: str, mean: Any, variance: Any) -> None:
        """See `Bench`."""
        self._statistics[layer] = (mean, variance)

    def _shapes(self, batch: Any) -> Shapes:
        """What shape each call's input has, which follows from those of the model's."""
        given = tuple((name, each.shape) for name, each in feed(batch, self._wanted()).items())
        if given not in self._seen:
            entries = [node.input[0] for nodes in self._calls.values() for node in nodes]
            found = self._run(batch, (), (), entries)
            while len(self._seen) > KEPT:
                self._seen.pop(next(iter(self._seen)))
            self._seen[given] = {
                name: [np.shape(found[node.input[0]]) for node in nodes] for name, nodes in self._calls.items()
            }
        return self._seen[given]

    def _masks(self, batch: Any, left_out: LeftOut | None, layers: Collection[str]) -> dict[str, NDArray[np.bool_]]:
        return {} if left_out is None else masks_of(left_out, self._shapes(batch), layers)

    def _run(
        self,
        batch: Any,
        layers: tuple[str, ...],
        training: tuple[str, ...],
        values: Iterable[str],
        masks: Mapping[str, NDArray[np.bool_]] = MappingProxyType({}),
    ) -> Any:
        given = feed(batch, self._wanted())
        wanted = tuple(value for value in dict.fromkeys(values) if value not in given)
        if not (wanted or layers):
            return given
        session, names = self._session(layers, training, wanted, frozenset(masks))
        fed = {
            each.name: held[each.name] for held in (given, masks) for each in session.get_inputs() if each.name in held
        }
        dtypes = {each.name: input_of(each).dtype for each in session.get_inputs()}
        for name, pair in self._statistics.items():
            for part, value in zip(("mean", "variance"), pair, strict=True):
                key = f"{name}:{part}"
                if key in dtypes:
                    fed[key] = np.asarray(value, np.float64).reshape(-1).astype(dtypes[key])
        try:
            return given | dict(zip(names, session.run(list(names), fed), strict=True))
        except Exception as error:  # each status of onnxruntime is a class of its own, derived from Exception
            raise refused(self._path, "onnxruntime", error, WAY_OUT) from error

    def _wanted(self) -> list[Any]:
        """The inputs of the model itself."""
        if not self._inputs:
            known = {each.name for each in self._model.graph.initializer}
            inputs = self._opened(self._model.SerializeToString()).get_inputs()
            self._inputs = [input_of(each) for each in inputs if each.name not in known]
        return self._inputs

    def _session(
        self, layers: tuple[str, ...], training: tuple[str, ...], values: tuple[str, ...], masked: frozenset[str]
    ) -> Any:
        key = (layers, training, values, masked)
        if key not in self._sessions:
            while len(self._sessions) > KEPT:
                self._sessions.pop(next(iter(self._sessions)))
            model, names = self._rewritten(layers, training, values, masked)
            self._sessions[key] = (self._opened(model.SerializeToString()), names)
        return self._sessions[key]

    def _opened(self, model: bytes) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry(EXTERNAL, os.path.dirname(os.path.abspath(self._path)))
        try:
            return self._ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise refused(self._path, "onnxruntime", error, WAY_OUT) from error

    def _rewritten(
        self, layers: tuple[str, ...], training: tuple[str, ...], values: tuple[str, ...], masked: frozenset[str]
    ) -> tuple[Any, tuple[str, ...]]:
        """A copy whose statistics are inputs, or in training the batch's own, and that hands out moments and values."""
        model: Any = self._onnx.ModelProto()
        model.CopyFrom(self._model)
        graph, helper = model.graph, self._onnx.helper
        builder = Builder(self._opset)
        nodes = {node.output[0]: node for node in norm_nodes(model)}
        made: dict[str, list[Any]] = {}
        names = list(values)
        for record in self.records:
            calls = [nodes[node.output[0]] for node in self._calls[record.name]]
            dtype = helper.np_dtype_to_tensor_dtype(np.dtype(record.dtype))
            if record.name not in training:
                for part in ("mean", "variance"):
                    name = f"{record.name}:{part}"
                    graph.input.append(helper.make_tensor_value_info(name, dtype, [record.channels]))
            for number, node in enumerate(calls):
                before = len(builder.nodes)
                prefix = f"{record.name}:{number}"
                if record.name in training or record.name in layers:
                    kept = f"{prefix}:kept"
                    self._moments(builder, node.input[0], record, prefix, graph if kept in masked else None)
                if record.name in training:
                    node.input[MEAN], node.input[VARIANCE] = self._own(builder, record, prefix)
                else:
                    node.input[MEAN], node.input[VARIANCE] = f"{record.name}:mean", f"{record.name}:variance"
                made[node.output[0]] = builder.nodes[before:]
                names += [f"{prefix}:{part}" for part in PARTS] if record.name in layers else []
        _interleave(graph, made)
        graph.initializer.extend(builder.constants)
        _keep(graph, names)
        return model, tuple(names)

    def _moments(self, builder: Builder, entry: str, record: LayerRecord, prefix: str, masked_in: Any = None) -> None:
        rank = self._ranks[entry]
        x = builder.value(entry, rank)
        axes = tuple(axis for axis in range(rank) if axis != 1)
        if masked_in is None:
            mask, count = None, builder.count(x, record.channels)
            divisor = count
        else:
            mask, count, divisor = counted(self._onnx, masked_in, builder, f"{prefix}:kept", rank)
        found = equations.moments(builder, x, axes, divisor, mask)
        for part, each in zip(PARTS, (found.high, found.low, found.variance, count), strict=True):
            builder.nodes.append(self._onnx.helper.make_node("Identity", [each.name], [f"{prefix}:{part}"]))

    def _own(self, builder: Builder, record: LayerRecord, prefix: str) -> tuple[str, str]:
        """The batch's own mean and variance as vectors of the type that the node takes."""
        flat = builder.constant([-1], np.int64)
        mean = builder.node("Add", [f"{prefix}:high", f"{prefix}:low"])
        pair = (builder.node("Reshape", [each, flat]) for each in (mean, f"{prefix}:variance"))
        first, second = (builder.cast(each, record.dtype) for each in pair)
        return first, second

    def _feeds(self) -> dict[str, frozenset[str]]:
        graph = self._model.graph
        layer_of = {node.output[0]: name for name, nodes in self._calls.items() for node in nodes}
        fed: dict[str, frozenset[str]] = {}
        found: dict[str, set[str]] = {name: set() for name in self._calls}
        for node in graph.node:  # in an order in which they can run
            sources = frozenset[str]().union(*(fed.get(name, frozenset()) for name in _names_in(node)))
            own = layer_of.get(node.output[0]) if node.output else None
            if own is not None:
                for source in sources:
                    found[source].add(own)
                sources |= {own}
            fed |= dict.fromkeys(node.output, sources)
        return _closed(found)


def norm_nodes(model: Any) -> list[Any]:
    """The batch normalizations of the outermost graph."""
    return [
        node
        for node in model.graph.node
        if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx") and len(node.input) > VARIANCE
    ]


def opset_of(model: Any) -> int:
    """The version of ONNX' own operators."""
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=1)


def _names_in(node: Any) -> set[str]:
    """Everything a node takes, also inside its branches and loops."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                names |= _names_in(inner)
            names |= {output.name for output in graph.output}
    return names


def _interleave(graph: Any, made: Mapping[str, list[Any]]) -> None:
    """Put new nodes right before the node that takes what they give."""
    old = list(graph.node)
    del graph.node[:]
    for node in old:
        graph.node.extend(made.get(node.output[0], []) if node.output else [])
        graph.node.append(node)


def _keep(graph: Any, outputs: Sequence[str]) -> None:
    """Only what these outputs need."""
    needed = set(outputs)
    kept: list[Any] = []
    for node in reversed(list(graph.node)):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed |= _names_in(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for held in (graph.input, graph.initializer):
        left = [each for each in held if each.name in needed]
        del held[:]
        held.extend(left)
    known = {each.name: each for each in graph.output}
    del graph.output[:]
    for name in outputs:
        value = graph.output.add()
        if name in known:
            value.CopyFrom(known[name])
        else:
            value.name = name


def _closed(feeds: Mapping[str, set[str]]) -> dict[str, frozenset[str]]:
    """With what is fed by what is fed; a layer of several nodes may be fed by itself."""
    found = {name: set(fed) for name, fed in feeds.items()}
    changed = True
    while changed:
        changed = False
        for name, fed in found.items():
            more = cast("set[str]", set().union(*(found[each] for each in fed))) - fed
            changed |= bool(more)
            fed |= more
            found[name] = fed
    return {name: frozenset(fed) for name, fed in found.items()}
