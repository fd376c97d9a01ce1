"""ONNX models as a bench: onnxruntime runs the graph up to a layer, whose moments the kernels find there.

A layer in training mode is computed by the kernels as well, from the same read of its input. What a run does not need
is left out of it, so that a pass stops at the layers it measures.
"""

# pyright: reportUnknownMemberType=false
# onnx' messages are generated, and have no types.

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from batchnorm.core.accumulator import Accumulator
from batchnorm.core.calibration import Trace
from batchnorm.core.padding import LeftOut, Told
from batchnorm.core.record import LayerRecord
from batchnorm.errors import BatchnormError, require

from .array_call import ArrayCall
from .calls import Along
from .onnx_graph import MEAN, SCALE, SHIFT, VARIANCE, feeds, make_dense, norm_nodes, put_in_order, rectified
from .onnx_memory import give_back, shared
from .onnx_pieces import Pieces
from .onnxruntime import ERRORS_ONLY, EXTERNAL, PURPOSE, WAY_OUT, input_of
from .session import feed, refused

__all__ = ["OnnxBench"]

KEPT = 6
"""Runs of different kinds whose sessions are kept."""


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
        self._path, self._folder = path, os.path.dirname(os.path.abspath(path))
        self._model: Any = (
            self._onnx.load(path, load_external_data=False) if held is None else self._onnx.load_from_string(held)
        )
        self._inputs = self._own_inputs()
        make_dense(self._onnx, self._model.graph, self._folder)
        put_in_order(self._model.graph)
        self._outputs = [output.name for output in self._model.graph.output]
        self._record_of = {output: record for record in records for output in calls[record.name]}
        self._arrays = {each.name: each for each in self._model.graph.initializer}
        for node in norm_nodes(self._model):
            if node.output[0] in self._record_of:
                node.input[MEAN], node.input[VARIANCE] = _names(self._record_of[node.output[0]].name)
        self._gives = {output: output for output in self._record_of} | rectified(self._model.graph, self._record_of)
        self._statistics: dict[str, Any] = {}
        self._kinds: dict[Any, Pieces] = {}

    @contextlib.contextmanager
    def session(self) -> Generator[None]:
        """See `Bench`."""
        for record in self.records:
            self.write(record.name, record.moving_mean, record.moving_variance)
        try:
            yield
        finally:
            self._statistics.clear()
            self._kinds.clear()
            give_back(self._ort, self._onnx)

    def trace(self, batch: Any, told: Told | None = None) -> Trace:
        """See `Bench`."""
        along = Along(told)
        if told is not None:
            self._run(batch, {record.name for record in self.records}, (), (), lambda call, _: along(call))
        self.outputs(batch)  # opens the session
        start = time.perf_counter()
        self.outputs(batch)
        seconds = time.perf_counter() - start
        nodes = self._model.graph.node
        places = {node.output[0]: place for place, node in enumerate(nodes) if node.output}
        of: dict[str, list[int]] = {record.name: [] for record in self.records}
        for output, record in self._record_of.items():
            of[record.name].append(places[output])
        order = tuple(sorted(of, key=lambda name: min(of[name])))
        reached = {name: max(of[name]) / len(nodes) for name in order}
        fed = feeds(nodes, {output: record.name for output, record in self._record_of.items()})
        return Trace(order, fed, reached, True, seconds, along.layers)

    def measure(
        self,
        batch: Any,
        layers: Collection[str],
        training: Collection[str] = (),
        left_out: LeftOut | None = None,
    ) -> dict[str, Accumulator]:
        """See `Bench`."""
        measured: dict[str, Accumulator] = {}

        def visit(call: ArrayCall, in_training: bool) -> None:
            call.leave_out(left_out)
            one = call.in_training() if in_training else call.moments()
            if call.name in layers:
                measured[call.name] = measured[call.name].merge(one) if call.name in measured else one

        self._run(batch, {*layers, *training}, training, (), visit)
        return measured

    def outputs(self, batch: Any, training: Collection[str] = (), left_out: LeftOut | None = None) -> Any:
        """See `Bench`."""

        def visit(call: ArrayCall, _training: bool) -> None:
            call.leave_out(left_out)
            call.in_training()

        found = self._run(batch, training, training, self._outputs, visit)
        return [found[name] for name in self._outputs]

    def write(self, layer: str, mean: Any, variance: Any) -> None:
        """See `Bench`."""
        dtype = next(record.dtype for record in self.records if record.name == layer)
        for name, value in zip(_names(layer), (mean, variance), strict=True):
            self._statistics[name] = np.asarray(value, np.float64).reshape(-1).astype(dtype)

    def _run(
        self,
        batch: Any,
        stops: Collection[str],
        training: Collection[str],
        values: Sequence[str],
        visit: Callable[[ArrayCall, bool], None],
    ) -> dict[str, Any]:
        """The values, with every call of the layers ``stops`` visited on its way."""
        given = feed(batch, self._inputs)
        held = given | self._statistics
        pieces = self._pieces(
            frozenset(stops), frozenset(training), tuple(name for name in values if name not in given)
        )
        for node, found, spare in self._stops(pieces, held):
            self._visited(node, found, spare, training, visit)
        return held

    def _stops(self, pieces: Pieces, held: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any], bool]]:
        """`Pieces.run`; what goes wrong at a stop is not onnxruntime's, and does not come through here."""
        try:
            yield from pieces.run(held, self._opened)
        except BatchnormError:
            raise
        except Exception as error:  # each status of onnxruntime is a class of its own, derived from Exception
            raise refused(self._path, "onnxruntime", error, WAY_OUT) from error

    def _visited(
        self,
        node: Any,
        held: dict[str, Any],
        spare: bool,
        training: Collection[str],
        visit: Callable[[ArrayCall, bool], None],
    ) -> None:
        record = self._record_of[node.output[0]]
        gamma, beta = (self._array(node.input[place], held) for place in (SCALE, SHIFT))
        in_training = record.name in training
        gives = self._gives[node.output[0]]
        x = held[node.input[0]]
        entry = x if x.ndim > 1 else x[:, None]  # the operator takes a single axis for samples of one channel
        call = ArrayCall(record, entry, gamma, beta, spare=spare and in_training, rectifies=gives != node.output[0])
        visit(call, in_training)
        if in_training:
            y: Any = call.output  # None where all of it is padding
            y = call.infer(*(held[name] for name in _names(record.name))) if y is None else y
            held[gives] = y.reshape(x.shape)

    def _array(self, name: str, held: Mapping[str, Any]) -> Any:
        if name not in self._arrays:
            return held[name]
        return self._onnx.numpy_helper.to_array(self._arrays[name], self._folder)

    def _needs(self, node: Any) -> list[str]:
        parameters = (node.input[place] for place in (SCALE, SHIFT))
        return [node.input[0], *(name for name in parameters if name not in self._arrays)]

    def _pieces(self, stops: frozenset[str], training: frozenset[str], values: tuple[str, ...]) -> Pieces:
        key = stops, training, values
        if key not in self._kinds:
            while len(self._kinds) > KEPT:
                self._kinds.pop(next(iter(self._kinds)))
            at, own = (
                {out for out, each in self._record_of.items() if each.name in part} for part in (stops, training)
            )
            given = {name: self._gives[name] for name in own}
            self._kinds[key] = Pieces(self._onnx, self._ort, self._model, at, given, values, self._needs)
        return self._kinds[key]

    def _own_inputs(self) -> list[Any]:
        """The inputs of the model as it is."""
        known = {each.name for each in self._model.graph.initializer}
        inputs = self._opened(self._model.SerializeToString()).get_inputs()
        return [input_of(each) for each in inputs if each.name not in known]

    def _opened(self, model: bytes) -> Any:
        options = shared(self._ort, self._ort.SessionOptions())
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry(EXTERNAL, self._folder)
        try:
            return self._ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise refused(self._path, "onnxruntime", error, WAY_OUT) from error


def _names(layer: str) -> tuple[str, str]:
    """What a layer's statistics are called among the inputs of the graph."""
    return f"{layer}:mean", f"{layer}:variance"
