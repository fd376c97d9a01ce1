"""Statistics measured on data: one run over it, or one for each level of layers, inside the bench's session."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from batchnorm.analysis import recalibration
from batchnorm.analysis.levels import Level, levels_of
from batchnorm.analysis.recalibration import NOISY, Statistics
from batchnorm.core.accumulator import Accumulator
from batchnorm.core.calibration import Bench, Trace
from batchnorm.core.record import LayerRecord
from batchnorm.engines.randomness import random_state_kept
from batchnorm.errors import ArgumentError, Refused

from . import outcome, padding
from .checkpoints import Checkpoint, identity
from .padding import Apart
from .passes import Gather, LocalRun, alone, checkpoint_of, digest
from .recalibrated import Sides
from .recalibration_options import Options, Outcome
from .recalibration_targets import unrun
from .streams import Stream

__all__ = ["from_data"]


def from_data(given: Any, read: Any, records: Sequence[LayerRecord], stream: Stream, options: Options) -> Outcome:
    """New statistics of these layers, from one pass or several; the model is as before when it returns."""
    with random_state_kept():  # a loader that shuffles draws from it
        return _measured(given, read, records, stream, options)


def _measured(given: Any, read: Any, records: Sequence[LayerRecord], stream: Stream, options: Options) -> Outcome:
    make = unrun(read)
    gather = _gather(options)
    if gather is alone:
        stream.head()  # no data, or data that cannot be used: said before the model is loaded
    bench: Bench = make()
    names = {record.name for record in records}
    trainable = {record.name for record in bench.records if record.mode != "frozen"} - set(read.untouched)
    apart = Apart(bench.outputs, "recalibrate")
    with bench.session():
        stream.taken_apart(apart)

        def key() -> str:
            return identity(read, options.method, options.batch_size, stream.samples, sorted(names), digest(stream))

        checkpoint = checkpoint_of(options.checkpoint, key, gather)
        found = _Work(given, bench, stream, options, gather, checkpoint).outcome(names, trainable)
        return replace(found, notes=(*found.notes, *padding.notes(apart.taken, found.padded, tuple(found.found))))


def _gather(options: Options) -> Gather:
    if options.process_group is None:
        return alone
    from batchnorm.engines.torch_job import gathering

    return gathering(options.process_group)


class _Work:
    """One recalibration with data, inside the session of its bench."""

    def __init__(
        self, given: Any, bench: Bench, stream: Stream, options: Options, gather: Gather, checkpoint: Checkpoint
    ) -> None:
        self.given = given
        self.bench = bench
        self.stream = stream
        self.options = options
        self.gather = gather
        self.records = {record.name: record for record in bench.records}
        self.checkpoint = checkpoint

    def outcome(self, names: set[str], trainable: set[str]) -> Outcome:
        """Everything that is measured; the model is as before when the session ends."""
        with contextlib.ExitStack() as stack:
            run = self._run(names, stack)
            trace = run.trace()
            reached = [name for name in trace.order if name in names]
            if not reached:
                raise Refused(f"recalibrate: this data reaches none of the layers: {', '.join(sorted(names)[:5])}.")
            before = self._looked(trainable, run.padded)
            found, passes, forwards = self._found(run, trace, reached)
        for name, each in found.items():
            self.bench.write(name, each.mean, each.variance)
        after = self._looked(trainable, run.padded)
        return Outcome(
            found,
            unreached=names - set(reached),
            passes=passes,
            forwards=forwards,
            samples=self.stream.samples,
            gap=_sides(before[0], after[0]),
            accuracy=_sides(before[1], after[1]),
            notes=self._notes(found, run.left_out),
            padded=run.padded,
            finish=self.checkpoint.finish,
        )

    def _run(self, names: set[str], stack: contextlib.ExitStack) -> Any:
        training = frozenset(names) if self.options.method == "one-pass" else frozenset[str]()
        if self.options.workers is None and self.options.ray is None:
            step = self.options.progress.step
            return LocalRun(self.bench, self.stream, step, self.checkpoint, self.gather, training)
        from .fleet import FleetRun

        local = LocalRun(self.bench, self.stream, self.options.progress.step, self.checkpoint)
        fleet = FleetRun(
            self.given,
            local,
            self.stream,
            self.options.progress.step,
            workers=self.options.workers,
            address=self.options.ray,
            training=training,
        )
        return stack.enter_context(fleet)

    def _found(self, run: Any, trace: Trace, reached: Sequence[str]) -> tuple[dict[str, Statistics], int, float]:
        if self.options.method == "one-pass":
            self._announce([Level(tuple(reached))], 1.0, trace)
            moments = run(reached, 0, 0)
            missing = [name for name in reached if name not in moments]
            if missing:
                raise ArgumentError(
                    f"recalibrate: every batch gives layer {missing[0]} one element a channel, which has no variance "
                    "in training mode. Give batches of at least 2 samples, or use --method sequential."
                )
            return {name: recalibration.statistics(self.records[name], moments[name]) for name in reached}, 1, 1.0
        levels = levels_of(trace.order, trace.feeds, set(reached))
        share = {name: trace.reached.get(name, 1.0) if trace.once else 1.0 for name in reached}
        forwards = sum(max(share[name] for name in level.layers) for level in levels)
        self._announce(levels, forwards, trace)
        done = self.checkpoint.done
        again = 0

        def counted(layers: Collection[str], number: int, round: int) -> dict[str, Accumulator]:
            nonlocal again
            again += round > 0
            return run(layers, number, round)

        found = recalibration.sequential(counted, levels, self.records, run.write, done, self.checkpoint.finished)
        return found, len(levels) + again, forwards + again

    def _announce(self, levels: Sequence[Level], forwards: float, trace: Trace) -> None:
        total = self.stream.batches
        seconds = None if total is None else trace.seconds * forwards * total
        passes = f"{len(levels)} pass{'es' if len(levels) > 1 else ''} over the data, worth {forwards:.3g} forwards"
        rounds = any(level.cyclic for level in levels)
        more = " and more where a layer feeds itself" if rounds else ""
        time = "" if seconds is None else f", {_duration(seconds)}"
        again = ", going on from the checkpoint" if self.checkpoint.resumes else ""
        self.options.progress.begin(
            f"{self.options.method}: {passes}{more}{time}{again}.",
            None if self.stream.samples is None else self.stream.samples * len(levels),
        )

    def _looked(self, trainable: set[str], padded: frozenset[str] | None) -> tuple[float | None, float | None]:
        head = self.stream.head()
        gap = outcome.gap(self.bench, head, trainable, self.gather, padded)
        labelled = any(self.gather(bool(head) and head[0].labels is not None))
        if not labelled:
            return gap, None
        return gap, outcome.accuracy(self.bench, head if self.stream.is_once else self.stream, self.gather)

    def _notes(self, found: Mapping[str, Statistics], left_out: int) -> tuple[str, ...]:
        notes: list[str] = []
        few = min(found.items(), key=lambda item: item[1].count or 0.0)
        noise = recalibration.noise(few[1].count or 0.0)
        if noise > NOISY:
            notes.append(
                f"{few[0]} rests on {few[1].count:g} elements a channel, so that its variance has a sampling noise of "
                f"{noise:.0%}; more data would bring it down."
            )
        if left_out:
            notes.append(f"{left_out} samples in batches of one were left out: training mode has no variance of one.")
        if self.stream.skipped:
            notes.append(f"{self.stream.skipped} samples that are not finite were left out.")
        if self.stream.is_once and any(batch.labels is not None for batch in self.stream.head()):
            notes.append("data is an iterator: the accuracy is that of the first batches alone.")
        return tuple(notes)


def _sides(before: float | None, after: float | None) -> Sides | None:
    return None if before is None and after is None else Sides(before, after)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "under a second"
    return "about " + (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
