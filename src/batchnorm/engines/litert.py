"""LiteRT as an engine: run a ``.tflite`` file, and read what goes in and out of what is left of its layers."""

# pyright: reportUnknownMemberType=false
# LiteRT ships no types.

from __future__ import annotations

import contextlib
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
    module = _module()
    try:
        plain = module.Interpreter(model_path=path)
        # Without delegates and with all tensors kept: what lies inside is merged or overwritten otherwise.
        watched = module.Interpreter(
            model_path=path,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        return _Lite(path, plain, watched, names, places)
    except (ValueError, RuntimeError) as error:
        raise refused(path, "LiteRT", error, WAY_OUT) from error


def _module() -> Any:
    try:
        return require("ai_edge_litert.interpreter", "litert", PURPOSE)
    except MissingExtra:
        with contextlib.suppress(MissingExtra):
            return require("tensorflow.lite.python.interpreter", "litert", PURPOSE)
        raise


class _Lite:
    """Two interpreters: as users run the model, and one whose tensors can all be read."""

    def __init__(self, path: str, plain: Any, watched: Any, names: Sequence[str], places: Places) -> None:
        self._path = path
        self._plain = plain
        self._watched = watched
        self._names = list(names)
        self._places = places
        self._inputs = [_input(detail) for detail in plain.get_input_details()]

    def __call__(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Capture]:
        """See `Session`."""
        require_layers(capture, self._names, "LiteRT")
        require_visible(capture, self._places, self._path, WHY)
        given = feed(x, self._inputs)
        try:
            return self._run(self._watched if capture else self._plain, given, capture)
        except (ValueError, RuntimeError) as error:
            raise refused(self._path, "LiteRT", error, WAY_OUT) from error

    def _run(self, interpreter: Any, given: dict[str, NDArray[Any]], capture: Sequence[str]) -> tuple[Any, Capture]:
        details = {detail["name"]: detail for detail in interpreter.get_input_details()}
        for name, array in given.items():
            if tuple(details[name]["shape"]) != array.shape:  # inputs take the length of each batch
                interpreter.resize_tensor_input(details[name]["index"], array.shape)
        interpreter.allocate_tensors()
        for name, array in given.items():
            interpreter.set_tensor(details[name]["index"], array)
        interpreter.invoke()
        outputs = [_array(interpreter, detail["index"]) for detail in interpreter.get_output_details()]
        captured: Capture = {name: [] for name in capture}
        for name in capture:
            if name in self._places:
                entry, leave = self._places[name]
                captured[name].append((_array(interpreter, entry), _array(interpreter, leave)))
        return outputs[0] if len(outputs) == 1 else outputs, captured


def _array(interpreter: Any, index: int) -> NDArray[Any]:
    """A copy; quantized numbers as the real ones they stand for."""
    array: NDArray[Any] = interpreter.get_tensor(index)
    scale, zero = interpreter._get_tensor_details(index, 0)["quantization"]
    if array.dtype.kind in "iu" and scale:
        return ((array.astype(np.float64) - zero) * scale).astype(np.float32)
    return np.array(array)


def _input(detail: dict[str, Any]) -> Input:
    lengths = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    shape = tuple(None if length < 0 else int(length) for length in lengths)
    # The converter writes a batch of any length as 1.
    return Input(str(detail["name"]), (None, *shape[1:]) if shape else shape, np.dtype(detail["dtype"]))
