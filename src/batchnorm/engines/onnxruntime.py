"""onnxruntime as an engine: run an ONNX model on the CPU, and read what goes in and out of its batch normalizations."""

# pyright: reportUnknownMemberType=false
# onnxruntime ships no types.

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.protocols import Capture
from batchnorm.errors import require

from .session import Input, Session, feed, refused, require_layers, require_visible

__all__ = ["ERRORS_ONLY", "EXTERNAL", "PURPOSE", "WAY_OUT", "input_of", "open_model", "with_outputs"]

PURPOSE = "Running .onnx files"
WAY_OUT = "Run it in the program that it was made for"
WHY = "it is inside a branch, a loop or a function of the graph"
EXTERNAL = "session.model_external_initializers_file_folder_path"
GRAPH, OUTPUT, NAME = 7, 12, 1  # field numbers of ModelProto, GraphProto and ValueInfoProto
ERRORS_ONLY = 3
KEPT = 4
TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def open_model(path: str, held: bytes | None, names: Sequence[str], places: dict[str, tuple[str, str]]) -> Session:
    """Load an ONNX model in onnxruntime.

    Parameters
    ----------
    path : str
        The file, beside which external data lie; how messages call a live model.
    held : bytes or None
        The serialized model where it is no file.
    names : sequence of str
        Every record of the model.
    places : dict
        Layer name -> the values of the graph that go in and come out.

    Raises
    ------
    MissingExtra
        onnxruntime is not installed.
    """
    return _Onnx(require("onnxruntime", "onnx", PURPOSE), path, held, list(names), places)


def with_outputs(model: bytes, values: Sequence[str]) -> bytes:
    """A copy of a serialized model that hands out more values of its graph.

    Protocol buffers merge a message that is written twice, and join its lists: what is appended adds outputs and
    changes nothing else, whatever the model holds and however large it is.
    """
    outputs = b"".join(_field(OUTPUT, _field(NAME, value.encode())) for value in values)
    return model + _field(GRAPH, outputs) if outputs else model


class _Onnx:
    """The model as it is for outputs alone; a copy with more outputs for what lies inside."""

    def __init__(
        self, ort: Any, path: str, held: bytes | None, names: list[str], places: dict[str, tuple[str, str]]
    ) -> None:
        self._ort = ort
        self._path = path
        self._held = held
        self._names = names
        self._places = places
        self._sessions: dict[tuple[str, ...], Any] = {}
        self._plain = self._session(())
        self.inputs = [input_of(argument) for argument in self._plain.get_inputs()]
        self._outputs = [argument.name for argument in self._plain.get_outputs()]

    def __call__(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Capture]:
        """See `Session`."""
        require_layers(capture, self._names, "onnxruntime")
        require_visible(capture, self._places, self._path, WHY)
        given = feed(x, self.inputs)
        shown = {name: self._places[name] for name in capture if name in self._places}
        found = self._run(given, [value for pair in shown.values() for value in pair])
        captured: Capture = {name: [] for name in capture}
        for name, (entry, leave) in shown.items():
            captured[name].append((np.array(found[entry]), np.array(found[leave])))
        outputs = {name: found[name] for name in self._outputs}
        return outputs[self._outputs[0]] if len(outputs) == 1 else outputs, captured

    def _run(self, given: dict[str, NDArray[Any]], values: Sequence[str]) -> dict[str, Any]:
        """Every output, and these values, by name; an input is its own value."""
        more = tuple(sorted({value for value in values if value not in given and value not in self._outputs}))
        session = self._session(more) if more else self._plain
        names = [*self._outputs, *more]
        try:
            return given | dict(zip(names, session.run(names, given), strict=True))
        except Exception as error:  # each status of onnxruntime is a class of its own, derived from Exception
            raise refused(self._path, "onnxruntime", error, WAY_OUT) from error

    def _session(self, more: tuple[str, ...]) -> Any:
        if more not in self._sessions:
            while len(self._sessions) > KEPT:  # each holds the whole model
                self._sessions.pop(next(key for key in self._sessions if key))
            options = self._ort.SessionOptions()
            options.log_severity_level = ERRORS_ONLY
            options.add_session_config_entry(EXTERNAL, os.path.dirname(os.path.abspath(self._path)))
            model = self._path if self._held is None and not more else with_outputs(self._bytes(), more)
            try:
                self._sessions[more] = self._ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise refused(self._path, "onnxruntime", error, WAY_OUT) from error
        return self._sessions[more]

    def _bytes(self) -> bytes:
        return Path(self._path).read_bytes() if self._held is None else self._held


def input_of(argument: Any) -> Input:
    """An input of a session, as it says itself."""
    shape = tuple(length if isinstance(length, int) else None for length in argument.shape)
    dtype = TYPES.get(argument.type)
    return Input(argument.name, shape, None if dtype is None else np.dtype(dtype))


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes in the wire format."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)
