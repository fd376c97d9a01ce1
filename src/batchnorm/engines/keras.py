"""Keras as an engine: run the model of a file or a live one, whichever backend Keras is set to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.protocols import Capture, Masked
from batchnorm.errors import ArgumentError, MissingExtra, ModelFileError, Refused, UnknownLayer, require

from .keras_calls import mask_of, padding_seen, replaced_call
from .keras_inputs import given_inputs
from .keras_state import called, same_variables
from .randomness import random_state_kept
from .session import structured

__all__ = [
    "array_of",
    "arrays",
    "is_live",
    "live_layers",
    "load_file",
    "load_layers",
    "open_file",
    "replaced_call",
    "run_live",
]

PURPOSE = "Running this model"
NORM_SETTINGS = ("axis", "epsilon", "momentum", "moving_mean", "moving_variance")
BACKENDS = ("tensorflow", "torch", "jax")
WRAPPED = ("layer", "forward_layer", "backward_layer")


def open_file(path: str, names: Sequence[str]) -> Callable[[Any, Sequence[str]], tuple[Any, Capture]]:
    """Load a model file in Keras, with ``safe_mode`` on; what is returned runs it in inference mode.

    Parameters
    ----------
    path : str
        A ``.keras``, ``.h5`` or ``.hdf5`` file, or an unzipped ``.keras``.
    names : sequence of str
        The names of all records of the file, in their order.

    Returns
    -------
    callable
        Takes the model's input, batch first (an array, or a list or dict of them), and names of records to capture;
        returns arrays in the structure of the model's outputs, and name -> (input, output) of each call of that layer.

    Raises
    ------
    ModelFileError
        Keras refuses the file: an unknown custom class, a Lambda, an older format.
    MissingExtra
        Keras is not installed.
    """
    model, layers = load_layers(path, names)
    return partial(run_live, model, layers=layers)


def load_layers(path: str, names: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The model of a file, loaded with ``safe_mode`` on, and its batch normalizations by the names of the records."""
    model = load_file(path)
    own = dict(_named(model))
    # Names that Keras makes anew at loading: the order is what is left.
    renamed = any(name not in own for name in names) and len(names) == len(own)
    return model, dict(zip(names, own.values(), strict=True)) if renamed else own


def run_live(
    model: Any, x: Any, capture: Sequence[str] = (), layers: dict[str, Any] | None = None
) -> tuple[Any, Capture]:
    """Run a live model in inference mode; its layers' ``call`` is replaced for the time of the run, then restored."""
    known = dict(_named(model)) if layers is None else layers
    unknown = [name for name in capture if name not in known]
    if unknown:
        some = ", ".join(map(repr, list(known)[:10])) + (", ..." if len(known) > 10 else "")
        raise UnknownLayer(f"the model in Keras has no batch normalization {unknown[0]!r}; it has {some or 'none'}")
    captured = Masked(capture)
    inputs = given_inputs(model, x)
    with same_variables(model), contextlib.ExitStack() as stack:
        for name in captured:
            stack.enter_context(_recorded(name, known[name], captured))
        stack.enter_context(padding_seen(model, captured, array_of))
        outputs = called(model, inputs)
    return arrays(outputs), captured


def live_layers(model: Any) -> list[tuple[str, Any]]:
    """Name and object of every batch normalization in a live Keras model, in the order of its layers."""
    return list(_named(model))


def is_live(value: Any) -> bool:
    """Whether an object is a Keras layer or model, found without importing Keras."""
    layers: Any = getattr(sys.modules.get("keras"), "layers", None)  # absent while Keras is being imported
    return layers is not None and isinstance(value, layers.Layer)


