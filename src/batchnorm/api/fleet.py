"""Passes over the data on many processes or machines, through Ray.

A task is a pure function of the model, the statistics so far and a few batches, and hands back the moments of each
batch alone. They are merged here in the order of the data, whoever computed them: a worker that dies, a part that is
computed twice and the number of workers leave no trace in the result.
"""

# pyright: reportUnknownMemberType=false
# Ray's own types are partly unknown to a type checker, and it is not imported before it is needed.

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batchnorm.analysis.recalibration import Statistics, merged
from batchnorm.core.accumulator import Accumulator
from batchnorm.core.calibration import Bench, Trace
from batchnorm.errors import ArgumentError, BatchnormError, Refused, require

from .loading import load
from .passes import LocalRun, Step, measured
from .streams import Batch, Stream

__all__ = ["FleetRun"]

RETRIES = 8
TASKS_PER_WORKER = 4
MOST_BATCHES = 16
IN_FLIGHT = 2
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
Pairs = Mapping[str, tuple[Any, Any]]
Found = list[tuple[int, dict[str, Accumulator] | None]]


class FleetRun:
    """A `Pass` over the processes of a Ray cluster; a context manager that lets go of it.

    Parameters
    ----------
    given : path or object
        The model, as it was given to `recalibrate`.
    local : LocalRun
        What traces and holds the statistics here.
    stream : Stream
        The data, read here and handed out.
    workers, address : int, str, optional
        So many processes of this machine, or a cluster that is there.
    training : collection of str
        Layers that normalise with the batch.
    """

    def __init__(
        self,
        given: Any,
        local: LocalRun,
        stream: Stream,
        step: Step,
        *,
        workers: int | None,
        address: str | None,
        training: Collection[str],
    ) -> None:
        self._ray: Any = require("ray", "ray", "Recalibrating on several processes")
        self._given = given
        self._local = local
        self._stream = stream
        self._step = step
        self._training = frozenset(training)
        self._statistics: dict[str, tuple[Any, Any]] = {}
        self._workers = workers
        self._address = address
        self._is_own = False
        self.left_out = 0

    def __enter__(self) -> Self:
        ray = self._ray
        if not ray.is_initialized():
            _start(ray, self._workers, self._address)
            self._is_own = True
        if self._workers is None:
            self._workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._source = ray.put(_source(self._given))
        self._task = ray.remote(num_cpus=1, max_retries=RETRIES)(task)
        self._token = uuid.uuid4().hex
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_own:
            self._ray.shutdown()

    def trace(self) -> Trace:
        """See `LocalRun`."""
        return self._local.trace()

    @property
    def padded(self) -> frozenset[str] | None:
        """See `LocalRun`."""
        return self._local.padded

    def write(self, layer: str, new: Statistics) -> None:
        """See `LocalRun`."""
        self._local.write(layer, new)
        self._statistics[layer] = (new.mean, new.variance)

    def __call__(self, layers: Collection[str], number: int, round: int) -> dict[str, Accumulator]:
        """See `Pass`."""
        held = self._ray.put((dict(self._statistics), frozenset(layers), self._training, self.padded))
        found: dict[int, dict[str, Accumulator]] = {}
        waiting: dict[Any, int] = {}
        for part in self._parts():
            if len(waiting) >= self._most():
                self._take(waiting, found)
            started = self._task.remote(self._token, [self._source], [held], part)
            waiting[started] = sum(batch.samples for _, batch in part)
        while waiting:
            self._take(waiting, found)
        return merged([found[place] for place in sorted(found)])

    def _most(self) -> int:
        """Tasks at once: twice the workers, so that none waits; as many in a cluster that was there, and has more."""
        return (self._workers or 1) * (IN_FLIGHT if self._is_own else 1)

    def _parts(self) -> Iterator[list[tuple[int, Batch]]]:
        """A few batches at a time, each with its number."""
        total, workers = self._stream.batches, self._workers or 1
        size = 1 if total is None else max(1, min(MOST_BATCHES, total // (TASKS_PER_WORKER * workers)))
        numbered = enumerate(self._stream)
        while part := list(itertools.islice(numbered, size)):
            yield part

    def _take(self, waiting: dict[Any, int], found: dict[int, dict[str, Accumulator]]) -> None:
        """What the next task that is done has found."""
        (ready,), _ = self._ray.wait(list(waiting), num_returns=1)
        samples = waiting.pop(ready)
        try:
            answer: Found | str = self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            raise Refused(
                f"recalibrate: a worker failed {RETRIES + 1} times at the same part of the data "
                f"({type(error).__name__}). Its own log, with Ray's, says why; too little memory is usual."
            ) from error
        if isinstance(answer, str):
            raise Refused(answer)
        for place, moments in answer:
            if moments is not None:
                found[place] = moments
        self.left_out += samples if any(moments is None for _, moments in answer) else 0
        self._step(samples)


def _start(ray: Any, workers: int | None, address: str | None) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        if address is not None:
            ray.init(address=address, log_to_driver=False)
        else:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"a cluster at {address}" if address is not None else "a cluster on this machine"
        raise ArgumentError(f"--ray: cannot reach {where} ({type(error).__name__}: {str(error)[:200]}).") from error


def _source(given: Any) -> tuple[str, Any]:
    """The model as it travels: a file's bytes, or a pickled object."""
    if isinstance(given, (str, os.PathLike)):
        place = Path(given)  # pyright: ignore[reportUnknownArgumentType]
        return ("folder", str(place.resolve())) if place.is_dir() else (place.name, place.read_bytes())
    cloudpickle: Any = require("ray.cloudpickle", "ray", "Recalibrating on several processes")
    try:
        return "object", cloudpickle.dumps(given)
    except Exception as error:  # whatever an object's own pickling raises
        raise ArgumentError(
            f"recalibrate: {type(given).__name__} cannot be sent to workers ({type(error).__name__}: "
            f"{str(error)[:200]}). Save the model, and give the path of the file."
        ) from error


_BENCHES: dict[str, tuple[Bench, contextlib.ExitStack]] = {}


def task(token: str, source: Sequence[Any], held: Sequence[Any], part: list[tuple[int, Batch]]) -> Found | str:
    """In a worker: the moments of each batch; what a user did wrong comes back as text."""
    ray: Any = require("ray", "ray", "Recalibrating on several processes")
    try:
        if token not in _BENCHES:
            _close()
            _BENCHES[token] = _opened(ray.get(source[0]))
        bench = _BENCHES[token][0]
        statistics, layers, training, padded = ray.get(held[0])
        for name, pair in statistics.items():
            bench.write(name, *pair)
        return [(place, measured(bench, batch, layers, training, padded)) for place, batch in part]
    except BatchnormError as error:
        return str(error)


def _opened(source: tuple[str, Any]) -> tuple[Bench, contextlib.ExitStack]:
    kind, value = source
    stack = contextlib.ExitStack()
    if kind == "object":
        cloudpickle: Any = require("ray.cloudpickle", "ray", "Recalibrating on several processes")
        model: Any = load(cloudpickle.loads(value))
    elif kind == "folder":
        model = load(value)
    else:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batchnorm-"))) / kind
        place.write_bytes(value)
        model = load(place)
    bench: Bench = model.bench()
    head: Any = bench
    stack.enter_context(head.session())
    return bench, stack


def _close() -> None:
    for _, stack in _BENCHES.values():
        stack.close()
    _BENCHES.clear()
