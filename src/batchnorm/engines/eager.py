"""What the benches of eager frameworks share: every call of a layer is seen before it is computed.

Training mode is inference with the batch's own moments written into the layer just before it runs, so that whatever the
layer does beside normalising (activation, residual, mixed precision) is its own code; a layer that does nothing beside
may be computed by its call, together with the moments. What feeds what is found by
writing NaN into one layer's statistics and looking where it arrives: NaN passes through every arithmetic there is.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Sequence
from typing import Any

import numpy as np

from batchnorm.core.accumulator import Accumulator
from batchnorm.core.calibration import Trace
from batchnorm.core.padding import LeftOut, Told
from batchnorm.core.record import LayerRecord

from .calls import Along, Call, Visit
from .session import structured

__all__ = ["Eager", "few"]

TRACED = 2
"""Samples of a batch that are enough to see what feeds what."""


class Stopped(BaseException):
    """Everything asked for was seen. No Exception, so that no framework takes it for an error of the model."""


class Eager(ABC):
    """A `Bench` of an eager framework; see there for the methods."""

    def __init__(self, records: Sequence[LayerRecord]) -> None:
        self.records = tuple(records)
        self._once = False

    @abstractmethod
    def session(self) -> contextlib.AbstractContextManager[None]:
        """See `Bench`."""

    @abstractmethod
    def write(self, layer: str, mean: Any, variance: Any) -> None:
        """See `Bench`."""

    @abstractmethod
    def _run(self, batch: Any, visit: Visit) -> Any:
        """Run the model in inference mode, showing each call of a layer before it is computed."""

    @abstractmethod
    def _kept(self, layer: str) -> Any:
        """A copy of a layer's statistics, as they are stored."""

    @abstractmethod
    def _put_back(self, layer: str, kept: Any) -> None:
        """Write such a copy back."""

    @abstractmethod
    def _array(self, output: Any) -> Any:
        """A copy of one output as an array; what is no tensor, as it is."""

    def _arrays(self, outputs: Any) -> Any:
        return structured(outputs, self._array)

    def measure(
        self,
        batch: Any,
        layers: Collection[str],
        training: Collection[str] = (),
        left_out: LeftOut | None = None,
    ) -> dict[str, Accumulator]:
        """See `Bench`."""
        found: dict[str, Accumulator] = {}
        last = len(set(layers)) if self._once else None

        def visit(call: Call) -> None:
            call.leave_out(left_out)
            if call.name in layers:
                is_last = last is not None and len({*found, call.name}) == last
                if call.name not in training:
                    moments = call.moments()
                else:  # in the same way whether it is the last or not: a worker that never traced the model cannot know
                    moments = call.in_training() if is_last else self._as_in_training(call)
                found[call.name] = found[call.name].merge(moments) if call.name in found else moments
                if is_last:
                    raise Stopped
            elif call.name in training:
                self._as_in_training(call)

        with self._restored(training), contextlib.suppress(Stopped):
            self._run(batch, visit)
        return found

    def outputs(self, batch: Any, training: Collection[str] = (), left_out: LeftOut | None = None) -> Any:
        """See `Bench`."""

        def visit(call: Call) -> None:
            if call.name in training:
                call.leave_out(left_out)
                self._as_in_training(call)

        with self._restored(training):
            return self._arrays(self._run(batch, visit))

    def trace(self, batch: Any, told: Told | None = None) -> Trace:
        """See `Bench`."""
        along = Along(told)
        self._run(batch, along)  # the first run compiles and allocates
        start, reached, calls = time.perf_counter(), dict[str, float](), list[str]()

        def visit(call: Call) -> None:
            calls.append(call.name)
            reached[call.name] = time.perf_counter() - start

        self._run(batch, visit)
        seconds = max(time.perf_counter() - start, 1e-9)
        order = tuple(dict.fromkeys(calls))
        self._once = len(order) == len(calls)
        shares = {name: min(at / seconds, 1.0) for name, at in reached.items()}
        return Trace(order, self._feeds(few(batch), order), shares, self._once, seconds, along.layers)

    def _feeds(self, batch: Any, order: tuple[str, ...]) -> dict[str, frozenset[str]]:
        clean = self._totals(batch)
        if clean is None or not all(np.isfinite(value) for values in clean.values() for value in values):
            return _everything_after(order)
        found: dict[str, frozenset[str]] = {}
        for number, name in enumerate(order):
            kept = self._kept(name)
            try:
                self.write(name, *[np.full(self._channels(name), np.nan)] * 2)
                seen = self._totals(batch)
            finally:
                self._put_back(name, kept)
            if seen is None:  # the model itself takes offence at NaN
                found[name] = frozenset(order[number + 1 :])
            else:
                found[name] = frozenset(other for other in order if seen.get(other) != clean.get(other))
        return found

    def _totals(self, batch: Any) -> dict[str, list[float]] | None:
        totals: dict[str, list[float]] = {}
        try:
            self._run(batch, lambda call: totals.setdefault(call.name, []).append(call.total()))
        except Exception:
            return None
        return totals

    def _as_in_training(self, call: Call) -> Accumulator:
        moments = call.in_training()
        if call.output is None and np.all(np.greater(moments.count, 0)):
            self.write(call.name, moments.mean, moments.variance(0))
        return moments

    def _channels(self, layer: str) -> int:
        return next(record.channels for record in self.records if record.name == layer)

    @contextlib.contextmanager
    def _restored(self, layers: Collection[str]) -> Generator[None]:
        kept = {name: self._kept(name) for name in layers}
        try:
            yield
        finally:
            for name, before in kept.items():
                self._put_back(name, before)


def few(batch: Any) -> Any:
    """The first samples of a batch: of each array in it."""
    if isinstance(batch, dict):
        return {key: few(value) for key, value in batch.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(batch, (list, tuple)):
        return [few(value) for value in batch]  # pyright: ignore[reportUnknownVariableType]
    return batch[:TRACED] if getattr(batch, "ndim", 0) else batch


def _everything_after(order: tuple[str, ...]) -> dict[str, frozenset[str]]:
    return {name: frozenset(order[number + 1 :]) for number, name in enumerate(order)}