def _keras() -> Any:
    try:
        return require("keras", "keras", PURPOSE)
    except MissingExtra:
        raise
    except ValueError as error:
        if "backend" not in str(error).lower():
            raise
        asked = os.environ.get("KERAS_BACKEND")
        where = f"KERAS_BACKEND is {asked!r}" if asked else "the backend in ~/.keras/keras.json is none"
        raise ArgumentError(
            f"{PURPOSE}: {where}, which Keras does not know. Set it to {', '.join(BACKENDS)}."
        ) from None
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in BACKENDS:
            raise
        others = " or ".join(name for name in BACKENDS if name != missing)
        raise MissingExtra(
            f"{PURPOSE} needs Keras' backend {missing}, which is not installed. Install it, or set KERAS_BACKEND to "
            f"{others}"
        ) from None


def load_file(path: str) -> Any:
    """The live model of a file, loaded with ``safe_mode`` on and not compiled.

    Raises
    ------
    ModelFileError
        Keras refuses the file.
    MissingExtra
        Keras is not installed.
    """
    keras = _keras()
    try:
        with random_state_kept():
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise _refusal(path, error) from error


def _refusal(path: str, error: Exception) -> ModelFileError:
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(error).split()))
    lowered = text.lower()
    if "lambda" in lowered and ("unsafe" in lowered or "safe_mode" in lowered):
        reason = "it holds a Lambda layer, which is code inside the file and is not run"
        way_out = "Replace it by a registered layer, or load the model yourself and pass it as package.module:name"
    elif "could not locate" in lowered or "unknown layer" in lowered or "unknown object" in lowered:
        reason = f"Keras does not know a class the file names ({text[:200]})"
        way_out = "Import what registers it and pass the model as package.module:name"
    elif ".keras" in lowered and "extension" in lowered:
        reason = "Keras loads this format only under the suffix .keras, .h5 or .hdf5"
        way_out = "Rename the file"
    else:
        reason = f"Keras cannot load it ({type(error).__name__}: {text[:300]})"
        way_out = "Load it yourself and pass the model as package.module:name"
    return ModelFileError(f"{path}: {reason}. {way_out}.")


def _named(model: Any) -> Iterator[tuple[str, Any]]:
    """Every batch normalization once, under the name the file readers give it."""
    seen: set[int] = set()
    taken: dict[str, int] = {}
    for names, layer in _walk(model, (), seen):
        name = "/".join(names) or str(layer.name)
        taken[name] = taken.get(name, 0) + 1
        yield (name if taken[name] == 1 else f"{name}#{taken[name]}"), layer


def _walk(layer: Any, names: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if id(layer) in seen:
        return
    seen.add(id(layer))
    if all(hasattr(layer, setting) for setting in NORM_SETTINGS):
        yield names, layer
        return
    for child in _children(layer):
        yield from _walk(child, (*names, str(child.name)), seen)


def _children(layer: Any) -> list[Any]:
    """Layers directly inside: a model's list, a wrapper's attribute, else what Keras tracks."""
    wrapped = [inner for key in WRAPPED if (inner := getattr(layer, key, None)) is not None]
    if wrapped:
        return wrapped
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _recorded(name: str, layer: Any, captured: Masked) -> AbstractContextManager[None]:
    original: Callable[..., Any] = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        outputs = original(*args, **kwargs)
        try:
            captured[name].append((array_of(args[0] if args else kwargs["inputs"]), array_of(outputs)))
            captured.order.setdefault(name)
            captured.masks[name].append(mask_of(args, kwargs, array_of))
        except Exception as error:
            raise Refused(
                f"{name}: Keras calls this layer on a symbolic tensor ({type(error).__name__}), which has no values to "
                "show; inside TimeDistributed, give the model's Input its number of time steps"
            ) from error
        return outputs

    return replaced_call(layer, call)


def arrays(outputs: Any) -> Any:
    """Outputs as arrays, in their structure."""
    return structured(outputs, array_of)


def array_of(tensor: Any) -> NDArray[Any]:
    """A copy of a tensor or variable of any backend."""
    keras: Any = sys.modules["keras"]
    return np.array(keras.ops.convert_to_numpy(tensor))
