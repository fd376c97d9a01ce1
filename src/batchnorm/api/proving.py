"""Proof by running: two models on the same inputs, random ones and given ones, and how far their outputs lie apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.graph import Graph
from batchnorm.core.protocols import Model
from batchnorm.engines.session import Input
from batchnorm.errors import ArgumentError, BatchnormError

from .batches import Batches, is_whole, mapped, samples_of

__all__ = [
    "Copy", "CopyFailedError", "Nudged", "Proof", "Tried", "batches", "drawn", "first_that_runs", "guessed", "like",
    "proved",
]  # fmt: skip

SAMPLES = 8
LENGTHS = (32, 64, 16, 8, 128, 224, 4, 1)
CHUNK = 32
WIDEST = 64
FLOOR = 0.024
"""Of the tolerance: four units of roundoff, 2.4e-7 in float32."""


class Runs(Protocol):
    """What can be run."""

    def run(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Any]:
        """Outputs, and what was captured."""
        ...


@dataclass(frozen=True, slots=True)
class Compared:
    """One output of two models: their largest difference, and the largest that came out of the first."""

    max_abs: float
    max_y: float

    @property
    def max_rel(self) -> float:
        """The difference as a share of the largest output; 0 where both are 0, infinity where one is not finite."""
        if not np.isfinite(self.max_abs + self.max_y):
            return float("inf")
        return self.max_abs / self.max_y if self.max_y else (0.0 if self.max_abs == 0 else float("inf"))


@dataclass(frozen=True, slots=True)
class Tried:
    """One kind of input: where it came from, how much of it there was, and what each output of the models gave.

    Each output is held against its own size: a head of a million hides nothing in a head of one.
    """

    source: str
    samples: int
    outputs: tuple[Compared, ...]

    @property
    def max_abs(self) -> float:
        """The largest difference of any output."""
        return max((each.max_abs for each in self.outputs), default=0.0)


@dataclass(frozen=True, slots=True)
class Proof:
    """What was run, and what is demanded; ``bound`` is what rounding alone should stay under."""

    inputs: tuple[Tried, ...]
    tolerance: float
    bound: float
    depth: int

    @property
    def max_abs(self) -> float:
        """The largest difference of any output."""
        return max(each.max_abs for each in self.inputs)

    @property
    def max_rel(self) -> float:
        """The largest share of any of the inputs."""
        return max(self.share(each) for each in self.inputs)

    def share(self, tried: Tried) -> float:
        """The largest share that a difference has of its output, over those that tell anything, if some do."""
        told = [each for each in tried.outputs if self._tells(each)]
        return max((each.max_rel for each in told or tried.outputs), default=0.0)

    def tells(self, tried: Tried) -> bool:
        """Whether some output tells anything: not where all are 0, nor where they drown in the rounding of a sigmoid.

        A bounded activation rounds in units of 1, however little it gives: outputs of 1e-6 can differ by a tenth of
        themselves though both models are right.
        """
        return any(self._tells(each) for each in tried.outputs)

    def _tells(self, output: Compared) -> bool:
        if not np.isfinite(output.max_rel):
            return output.max_y > 0 or output.max_abs > FLOOR * self.tolerance
        return output.max_y > 0 and (output.max_rel <= self.tolerance or output.max_abs > FLOOR * self.tolerance)

    @property
    def holds(self) -> bool:
        """Whether every difference that tells something is small enough, and some input does."""
        told = [each for each in self.inputs if self.tells(each)]
        return bool(told) and all(self.share(each) <= self.tolerance for each in told)


def drawn(wanted: Sequence[Input], seed: int, length: int) -> Any:
    """Random inputs: standard normal, small integers, for every length that is free ``length``, ``SAMPLES`` samples."""
    rng = np.random.default_rng(seed)
    arrays = {each.name: _random(rng, each, length) for each in wanted}
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _random(rng: np.random.Generator, wanted: Input, length: int) -> NDArray[Any]:
    lengths = wanted.shape or (None, length)
    shape = [SAMPLES if not at and one is None else length if one is None else one for at, one in enumerate(lengths)]
    dtype = wanted.dtype or np.dtype("float32")
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def like(batch: Any, seed: int) -> Any:
    """Random inputs of the shapes and types of a batch: standard normal, or its own integers in another order."""
    rng = np.random.default_rng(seed)
    return mapped(batch, partial(_like, rng))


def _like(rng: np.random.Generator, given: NDArray[Any]) -> NDArray[Any]:
    if given.dtype.kind in "iub":
        return rng.permutation(given.reshape(-1)).reshape(given.shape)
    return rng.normal(size=given.shape).astype(given.dtype)


def guessed(graph: Graph) -> list[Input]:
    """What a module takes, by the first operation of each of its inputs; none where that does not tell."""
    found: list[Input] = []
    for value in graph.inputs:
        users = [each for each in graph.consumers(value) if "kernel" in each.weights]
        if not users:
            return []
        first = users[0]
        kernel = first.weights["kernel"]()
        channels = kernel.shape[first.settings["kernel_in_axis"]]
        if first.kind == "conv":
            channels *= int(first.settings.get("groups") or 1)
        rest = (None,) * int(first.settings.get("rank", 0))
        found.append(Input(value, (None, channels, *rest), np.dtype("float32")))
    return found


def proved(first: Runs, second: Runs, source: str, data: Iterable[Any]) -> Tried:
    """Run two models on the same batches and compare all their outputs.

    Raises
    ------
    ArgumentError
        The batches are none, or the models cannot take them.
    """
    samples = 0
    found: list[Compared] = []
    for batch in data:
        ours, theirs = (list(_flat(model.run(batch)[0])) for model in (first, second))
        samples += max(samples_of(batch), 1)  # a scalar is a sample
        now = [_compared(one, other) for one, other in zip(ours, theirs, strict=True)]
        found = [
            Compared(max(a.max_abs, b.max_abs), max(a.max_y, b.max_y)) for a, b in zip(found or now, now, strict=True)
        ]
    if not samples:
        raise ArgumentError("fold: --data holds no sample; give at least one.")
    return Tried(source, samples, tuple(found))


def _compared(ours: NDArray[Any], theirs: NDArray[Any]) -> Compared:
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b)
    endless = np.isinf(a) & (a == b)  # a masked score is -inf in both models
    return Compared(_most(gap[~endless]), _most(np.abs(a[~endless])))


def _most(values: NDArray[Any]) -> float:
    """The largest; infinity where something is not finite."""
    if not values.size:
        return 0.0
    return float(values.max()) if np.all(np.isfinite(values)) else float("inf")


def _flat(outputs: Any) -> Iterator[NDArray[Any]]:
    if isinstance(outputs, dict):
        outputs = list(cast("dict[Any, Any]", outputs).values())
    if isinstance(outputs, (list, tuple)):
        for each in cast("list[Any]", outputs):
            yield from _flat(each)
    elif outputs is not None:
        array = np.asarray(outputs)
        if array.dtype.kind in "fiub" or array.dtype.name == "bfloat16":
            yield array


class CopyFailedError(Exception):
    """A folded copy does not run where the original does; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A folded copy, whose errors are told apart from those of the original."""

    model: Model

    def run(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Any]:
        """See `batchnorm.core.protocols.Model`."""
        try:
            return self.model.run(x, capture)
        except Exception as error:  # what a user's forward raises where a layer is gone
            raise CopyFailedError(f"{type(error).__name__}: {' '.join(str(error).split())[: WIDEST * 4]}") from error


@dataclass(frozen=True, slots=True)
class Nudged:
    """A model whose floating-point inputs move by one unit in the last place, up or down: what rounding does to it."""

    model: Model

    def run(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Any]:
        """See `batchnorm.core.protocols.Model`."""
        return self.model.run(mapped(x, _nudged), capture)


def _nudged(given: NDArray[Any]) -> NDArray[Any]:
    if given.dtype.kind != "f":
        return given
    up = np.random.default_rng(0).random(given.shape) < 0.5
    return np.where(up, np.nextafter(given, np.inf), np.nextafter(given, -np.inf)).astype(given.dtype)


def batches(data: Any, wanted: Sequence[Input] | None) -> Iterator[Any]:
    """Data as a model takes it: arrays cut into parts, of the size that the model fixes if it fixes one."""
    fixed = next((one.shape[0] for one in wanted or () if one.shape and one.shape[0]), None)
    whole = is_whole(data)
    for batch in Batches(data, fixed or CHUNK, who="fold", nonfinite="keep"):
        if not (whole and fixed) or batch.samples == fixed:
            yield batch.inputs


def first_that_runs(model: Model, wanted: Sequence[Input], seed: int) -> Any:
    """A random input that the model takes; lengths that are free are tried one after the other.

    Raises
    ------
    ArgumentError
        It takes none of them.
    """
    free = any(one is None for each in wanted for one in (each.shape or (None, None))[1:])
    refusal: BatchnormError | None = None
    for length in LENGTHS if free else LENGTHS[:1]:
        x = drawn(wanted, seed, length)
        try:
            model.run(x)
        except (BatchnormError, ValueError, RuntimeError) as error:
            refusal = refusal or ArgumentError(f"{type(error).__name__}: {' '.join(str(error).split())[: WIDEST * 4]}")
            continue
        return x
    raise ArgumentError(f"fold: {model.path} takes none of the random inputs that were tried; give --data ({refusal})")
