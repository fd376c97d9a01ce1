"""A layer on NumPy arrays as a bench: a twin of it is measured and written to, so that it stays as it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Generator, Sequence
from typing import Any, cast

import numpy as np

from batchnorm.core.accumulator import Accumulator
from batchnorm.core.calibration import Trace
from batchnorm.core.padding import LeftOut, Told
from batchnorm.core.record import LayerRecord
from batchnorm.engines.array_call import ArrayCall
from batchnorm.engines.calls import Along
from batchnorm.errors import ArgumentError

__all__ = ["LayerBench", "as_one_array", "commit"]

HISTORY = ("remaining", "updates")
STATISTICS = ("moving_mean", "moving_variance")


class LayerBench:
    """A `Bench` of one ``batchnorm.BatchNormalization``."""

    def __init__(self, layer: Any, record: LayerRecord) -> None:
        self.records: Sequence[LayerRecord] = (record,)
        kind = cast("Any", type(layer))
        self._twin: Any = kind.from_config(layer.get_config())
        self._twin.set_weights(layer.get_weights())

    @contextlib.contextmanager
    def session(self) -> Generator[None]:
        """See `Bench`."""
        kept = self._twin.get_weights()
        try:
            yield
        finally:
            self._twin.set_weights(kept)

    def trace(self, batch: Any, told: Told | None = None) -> Trace:
        """See `Bench`."""
        start = time.perf_counter()
        x = as_one_array(batch)
        self._twin.predict(x)
        name, seconds = self.records[0].name, time.perf_counter() - start
        along = Along(told)
        along(ArrayCall(self.records[0], x))
        return Trace((name,), {name: frozenset()}, {name: 0.0}, True, seconds, along.layers)

    def measure(
        self,
        batch: Any,
        layers: Collection[str],
        training: Collection[str] = (),
        left_out: LeftOut | None = None,
    ) -> dict[str, Accumulator]:
        """See `Bench`."""
        name = self.records[0].name
        return {name: self._moments(as_one_array(batch), left_out)} if name in layers else {}

    def outputs(self, batch: Any, training: Collection[str] = (), left_out: LeftOut | None = None) -> Any:
        """See `Bench`."""
        x = as_one_array(batch)
        if self.records[0].name not in training or not x.size:
            return self._twin.predict(x)
        found, kept = self._moments(x, left_out), self._twin.get_weights()
        if not found.count:
            return self._twin.predict(x)
        try:
            self.write(self.records[0].name, found.mean, found.variance(0))
            return self._twin.predict(x)
        finally:
            self._twin.set_weights(kept)

    def write(self, layer: str, mean: Any, variance: Any) -> None:
        """See `Bench`."""
        write(self._twin, mean, variance)

    def _moments(self, x: Any, left_out: LeftOut | None) -> Accumulator:
        call = ArrayCall(self.records[0], x)
        call.leave_out(left_out)
        return call.moments()


def as_one_array(batch: Any) -> Any:
    """The input of a layer.

    Raises
    ------
    ArgumentError
        Named arrays.
    """
    if isinstance(batch, dict):
        names = ", ".join(map(repr, cast("dict[str, Any]", batch)))
        raise ArgumentError(f"a layer takes one array, without a name; got {names}.")
    return np.asarray(batch)


def write(layer: Any, mean: Any, variance: Any) -> None:
    """Give a layer statistics; it then knows of no updates, so that no initial value is taken out of them."""
    given = dict(zip(STATISTICS, (mean, variance), strict=True))
    own = zip(layer.weight_names, layer.weights, strict=True)
    kept = [(name, value) for name, value in own if name not in HISTORY]
    layer.set_weights([np.reshape(given[name], value.shape) if name in given else value for name, value in kept])


def commit(layer: Any, statistics: Any, _method: str | None = None) -> None:
    """Write new statistics into the live layer."""
    for pair in statistics.values():
        write(layer, *pair)
