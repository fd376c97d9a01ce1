"""How far a long recalibration has come, in a file of its own, so that it can go on from there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm.analysis.recalibration import Statistics
from batchnorm.core import output
from batchnorm.core.accumulator import Accumulator
from batchnorm.core.graph import Graph
from batchnorm.core.protocols import Model
from batchnorm.core.record import ARRAYS, LayerRecord
from batchnorm.errors import ArgumentError, ModelFileError

__all__ = ["Checkpoint", "fingerprint", "identity", "moments_document", "read_moments"]

EVERY = 30.0
"""Seconds between two writings within a pass; a finished level is always written."""
SCHEMA = "batchnorm/checkpoint/1"


def fingerprint(records: Iterable[LayerRecord], *settings: Any) -> str:
    """What a run rests on: the layers with their arrays, and how it is done."""
    digest = hashlib.sha256(repr(settings).encode())
    for record in records:
        digest.update(f"{record.name} {record.axis} {record.epsilon} {record.ddof}".encode())
        for name in ARRAYS:
            array = getattr(record, name)
            digest.update(b"-" if array is None else array.tobytes())
    return digest.hexdigest()


def identity(read: Model, *settings: Any) -> str:
    """`fingerprint` of a whole model: its batch normalizations, and the kernels and biases that its graph shows.

    Fresh networks hold the same batch normalizations, and differ in nothing but their kernels.
    """
    graph: Graph | None = getattr(read, "graph", None)
    return fingerprint(read.layers, *settings, "" if graph is None else _kernels(graph))


def _kernels(graph: Graph) -> str:
    digest = hashlib.sha256()
    for operation in graph.operations:
        for name, array in operation.weights.items():
            digest.update(f"{operation.name} {name}".encode())
            try:
                digest.update(array().tobytes())
            except ModelFileError:
                digest.update(b"-")
    return digest.hexdigest()


class Checkpoint:
    """The state of one run; without a path nothing is kept.

    Parameters
    ----------
    path : path or None
        Where it is kept; an existing one is gone on from, and it is removed by `finish`.
    key : str
        `fingerprint` of the run; a checkpoint of another run is refused.
    every : float
        Seconds between two writings within a pass.

    Raises
    ------
    ArgumentError
        The file is no checkpoint, or that of another run.
    """

    def __init__(self, path: Any, key: str, every: float = EVERY) -> None:
        self._path = None if path is None else Path(path)
        self._key = key
        self._every = every
        self._written = time.monotonic()
        self.done: dict[str, Statistics] = {}
        self._place = (-1, 0)
        self._seen = 0
        self._moments: dict[str, Accumulator] = {}
        if self._path is None:
            return
        output.check(self._path, force=True, option="--checkpoint")
        if self._path.exists():
            self._read(self._path)

    @property
    def resumes(self) -> bool:
        """Whether there is anything to go on from."""
        return bool(self.done) or self._seen > 0

    def partial(self, number: int, round: int) -> tuple[dict[str, Accumulator], int]:
        """What an interrupted pass had found, and how many batches it had seen."""
        return (dict(self._moments), self._seen) if self._place == (number, round) else ({}, 0)

    def saw(self, number: int, round: int, batches: int, moments: Mapping[str, Accumulator]) -> None:
        """So many batches of a pass are done."""
        if self._path is None or round:  # rounds of a layer that feeds itself begin anew
            return
        self._place, self._seen, self._moments = (number, round), batches, dict(moments)
        if time.monotonic() - self._written >= self._every:
            self._write(self._path)

    def finished(self, number: int, done: Mapping[str, Statistics]) -> None:
        """A level is done."""
        self.done, self._place, self._seen, self._moments = dict(done), (number + 1, 0), 0, {}
        if self._path is not None:
            self._write(self._path)

    def finish(self) -> None:
        """The run is over: nothing to go on from."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        document = {
            "schema": SCHEMA,
            "key": self._key,
            "done": {
                name: [each.mean.tolist(), each.variance.tolist(), each.count] for name, each in self.done.items()
            },
            "place": list(self._place),
            "seen": self._seen,
            "moments": moments_document(self._moments),
        }
        with output.replacing(path, force=True, option="--checkpoint") as temporary:
            temporary.write_text(json.dumps(document), "utf-8")
        self._written = time.monotonic()

    def _read(self, path: Path) -> None:
        document = _json(path)
        if document.get("schema") != SCHEMA or "key" not in document:
            raise ArgumentError(f"--checkpoint: {path} is no checkpoint of a recalibration. Give another path.")
        if document["key"] != self._key:
            raise ArgumentError(
                f"--checkpoint: {path} is that of another model, method, batch size or data (in their order). "
                "Remove it, or give another path."
            )
        try:
            self._take(document)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ArgumentError(
                f"--checkpoint: {path} is damaged ({type(error).__name__}). Remove it, and begin anew."
            ) from None

    def _take(self, document: dict[str, Any]) -> None:
        held: dict[str, Any] = document["done"]
        self.done = {
            name: Statistics(np.array(mean, np.float64), np.array(variance, np.float64), count)
            for name, (mean, variance, count) in held.items()
        }
        self._place, self._seen = (int(document["place"][0]), int(document["place"][1])), int(document["seen"])
        self._moments = read_moments(document["moments"])


def moments_document(moments: Mapping[str, Accumulator]) -> dict[str, Any]:
    """Moments as JSON holds them: every digit of a float64."""
    return {
        name: {
            "count": np.asarray(each.count).tolist(),
            "mean": np.asarray(each.mean).tolist(),
            "m2": np.asarray(each.m2).tolist(),
        }
        for name, each in moments.items()
    }


def read_moments(document: Mapping[str, Any]) -> dict[str, Accumulator]:
    """The moments of `moments_document`.

    Raises
    ------
    ValueError, KeyError, TypeError
        They are no moments: a number that is not finite, a negative count or M2, lengths that differ.
    """
    found: dict[str, Accumulator] = {}
    for name, each in document.items():
        count = each["count"] if isinstance(each["count"], int) else np.array(each["count"], np.float64)
        mean, m2 = (np.array(each[key], np.float64) for key in ("mean", "m2"))
        one_each = mean.ndim == 1 and mean.shape == m2.shape and np.shape(count) in ((), mean.shape)
        if not (one_each and all(np.all(np.isfinite(each)) for each in (count, mean, m2))):
            raise ValueError(f"the moments of {name!r} are not one finite number a channel")
        if np.any(np.less(count, 0)) or np.any(m2 < 0):
            raise ValueError(f"the moments of {name!r} hold a negative count or variance")
        found[name] = Accumulator(count, mean, m2)
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--checkpoint: {path} cannot be read ({type(error).__name__}).") from None
    return found if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownVariableType]
