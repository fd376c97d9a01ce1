"""Flax as an engine for live NNX modules: a copy runs, so that nothing of the module itself can change."""

# Flax and JAX are not imported before they are needed, and partly untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.protocols import Capture, Masked
from batchnorm.errors import ArgumentError, require

from .randomness import random_state_kept
from .session import printable, require_layers

__all__ = ["run_module"]

PURPOSE = "Running a Flax model"
INFERENCE = {"training": False, "train": False, "is_training": False, "deterministic": True,
             "use_running_average": True}  # fmt: skip
"""What a module's own call may name the mode, and what means inference."""


def run_module(
    model: Any, x: Any, capture: Sequence[str] = (), *, layers: Mapping[str, tuple[Any, ...]]
) -> tuple[Any, Capture]:
    """Run a live NNX module in inference mode.

    Parameters
    ----------
    model : flax.nnx.Module
        Is copied; the copy is set to inference with its own ``eval()``, and an argument of its call that is named
        ``training``, ``train``, ``deterministic`` or ``use_running_average`` is given.
    x : array, or list or dict of arrays
        The arguments of the call: one, several by position, or by name.
    capture : sequence of str
        Names of layers.
    layers : mapping
        Name -> the path of attributes that leads to the layer.

    Returns
    -------
    outputs, captured
        Arrays in the structure of the outputs; name -> (input, output) of each call.

    Raises
    ------
    UnknownLayer
        No such layer.
    ArgumentError
        The module refuses the input; its own words are in the message.
    """
    nnx: Any = require("flax.nnx", "jax", PURPOSE)
    require_layers(capture, list(layers), "Flax")
    copied: Any = nnx.clone(model)
    copied.eval()
    modules = dict(nnx.iter_modules(copied))
    captured = Masked(capture)
    for name in captured:
        _record(name, modules[layers[name]], captured)
    with random_state_kept():
        outputs = _called(copied, type(model).__name__, x)
    return _arrays(outputs), captured


def _record(name: str, layer: Any, captured: Masked) -> None:
    """Note each call of a layer. Python looks ``__call__`` up in the class, so the copy gets a class of its own."""
    kind: Any = layer.__class__

    def call(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        y: Any = kind.__call__(self, x, *args, **kwargs)
        mask = kwargs.get("mask")
        captured[name].append((np.array(x), np.array(y)))
        captured.order.setdefault(name)
        captured.masks[name].append(None if mask is None else np.array(mask, bool))
        return y

    layer.__class__ = type(kind.__name__, (kind,), {"__call__": call})


def _called(model: Any, name: str, x: Any) -> Any:
    known = inspect.signature(model.__call__).parameters
    mode = {key: value for key, value in INFERENCE.items() if key in known}
    positional, named = _arguments(x)
    unknown = [key for key in named if key not in known]
    if unknown and not any(each.kind == each.VAR_KEYWORD for each in known.values()):
        raise ArgumentError(f"{name} takes {', '.join(known) or 'nothing'}; got {unknown[0]!r}")
    try:
        return model(*positional, **named, **mode)
    except (TypeError, ValueError, IndexError, AssertionError) as error:
        shapes = ", ".join(str(each.shape) for each in (*positional, *named.values()))
        raise ArgumentError(
            f"{name}.__call__{inspect.signature(model.__call__)} refuses an input of shape {shapes} "
            f"({type(error).__name__}: {printable(error)})"
        ) from error


def _arguments(x: Any) -> tuple[list[NDArray[Any]], dict[str, NDArray[Any]]]:
    if isinstance(x, dict):
        return [], {str(key): _array(value) for key, value in cast("dict[Any, Any]", x).items()}
    several = isinstance(x, tuple) or (isinstance(x, list) and _are_arrays(cast("list[Any]", x)))
    return [_array(value) for value in cast("Sequence[Any]", x)] if several else [_array(x)], {}


def _are_arrays(values: list[Any]) -> bool:
    return bool(values) and all(hasattr(value, "shape") for value in values)


def _array(value: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(value)
    # JAX computes in 32 bits unless told otherwise, and says so at each array of 64.
    narrow = {"float64": np.float32, "int64": np.int32}.get(array.dtype.name)
    return array if narrow is None or _wide() else array.astype(narrow)


def _wide() -> bool:
    return bool(require("jax", "jax", PURPOSE).config.jax_enable_x64)


def _arrays(outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return {key: _arrays(value) for key, value in cast("dict[Any, Any]", outputs).items()}
    if isinstance(outputs, (list, tuple)):
        return [_arrays(value) for value in cast("Sequence[Any]", outputs)]
    return np.array(outputs) if hasattr(outputs, "shape") else outputs
