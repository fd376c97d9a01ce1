"""Live Keras models as a bench: each layer's ``call`` is replaced while they run, and its variables are put back."""

from __future__ import annotations

import contextlib
import inspect
import pathlib
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord
from batchnorm.errors import Refused
from batchnorm.kernels import cpu

from . import keras as live
from .calls import Call, Visit
from .eager import Eager
from .jax_memory import memory_of_jax
from .keras_inputs import given_inputs
from .keras_state import called
from .randomness import random_state_kept
from .torch_state import memory_of

__all__ = ["ModelBench", "commit", "save"]

VARIABLES = ("moving_mean", "moving_variance", "remaining", "moving_stddev")
NO_INITIAL = {"remaining": 0.0}
SUMS_IN_ORDER = ("tensorflow", "numpy")
"""Backends that add one number after another, whose sums `equations.moments` takes in runs."""


class ModelBench(Eager):
    """A model whose layers are ``layers[name]``; all their variables are as before after the session."""

    def __init__(self, model: Any, records: Sequence[LayerRecord], layers: Mapping[str, Any]) -> None:
        super().__init__(records)
        self._model = model
        self._layers = dict(layers)

    @contextlib.contextmanager
    def session(self) -> Generator[None]:
        """See `Bench`."""
        kept = {name: self._kept(name) for name in self._layers}
        with contextlib.ExitStack() as stack:
            stack.enter_context(random_state_kept())
            for layer in _noisy(self._model):
                stack.enter_context(live.replaced_call(layer, _quiet(layer)))
            try:
                yield
            finally:
                for name, before in kept.items():
                    self._put_back(name, before)

    def write(self, layer: str, mean: Any, variance: Any) -> None:
        """See `Bench`."""
        write(self._layers[layer], mean, variance)

    def _run(self, batch: Any, visit: Visit) -> Any:
        inputs = given_inputs(self._model, batch)
        with contextlib.ExitStack() as stack:
            for record in self.records:
                layer = self._layers[record.name]
                stack.enter_context(live.replaced_call(layer, _seen(layer, record, visit)))
            return called(self._model, inputs)

    def _kept(self, layer: str) -> Any:
        return [(held, live.array_of(held)) for held in _held(self._layers[layer])]

    def _put_back(self, layer: str, kept: Any) -> None:
        for held, before in kept:
            held.assign(before)

    def _array(self, output: Any) -> Any:
        return live.array_of(output)


class TensorCall(Call):
    """A call of a layer on a tensor of any backend."""

    def __init__(self, record: LayerRecord, x: Any, mask: Any) -> None:
        keras: Any = sys.modules["keras"]
        super().__init__(record, keras.ops.convert_to_tensor(x), mask)
        self._keras = keras
        self._backend: str = keras.backend.backend()
        self.refine = self._backend in SUMS_IN_ORDER
        self.threads = sys.modules["torch"].get_num_threads() if self._backend == "torch" else None

    def _namespace(self) -> Any:
        return self._keras.ops

    def _widened(self) -> Any:
        return self.x if "64" in str(self.x.dtype) else self._keras.ops.cast(self.x, "float32")

    def _tensor(self, array: NDArray[Any]) -> Any:
        return self._keras.ops.convert_to_tensor(array)

    def _array(self, tensor: Any) -> NDArray[Any]:
        return live.array_of(tensor)

    def _memory(self) -> NDArray[Any] | None:
        held = MEMORY.get(self._backend, lambda _: None)(self.x)
        return held if held is not None and held.dtype.name in cpu.DTYPES else None


def _memory_of_tensorflow(x: Any) -> NDArray[Any] | None:
    if not str(getattr(x, "device", "")).rpartition("/")[2].startswith("device:CPU"):
        return None
    try:
        return np.asarray(memoryview(x))
    except ValueError:  # bfloat16 has no letter among the types of the buffer protocol
        return None


MEMORY: dict[str, Callable[[Any], NDArray[Any] | None]] = {
    "torch": memory_of,
    "tensorflow": _memory_of_tensorflow,
    "jax": memory_of_jax,
    "numpy": np.asarray,
}
"""What of a backend's tensors can be read where it lies."""


def write(layer: Any, mean: Any, variance: Any) -> None:
    """Give a layer statistics; those of this package's debiased layers then hold nothing of the initial value."""
    for held, values in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        held.assign(np.asarray(values, np.float64).reshape(held.shape).astype(live.array_of(held).dtype))
    for name, value in NO_INITIAL.items():
        held = getattr(layer, name, None)
        if held is not None and hasattr(held, "assign"):
            held.assign(np.full(held.shape, value, live.array_of(held).dtype))


def commit(layers: Mapping[str, Any], statistics: Mapping[str, tuple[Any, Any]]) -> None:
    """Write new statistics into live layers; where that fails half-way, the old ones come back."""
    kept = [(held, live.array_of(held)) for name in statistics for held in _held(layers[name])]
    try:
        for name, pair in statistics.items():
            write(layers[name], *pair)
    except BaseException:
        for held, before in kept:
            held.assign(before)
        raise


def save(model: Any, layers: Mapping[str, Any], path: pathlib.Path, statistics: Mapping[str, tuple[Any, Any]]) -> None:
    """Write a live model with new statistics as Keras does; the model stays as it is."""
    kept = [(held, live.array_of(held)) for name in statistics for held in _held(layers[name])]
    commit(layers, statistics)
    try:
        model.save(path)
    finally:
        for held, before in kept:
            held.assign(before)


def _held(layer: Any) -> list[Any]:
    found = (getattr(layer, name, None) for name in VARIABLES)
    return [each for each in found if each is not None and hasattr(each, "assign")]


def _noisy(model: Any) -> list[Any]:
    """Layers that draw random numbers in training: a call that fixes ``training=True`` would make them draw now."""
    layers: list[Any] = list(model._flatten_layers())
    return [each for each in layers if getattr(each, "seed_generator", None) is not None and _takes_training(each.call)]


def _takes_training(call: Callable[..., Any]) -> bool:
    try:
        return "training" in inspect.signature(call).parameters
    except (TypeError, ValueError):
        return False


def _quiet(layer: Any) -> Callable[..., Any]:
    original = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        # By position it can only be the second: Keras' own noise layers are call(inputs, training=False).
        return original(*args[:1], **{**kwargs, "training": False})

    return call


def _seen(layer: Any, record: LayerRecord, visit: Visit) -> Callable[..., Any]:
    original = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["inputs"]
        mask = args[2] if len(args) > 2 else kwargs.get("mask")
        try:
            visit(TensorCall(record, x, mask))
        except Refused:
            raise
        except (TypeError, NotImplementedError, AttributeError) as error:
            raise Refused(
                f"recalibrate: Keras calls {record.name} on a symbolic tensor ({type(error).__name__}), which has no "
                "values to measure. Run the model eagerly; inside TimeDistributed, give the model's Input its number "
                "of time steps."
            ) from error
        if len(args) > 1:
            args = (args[0], False, *args[2:])
        else:
            kwargs["training"] = False
        return original(*args, **kwargs)

    return call
