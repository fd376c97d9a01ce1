"""One run over all the data in this process, alone or as one rank of a training job."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm.analysis.recalibration import LEAST, Statistics, merged
from batchnorm.core.accumulator import Accumulator
from batchnorm.core.calibration import Bench, Trace
from batchnorm.errors import ArgumentError, BatchnormError, Refused

from .batches import leaves
from .checkpoints import Checkpoint
from .padding import left_out, told
from .streams import Batch, Stream

__all__ = ["Gather", "LocalRun", "Step", "alone", "checkpoint_of", "digest", "measured"]

Gather = Callable[[Any], list[Any]]
"""What every rank of a job hands in, in the order of the ranks, on every rank."""
Step = Callable[[int], None]
"""Told the number of samples of each batch that is done."""
Moments = dict[str, Accumulator]


def alone(value: Any) -> list[Any]:
    """The gathering of a process that is no job."""
    return [value]


def measured(
    bench: Bench,
    batch: Batch,
    layers: Collection[str],
    training: Collection[str],
    padded: Collection[str] | None = None,
) -> Moments | None:
    """Moments of one batch, without the padding that lies along the inputs of the layers ``padded``.

    None where training mode cannot normalise with it, as it has one element a channel.
    """
    found = bench.measure(batch.inputs, layers, training, left_out(batch, padded))
    if training and any(np.any(np.less(each.count, LEAST)) and np.any(each.count) for each in found.values()):
        return None
    return found


class LocalRun:
    """A `Pass` in this process."""

    def __init__(
        self,
        bench: Bench,
        stream: Stream,
        step: Step,
        checkpoint: Checkpoint,
        gather: Gather = alone,
        training: Collection[str] = (),
    ) -> None:
        self._bench = bench
        self._stream = stream
        self._step = step
        self._checkpoint = checkpoint
        self._gather = gather
        self._training = frozenset(training)
        self.left_out = 0
        self.padded: frozenset[str] | None = None

    def __call__(self, layers: Collection[str], number: int, round: int) -> Moments:
        """See `Pass`."""
        parts, failure = None, None
        try:
            parts = self._here(frozenset(layers), number, round)
        except BatchnormError as error:
            if self._gather is alone:
                raise
            failure = error
        return merged(shared(self._gather, parts, failure))

    def write(self, layer: str, new: Statistics) -> None:
        """Let the model hold new statistics."""
        self._bench.write(layer, new.mean, new.variance)

    def trace(self) -> Trace:
        """The data's way, as the first rank with data sees it."""
        own, failure = None, None
        try:
            head = self._stream.head()
            own = self._bench.trace(head[0].inputs, told(head[0])) if head else None
        except BatchnormError as error:
            if self._gather is alone:
                raise
            failure = error
        found = [each for each in shared(self._gather, own, failure) if each is not None]
        if not found:
            raise Refused("recalibrate: no rank has any data.")
        self.padded = found[0].padded
        return found[0]

    def _here(self, layers: frozenset[str], number: int, round: int) -> Moments:
        found, start = self._checkpoint.partial(number, round)
        for place, batch in enumerate(self._stream):
            if place >= start:
                new = measured(self._bench, batch, layers, self._training, self.padded)
                if new is None:
                    self.left_out += batch.samples
                else:
                    found = merged([found, new])
                self._checkpoint.saw(number, round, place + 1, found)
            self._step(batch.samples)
        return found


def checkpoint_of(path: Any, key: Callable[[], str], gather: Gather) -> Checkpoint:
    """The checkpoint of a run; the ranks of a job have one each, all of the same level.

    Raises
    ------
    ArgumentError
        A file is no checkpoint, or that of another run; two ranks share one, or theirs are of different levels.
    """
    if path is None:
        return Checkpoint(None, "")
    if gather is alone:
        return Checkpoint(path, key())
    found, failure = None, None
    try:
        found = Checkpoint(path, key())
    except BatchnormError as error:
        failure = error
    place = (socket.gethostname(), str(Path(path).resolve()))
    everywhere = shared(gather, None if found is None else (place, sorted(found.done)), failure)
    if len({where for where, _ in everywhere}) < len(everywhere):
        raise ArgumentError("--checkpoint: each rank of a job needs a file of its own; put its rank into the name.")
    if any(done != everywhere[0][1] for _, done in everywhere):
        raise ArgumentError("--checkpoint: the ranks' files are not of the same level. Remove them, and begin anew.")
    assert found is not None
    return found


def digest(stream: Stream) -> str:
    """The first batches in one number: data in another order are other data to a run that goes on in the middle."""
    found = hashlib.sha256()
    for batch in stream.head():
        for array in (*leaves(batch.inputs), *([] if batch.padding is None else [batch.padding])):
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def shared(gather: Gather, parts: Any, failure: BatchnormError | None) -> list[Any]:
    """What every rank found; an error of one rank is an error of all, so that none waits for it for good."""
    everywhere = gather((parts, None if failure is None else str(failure)))
    if failure is not None:
        raise failure
    for rank, (_, why) in enumerate(everywhere):
        if why is not None:
            raise Refused(f"recalibrate: rank {rank} of the job failed: {why}")
    return [found for found, _ in everywhere]
