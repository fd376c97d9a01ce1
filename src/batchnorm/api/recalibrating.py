"""New statistics for a model: ``bn.recalibrate``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from batchnorm.analysis import recalibration
from batchnorm.analysis.levels import Level, levels_of
from batchnorm.analysis.recalibration import NOISY, Statistics
from batchnorm.core import output
from batchnorm.core.accumulator import Accumulator
from batchnorm.core.calibration import Bench, Trace
from batchnorm.core.record import LayerRecord
from batchnorm.engines.randomness import random_state_kept
from batchnorm.errors import ArgumentError, Refused

from . import outcome
from .checkpoints import Checkpoint, identity
from .loading import chosen, hashed, load, opened
from .passes import Gather, LocalRun, alone, checkpoint_of, digest
from .progress import Progress, Silent
from .recalibrated import Moments, Recalibrated, Recalibration, Sides
from .streams import Stream

__all__ = ["METHODS", "Outcome", "left_alone", "opened_model", "put", "recalibrate", "result", "unrun"]

METHODS = ("one-pass", "sequential")
SKIPPED = "skipped as asked"
UNREACHED = "not reached by this data"
COUNTER_NOTE = (
    "The counter of updates stays as it is: it tells how long the model was trained. The statistics are marked as "
    "recalibrated, so that list and check take no initial value for left in them."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a recalibration is done; see `recalibrate`."""

    method: str = "one-pass"
    batch_size: int = 128
    skip_nonfinite: bool = False
    workers: int | None = None
    ray: str | None = None
    process_group: Any = None
    checkpoint: Any = None
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a way of recalibrating found."""

    found: Mapping[str, Statistics]
    unreached: Collection[str] = ()
    passes: int = 0
    forwards: float = 0.0
    samples: int | None = None
    gap: Sides | None = None
    accuracy: Sides | None = None
    notes: tuple[str, ...] = ()
    nothing: Mapping[str, str] = field(default_factory=dict[str, str])
    finish: Callable[[], None] = lambda: None  # told once the result is where it belongs


def recalibrate(
    model: Any,
    data: Any = None,
    *,
    method: str = "one-pass",
    batch_size: int = 128,
    labels: Any = None,
    debias: bool = False,
    updates: int | None = None,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    skip_nonfinite: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    process_group: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    epsilon: float | None = None,
    progress: Progress | None = None,
) -> Recalibration:
    """Give the batch normalizations of a model new moving statistics, from data or by taking their initial value out.

    ``"one-pass"``: ``mean, variance`` of what each layer gets in training mode, the batches merged by count with the
    distance of their means. ``"sequential"``: those of what it gets in inference mode, layer by layer, once all layers
    before it hold their new ones. ``debias``: ``(moving - w*initial)/(1 - w)`` with ``w = decay**updates``.

    Parameters
    ----------
    model : path or object
        A file, which is copied to ``out`` with its new statistics; or a live ``keras.Model``, ``torch.nn.Module`` or
        ``nnx.Module``, which is changed in place, or, with ``out``, left as it is and written there.
    data : array, dict of arrays, iterable of batches, or function that returns one
        A batch is an array, a dict of named inputs, or a tuple ``(x, labels)``.
    method : {"one-pass", "sequential"}
        See above. Sequential runs the data once for each level of layers that do not feed each other, and stops at the
        layers it measures.
    batch_size : int
        Of batches that are cut from arrays. In one pass it is the size of the training that is imitated.
    labels : array, optional
        One a sample, for the accuracy before and after, where data are arrays.
    debias : bool
        Take the initial value out; needs no data.
    updates : int, optional
        How often the statistics were updated, where the file does not tell.
    out : path, optional
        Where the result is written; without it a file's new statistics are only reported.
    force : bool
        Replace an existing ``out``.
    only, skip : sequence of str
        Layers, by their names or unambiguous tails, that alone are touched, or left alone.
    skip_nonfinite : bool
        Leave out samples that hold a NaN or an infinity.
    workers, ray : int, str, optional
        Spread the data over so many processes of this machine, or over the Ray cluster at that address.
    process_group : torch.distributed.ProcessGroup, optional
        Inside a training job: each rank gives its own part of the data, and all get the same statistics.
    checkpoint : path, optional
        Where a long run keeps how far it has come, and goes on from if it is there.
    weights : path, optional
        A state dict that is loaded into ``model`` first; ``out`` is then a copy of it.
    epsilon : float, optional
        As in `load`.
    progress : Progress, optional
        Told what will be done and how far it has come.

    Returns
    -------
    Recalibration
        Statistics before and after, the gap between training and inference mode before and after, the accuracy.

    Raises
    ------
    ArgumentError
        No data, too little, not finite (the sample is named), of the wrong shape, changing between passes; a bad path.
    Refused
        A layer that feeds itself and does not come to rest; a counter in doubt, a variance that would turn negative.
    NoBatchNorm, UnknownLayer, ModelFileError
        As in `load`.

    Notes
    -----
    Moments are computed by the corrected two-pass in the engine and merged in float64. Dropout and other noise are
    off, frozen layers stay as they are, masks are respected, and the stored variance has the divisor of the format.
    Whatever goes wrong, and Ctrl-C, leave model and files as they were.

    Examples
    --------
    >>> found = recalibrate(model, loader, method="sequential")  # doctest: +SKIP
    >>> found.gap.before, found.gap.after  # doctest: +SKIP
    (0.83, 0.02)
    """
    options = Options(
        method=method,
        batch_size=batch_size,
        skip_nonfinite=skip_nonfinite,
        workers=workers,
        ray=ray,
        process_group=process_group,
        checkpoint=checkpoint,
        progress=progress or Silent(),
    )
    _check(options, data, debias)
    read = opened_model(model, weights, epsilon)
    template: Any = None if weights is None else load(weights)
    if out is not None:
        output.check(out, source=read.path if template is None else template.path, force=force)
    reasons = left_alone(read, only, skip)
    records = [record.with_updates(updates, "option") for record in read.layers if record.name not in reasons]
    if not records:
        raise Refused(f"recalibrate: no layer is left to recalibrate: {_said(reasons)}.")
    done = (
        _debiased(records) if debias else _from_data(model, read, records, _stream_of(data, labels, options), options)
    )
    new = {name: (each.mean, each.variance) for name, each in done.found.items()}
    how = "debias" if debias else method
    put(read, template, new, out, force, how)
    done.finish()
    reasons |= {**done.nothing, **dict.fromkeys(done.unreached, UNREACHED)}
    return result(model, read, done, reasons, out, how)


def opened_model(model: Any, weights: str | os.PathLike[str] | None, epsilon: float | None) -> Any:
    """The model, read, with a file of weights loaded into it."""
    return opened(load(model, epsilon=epsilon, weights=weights), epsilon)


def unrun(read: Any) -> Callable[[], Bench]:
    """What makes the bench of a model.

    Raises
    ------
    Refused
        It cannot be run.
    """
    if read.bench is None:
        raise Refused(
            f"{read.path}: a {read.format} model cannot be recalibrated with data: it holds weights and no graph, or "
            "no engine runs it. Name the model that the weights belong to: package.module:name --weights FILE."
        )
    return read.bench


def _check(options: Options, data: Any, debias: bool) -> None:
    if options.method not in METHODS:
        raise ArgumentError(f"recalibrate: method must be one-pass or sequential; got {options.method!r}.")
    if debias and data is not None:
        raise ArgumentError("recalibrate: give data, or debias, which needs none; not both.")
    if not debias and data is None:
        raise ArgumentError("recalibrate: no data. Give training data with --data, or take the initial value out with "
                            "--debias, which needs none.")  # fmt: skip
    if sum(each is not None for each in (options.workers, options.ray, options.process_group)) > 1:
        raise ArgumentError("recalibrate: give one of workers, ray and process_group.")
    if options.workers is not None and options.workers < 1:
        raise ArgumentError(f"recalibrate: workers must be at least 1; got {options.workers}.")


def _stream_of(data: Any, labels: Any, options: Options) -> Stream | None:
    """The data as a stream; None where there are none."""
    if data is None:
        return None
    return Stream(
        data,
        options.batch_size,
        labels,
        skip_nonfinite=options.skip_nonfinite,
        may_be_empty=options.process_group is not None,
    )


def left_alone(read: Any, only: Sequence[str], skip: Sequence[str]) -> dict[str, str]:
    """Layers that keep their statistics, with the reason."""
    wanted = {chosen(read.layers, name, "recalibrate").name for name in only}
    unwanted = {chosen(read.layers, name, "recalibrate").name for name in skip}
    reasons: dict[str, str] = {}
    for record in read.layers:
        reason = _untouchable(record) or getattr(read, "untouched", {}).get(record.name)
        if reason is None and (record.name in unwanted or (wanted and record.name not in wanted)):
            reason = SKIPPED
        if reason is not None:
            reasons[record.name] = reason
    return reasons


def _untouchable(record: LayerRecord) -> str | None:
    if record.moving_mean is None or record.moving_variance is None:
        return "it holds no moving statistics"
    if record.mode == "frozen":
        return "frozen"
    return "batch renormalization averages standard deviations" if record.renorm else None


def _debiased(records: Sequence[LayerRecord]) -> Outcome:
    found, nothing = recalibration.debiased(records)
    if not found:
        raise Refused(f"recalibrate --debias: there is no initial value to take out: {_said(nothing)}.")
    return Outcome(found, notes=(COUNTER_NOTE,), nothing=nothing)


def _from_data(
    given: Any, read: Any, records: Sequence[LayerRecord], stream: Stream | None, options: Options
) -> Outcome:
    assert stream is not None
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
    with bench.session():

        def key() -> str:
            return identity(read, options.method, options.batch_size, stream.samples, sorted(names), digest(stream))

        checkpoint = checkpoint_of(options.checkpoint, key, gather)
        return _Work(given, bench, stream, options, gather, checkpoint).outcome(names, trainable)


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
            before = self._looked(trainable)
            found, passes, forwards = self._found(run, trace, reached)
        for name, each in found.items():
            self.bench.write(name, each.mean, each.variance)
        after = self._looked(trainable)
        return Outcome(
            found,
            unreached=names - set(reached),
            passes=passes,
            forwards=forwards,
            samples=self.stream.samples,
            gap=_sides(before[0], after[0]),
            accuracy=_sides(before[1], after[1]),
            notes=self._notes(found, run.left_out),
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
        passes = f"{len(levels)} pass{'es' if len(levels) > 1 else ''} over the data, {forwards:.3g} forwards' worth"
        rounds = any(level.cyclic for level in levels)
        more = " and more where a layer feeds itself" if rounds else ""
        time = "" if seconds is None else f", about {_duration(seconds)}"
        again = ", going on from the checkpoint" if self.checkpoint.resumes else ""
        self.options.progress.begin(
            f"{self.options.method}: {passes}{more}{time}{again}.",
            None if self.stream.samples is None else self.stream.samples * len(levels),
        )

    def _looked(self, trainable: set[str]) -> tuple[float | None, float | None]:
        head = self.stream.head()
        gap = outcome.gap(self.bench, head, trainable, self.gather)
        labelled = any(self.gather(bool(head) and head[0].labels is not None))
        if not labelled:
            return gap, None
        return gap, outcome.accuracy(self.bench, head if self.stream.is_once else self.stream, self.gather)

    def _notes(self, found: Mapping[str, Statistics], left_out: int) -> tuple[str, ...]:
        notes = [COUNTER_NOTE]
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


def put(read: Any, template: Any, new: Mapping[str, tuple[Any, Any]], out: Any, force: bool, method: str) -> None:
    """Into the live object; or into a copy of a file. Both bear the mark of what was done."""
    if template is not None and out is not None:
        names = {record.name for record in template.layers}
        own = {_own_name(names, name): pair for name, pair in new.items()}
        template.with_statistics(own, method).save(out, force=force)
    elif out is not None:
        read.with_statistics(new, method).save(out, force=force)
    elif read.commit is not None:
        read.commit(new, method)


def _own_name(names: set[str], name: str) -> str:
    """The name of a live layer in a state dict, which may put a prefix before it."""
    if name in names:
        return name
    ends = [each for each in names if each.endswith(f".{name}")]
    if len(ends) != 1:
        raise Refused(
            f"recalibrate: the file of --weights has {'no' if not ends else 'several'} layers named {name!r}."
        )
    return ends[0]


def result(given: Any, read: Any, done: Outcome, reasons: Mapping[str, str], out: Any, method: str) -> Recalibration:
    """The result of a recalibration, with the layers that were left alone and why."""
    layers = tuple(_layer(record, done.found.get(record.name), reasons.get(record.name)) for record in read.layers)
    return Recalibration(
        model=hashed(given, read) if read.commit is None else replace(hashed(None, read), sha256=None),
        layers=layers,
        method=method,
        passes=done.passes,
        forwards=done.forwards,
        samples=done.samples,
        gap=done.gap,
        accuracy=done.accuracy,
        output=None if out is None else str(Path(out)),
        notes=(*cast("tuple[str, ...]", getattr(read, "notes", ())), *done.notes),
    )


def _layer(record: LayerRecord, new: Statistics | None, reason: str | None) -> Recalibrated:
    held = record.moving_mean is not None and record.moving_variance is not None
    before = Moments(record.moving_mean, record.moving_variance) if held else None  # type: ignore[arg-type]
    if new is None:
        return Recalibrated(record.name, None, before, before, reason)
    return Recalibrated(record.name, new.count, before, Moments(new.mean, new.variance))


def _sides(before: float | None, after: float | None) -> Sides | None:
    return None if before is None and after is None else Sides(before, after)


def _said(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "under a second"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
