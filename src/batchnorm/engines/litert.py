"""LiteRT as an engine: run a ``.tflite`` file, and read what goes in and out of what is left of its layers."""

# pyright: reportUnknownMemberType=false
# LiteRT ships no types.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.protocols import Capture
from batchnorm.errors import MissingExtra, require

from .session import Input, Session, feed, refused, require_layers, require_visible

__all__ = ["open_file"]

PURPOSE = "Running .tflite files"
WAY_OUT = "Run it in the program that it was made for"
WHY = "it is part of the weights of another operator, so that its input and output exist nowhere"
Places = dict[str, tuple[int, int]]


def open_file(path: str, names: Sequence[str], places: Places) -> Session:
    """Load a ``.tflite`` file in LiteRT; in TensorFlow's copy of it where only that is installed.

    Parameters
    ----------
    path : str
        The file.
    names : sequence of str
        Every record of it.
    places : dict
        Layer name -> the numbers of the tensors that go in and come out, for layers that are still operators.

    Raises
    ------
    ModelFileError
        LiteRT cannot load it: an operator that it does not have, a newer version.
    MissingExtra
        Neither is installed.
    """
    interpreter = _interpreter()
    try:
        # Without its delegates and with all tensors kept: what lies inside is overwritten otherwise.
        return _Lite(path, interpreter(model_path=path, experimental_preserve_all_tensors=True), names, places)
    except (ValueError, RuntimeError) as error:
        raise refused(path, "LiteRT", error, WAY_OUT) from error


def _interpreter() -> Any:
    try:
        module: Any = require("ai_edge_litert.interpreter", "litert", PURPOSE)
        return module.Interpreter
    except MissingExtra:
        try:
            return require("tensorflow.lite.python.interpreter", "litert", PURPOSE).Interpreter
        except MissingExtra:
            pass
        raise


class _Lite:
    """One interpreter; its inputs take the length of each batch."""

    def __init__(self, path: str, interpreter: Any, names: Sequence[str], places: Places) -> None:
        self._path = path
        self._interpreter = interpreter
        self._names = list(names)
        self._places = places
        self._inputs = [_input(detail) for detail in interpreter.get_input_details()]

    def __call__(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Capture]:
        """See `Session`."""
        require_layers(capture, self._names, "LiteRT")
        require_visible(capture, self._places, self._path, WHY)
        given = feed(x, self._inputs)
        try:
            return self._run(given, capture)
        except (ValueError, RuntimeError) as error:
            raise refused(self._path, "LiteRT", error, WAY_OUT) from error

    def _run(self, given: dict[str, NDArray[Any]], capture: Sequence[str]) -> tuple[Any, Capture]:
        details = {detail["name"]: detail for detail in self._interpreter.get_input_details()}
        for name, array in given.items():
            if tuple(details[name]["shape"]) != array.shape:
                self._interpreter.resize_tensor_input(details[name]["index"], array.shape)
        self._interpreter.allocate_tensors()
        for name, array in given.items():
            self._interpreter.set_tensor(details[name]["index"], array)
        self._interpreter.invoke()
        outputs = [self._array(detail["index"]) for detail in self._interpreter.get_output_details()]
        captured: Capture = {name: [] for name in capture}
        for name in capture:
            if name in self._places:
                entry, leave = self._places[name]
                captured[name].append((self._array(entry), self._array(leave)))
        return outputs[0] if len(outputs) == 1 else outputs, captured

    def _array(self, index: int) -> NDArray[Any]:
        """A copy; quantized numbers as the real ones they stand for."""
        array: NDArray[Any] = self._interpreter.get_tensor(index)
        details = self._interpreter._get_tensor_details(index, 0)
        scale, zero = details["quantization"]
        if array.dtype.kind in "iu" and scale:
            return ((array.astype(np.float64) - zero) * scale).astype(np.float32)
        return np.array(array)


def _input(detail: dict[str, Any]) -> Input:
    lengths = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    shape = tuple(None if length < 0 else int(length) for length in lengths)
    # The converter writes a batch of any length as 1.
    return Input(str(detail["name"]), (None, *shape[1:]) if shape else shape, np.dtype(detail["dtype"]))
