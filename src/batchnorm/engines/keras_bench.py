"""Live Keras models as a bench: each layer's ``call`` is replaced while they run, and its variables are put back."""

from __future__ import annotations

import contextlib
import inspect
import pathlib
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from batchnorm.core import equations
from batchnorm.core.accumulator import Accumulator
from batchnorm.core.plan import mask_shape, plan
from batchnorm.core.record import LayerRecord
from batchnorm.errors import Refused

from . import keras as live
from .eager import Call, Eager, Visit
from .randomness import random_state_kept

__all__ = ["ModelBench", "commit", "save"]

VARIABLES = ("moving_mean", "moving_variance", "remaining", "moving_stddev")
NO_INITIAL = {"remaining": 0.0}
SUMS_IN_ORDER = ("tensorflow", "numpy")
"""Backends that add one number after another, where the variance wants the third pass of `equations.moments`."""


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
                stack.enter_context(_replaced(layer, _quiet(layer)))
            try:
                yield
            finally:
                for name, before in kept.items():
                    self._put_back(name, before)

    def write(self, layer: str, mean: Any, variance: Any) -> None:
        """See `Bench`."""
        write(self._layers[layer], mean, variance)

    def _run(self, batch: Any, visit: Visit) -> Any:
        inputs = live.given_inputs(self._model, batch)
        with contextlib.ExitStack() as stack:
            for record in self.records:
                layer = self._layers[record.name]
                stack.enter_context(_replaced(layer, _seen(layer, record, visit)))
            return self._model(inputs, training=False)

    def _kept(self, layer: str) -> Any:
        return [(held, live.array_of(held)) for held in _held(self._layers[layer])]

    def _put_back(self, layer: str, kept: Any) -> None:
        for held, before in kept:
            held.assign(before)

    def _arrays(self, outputs: Any) -> Any:
        return live.arrays(outputs)


class TensorCall(Call):
    """A call of a layer on a tensor of any backend."""

    def __init__(self, record: LayerRecord, x: Any, mask: Any) -> None:
        self.name = record.name
        self._record = record
        self._x = x
        self._mask = mask

    def moments(self) -> Accumulator:
        """See `Call`."""
        keras: Any = sys.modules["keras"]
        ops, record, who = keras.ops, self._record, f"recalibrate: {self._record.name}"
        x = keras.ops.convert_to_tensor(self._x)
        how = plan(tuple(x.shape), record.axis, who)
        if how.count == 0:
            return Accumulator(0, np.zeros(record.channels), np.zeros(record.channels))
        wide = x if "64" in str(x.dtype) else ops.cast(x, "float32")
        refine = keras.backend.backend() in SUMS_IN_ORDER
        if self._mask is None:
            count: Any = how.count
            found = equations.moments(ops, wide, how.reduced, count, refine=refine)
        else:
            mask = np.asarray(live.array_of(self._mask), bool)
            aligned, full = mask_shape(mask.shape, tuple(x.shape), how.kept, who)
            mask = np.broadcast_to(mask.reshape(aligned), full)
            count = int(mask.sum())
            counted = ops.convert_to_tensor(mask)
            found = equations.moments(ops, wide, how.reduced, max(count, 1), counted, refine=refine)
        parts = [live.array_of(each).astype(np.float64) for each in (found.high, found.low, found.variance)]
        if not all(np.all(np.isfinite(part)) for part in parts):
            raise Refused(
                f"{who}: its input is not finite on this data, so that its statistics would not be either. Look for "
                "weights or statistics that are not finite before it: batchnorm check names them."
            )
        return Accumulator.from_parts(count, *parts)

    def total(self) -> float:
        """See `Call`."""
        return float(np.sum(live.array_of(self._x).astype(np.float64)))


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


@contextlib.contextmanager
def _replaced(layer: Any, call: Callable[..., Any]) -> Generator[None]:
    own = cast("dict[str, Any]", vars(layer)).get("call")
    # Straight into the instance: Keras' own __setattr__ tracks and locks what it is given.
    object.__setattr__(layer, "call", call)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(layer, "call")
        else:
            object.__setattr__(layer, "call", own)
