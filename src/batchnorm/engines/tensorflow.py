"""TensorFlow as an engine: run a SavedModel, and read what goes in and out of its batch normalizations."""

# pyright: reportUnknownMemberType=false
# TensorFlow ships no types for what is used here; everything of it is Any.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.protocols import Capture
from batchnorm.errors import Refused, require

from .session import Input, Places, Session, feed, printable, refused, require_layers, require_visible

__all__ = ["open_folder"]

PURPOSE = "Running a SavedModel"
WHY = "its graph is compiled, or normalises in a form that is not known"
WAY_OUT = "Run it in the program that wrote it"


def open_folder(path: str, entry: str, names: Sequence[str], places: Places) -> Session:
    """Load a SavedModel in TensorFlow; its restore function runs, nothing of the model itself yet.

    Parameters
    ----------
    path : str
        The folder.
    entry : str
        The signature to call; with a dot in front, an attribute of the root object.
    names : sequence of str
        Every record of the folder.
    places : dict
        Where the graph, with its calls inlined, has the batch normalizations.

    Raises
    ------
    ModelFileError
        TensorFlow cannot load it: an operator that is not registered, a newer version.
    MissingExtra
        TensorFlow is not installed.
    """
    tf: Any = require("tensorflow", "tensorflow", PURPOSE)
    try:
        loaded = tf.saved_model.load(path)
        function = getattr(loaded, entry[1:]).concrete_functions[0] if entry[:1] == "." else loaded.signatures[entry]
    except Exception as error:
        raise refused(path, "TensorFlow", error, WAY_OUT) from error
    return _SavedModel(tf, path, (loaded, function), names, places)


class _SavedModel:
    """A signature, as it is for outputs alone; inlined and frozen for what lies inside."""

    def __init__(self, tf: Any, path: str, loaded: tuple[Any, Any], names: Sequence[str], places: Places) -> None:
        self._tf = tf
        self._path = path
        self._owner, function = loaded  # the variables live as long as the object that owns them
        self._function = function
        self._names = list(names)
        self._places = places
        self._inlined: Any = None
        taken = len(function.inputs) - len(function.captured_inputs)
        self._inputs = [_input(tensor) for tensor in function.inputs[:taken]]

    def __call__(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Capture]:
        """See `Session`."""
        require_layers(capture, self._names, "TensorFlow")
        require_visible(capture, self._places, self._path, WHY)
        given = feed(x, self._inputs)
        tensors = [self._tf.constant(given[known.name]) for known in self._inputs]
        try:
            return self._run(tensors, capture)
        except self._tf.errors.OpError as error:
            raise refused(self._path, "TensorFlow", error, WAY_OUT) from error

    def _run(self, tensors: list[Any], capture: Sequence[str]) -> tuple[Any, Capture]:
        function = self._function if not capture else self._frozen()
        fetches = [self._pair(function.graph, name, use) for name in capture for use in self._places.get(name, ())]
        inside: list[Any] = []
        if fetches:
            pruned = function.prune(function.inputs, [*function.outputs, *(one for pair in fetches for one in pair)])
            found = pruned(*tensors)
            outputs, inside = found[: len(function.outputs)], found[len(function.outputs) :]
        else:
            outputs = function._call_flat(tensors, function.captured_inputs)
            outputs = self._tf.nest.flatten(outputs)
        arrays = iter([_array(tensor) for tensor in inside])
        captured: Capture = {
            name: [(next(arrays), next(arrays)) for _ in self._places.get(name, ())] for name in capture
        }
        return self._structured(outputs), captured

    def _structured(self, outputs: Sequence[Any]) -> Any:
        """One array where there is one output; else by name."""
        arrays = [_array(tensor) for tensor in outputs]
        if len(arrays) == 1:
            return arrays[0]
        return self._tf.nest.pack_sequence_as(self._function.structured_outputs, arrays)

    def _frozen(self) -> Any:
        """The signature with its calls inlined and its variables as constants: there each tensor has a name."""
        if self._inlined is None:
            convert: Any = require("tensorflow.python.framework.convert_to_constants", "tensorflow", PURPOSE)
            try:
                self._inlined = convert.convert_variables_to_constants_v2(self._function, lower_control_flow=False)
            except Exception as error:
                raise Refused(
                    f"{self._path}: TensorFlow cannot write this graph out ({printable(error)}), so that nothing "
                    "inside can be shown; run it without capture"
                ) from error
        return self._inlined

    def _pair(self, graph: Any, name: str, use: tuple[str, int, str]) -> tuple[Any, Any]:
        entry, place, leave = use
        try:
            return graph.get_operation_by_name(entry).inputs[place], graph.get_operation_by_name(leave).outputs[0]
        except (KeyError, IndexError):
            raise Refused(
                f"{self._path}: {name} runs inside a loop or a branch of the graph, where TensorFlow gives no access"
            ) from None


def _input(tensor: Any) -> Input:
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return Input(tensor.name.rpartition(":")[0], shape, np.dtype(tensor.dtype.as_numpy_dtype))


def _array(tensor: Any) -> NDArray[Any]:
    return np.array(tensor.numpy())
