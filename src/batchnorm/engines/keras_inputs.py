"""What a live Keras model takes: names, shapes and types of its inputs, and data brought into that form."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import ArgumentError

from .session import Input

__all__ = ["given_inputs", "inputs_of"]


def inputs_of(model: Any) -> list[Input] | None:
    """What a functional or sequential model takes; None where it does not tell."""
    given = _named_inputs(model)
    if not given:
        return None
    return [
        Input(name, (None, *one.shape[1:]), np.dtype(str(one.dtype).replace("bfloat16", "float32")))
        for name, one in given.items()
    ]


def given_inputs(model: Any, x: Any) -> Any:
    """The model's input as it takes it, of the right names and shapes.

    Raises
    ------
    ArgumentError
        Another name or shape; the message says what is wanted.
    """
    wanted: Any = getattr(model, "input_shape", None) if getattr(model, "inputs", None) else None
    if isinstance(x, dict):
        given = {str(key): np.asarray(value) for key, value in cast("dict[Any, Any]", x).items()}
        tensors = _named_inputs(model)
        by_tensor = {str(tensor.name): name for name, tensor in tensors.items()}
        given = {by_tensor.get(name, name): value for name, value in given.items()}
        _check_names(tensors, given)
        if not tensors or isinstance(getattr(model, "input", None), dict):
            return given
        # Keras itself finds inputs by name only where each Input was given one.
        ordered = [given[name] for name in tensors]
        return ordered if len(ordered) > 1 else ordered[0]
    if isinstance(x, (list, tuple)) and isinstance(wanted, list):
        many = [np.asarray(value) for value in cast("list[Any]", x)]
        if len(many) != len(cast("list[Any]", wanted)):
            raise ArgumentError(f"the model wants {len(cast('list[Any]', wanted))} inputs; got {len(many)}")
        for array, shape, tensor in zip(many, cast("list[Any]", wanted), model.inputs, strict=True):
            _check_shape(array, shape)
            _check_type(array, str(tensor.dtype))
        return many
    array: NDArray[Any] = np.asarray(cast("Any", x))
    if isinstance(wanted, list) and len(cast("list[Any]", wanted)) > 1:
        raise ArgumentError(f"the model wants {len(cast('list[Any]', wanted))} inputs; got one array")
    if isinstance(wanted, tuple):
        _check_shape(array, cast("tuple[int | None, ...]", wanted))
        _check_type(array, str(model.inputs[0].dtype))
    return array


def _named_inputs(model: Any) -> dict[str, Any]:
    """The symbolic inputs by name: the keys of the dict the model was made of, or else those of its Input layers."""
    inputs: Any = getattr(model, "inputs", None)
    if not inputs:
        return {}
    made_of: Any = getattr(model, "input", None)
    if isinstance(made_of, dict):
        return {str(key): tensor for key, tensor in cast("dict[Any, Any]", made_of).items()}
    # A tensor without a name of its own gets that of its layer only when the model is saved and loaded.
    return {str(getattr(tensor._keras_history.operation, "name", tensor.name)): tensor for tensor in inputs}


def _check_names(tensors: dict[str, Any], given: dict[str, NDArray[Any]]) -> None:
    if tensors and set(given) != set(tensors):
        raise ArgumentError(f"the model's inputs are named {', '.join(tensors)}; got {', '.join(given) or 'none'}")
    for name, tensor in tensors.items():
        _check_shape(given[name], tuple(tensor.shape), f"input {name!r}")
        _check_type(given[name], str(tensor.dtype))


def _check_type(array: NDArray[Any], dtype: str) -> None:
    """Text and complex numbers are none of a model's floating-point numbers; Keras would say so in a page."""
    if "float" in dtype and array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise ArgumentError(f"the model wants its input of dtype {dtype}; got dtype {array.dtype}")


def _check_shape(array: NDArray[Any], shape: Any, what: str = "its input") -> None:
    # A Sequential without an Input takes the length of its first batch for its own; Keras does not hold it to that.
    wanted = cast("tuple[int | None, ...]", (None, *tuple(shape)[1:]))
    fits = array.ndim == len(wanted) and all(
        length is None or length == got for length, got in zip(wanted, array.shape, strict=True)
    )
    if not fits:
        shown = ", ".join("any" if length is None else str(length) for length in wanted)
        raise ArgumentError(f"the model wants {what} of shape ({shown}), batch first; got {array.shape}")
