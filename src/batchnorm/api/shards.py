"""One pass by hand over many machines: ``collect`` writes the moments of a part of the data, ``merge`` joins them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm.analysis import recalibration
from batchnorm.analysis.levels import levels_of
from batchnorm.analysis.recalibration import merged
from batchnorm.core import output
from batchnorm.core.accumulator import Accumulator
from batchnorm.core.calibration import Bench
from batchnorm.core.output import replacing
from batchnorm.engines.randomness import random_state_kept
from batchnorm.errors import ArgumentError

from . import padding
from .checkpoints import Checkpoint, identity, moments_document, read_moments
from .padding import Apart
from .passes import LocalRun
from .progress import Progress, Silent
from .recalibrated import Recalibration
from .recalibration_options import METHODS, Outcome
from .recalibration_targets import left_alone, opened_model, unrun
from .recalibration_writing import put, result
from .streams import Stream

__all__ = ["Shard", "collect", "merge"]

SCHEMA = "batchnorm/shard/1"


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """What one part of the data tells: moments of some layers, and which model, method and level they are of."""

    key: str
    method: str
    level: int
    levels: int
    samples: int
    moments: dict[str, Accumulator]
    padded: frozenset[str] | None = None
    """The layers whose padding was left out; None where the data tell of none."""


def collect(
    model: Any,
    data: Any,
    out: str | os.PathLike[str],
    *,
    method: str = "one-pass",
    level: int = 1,
    batch_size: int = 128,
    force: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    skip_nonfinite: bool = False,
    weights: str | os.PathLike[str] | None = None,
    epsilon: float | None = None,
    progress: Progress | None = None,
) -> Shard:
    """Measure one part of the data, and write its moments into a small JSON file for `merge`.

    Parameters
    ----------
    model, data, method, batch_size, only, skip, skip_nonfinite, weights, epsilon, progress
        As in `recalibrate`; the same on every machine, but for the data.
    out : path
        The shard.
    level : int
        Of ``"sequential"``: which level of layers is measured, counted from 1. The model must hold the merged
        statistics of the levels before.
    force : bool
        Replace an existing ``out``.

    Returns
    -------
    Shard
        What was written.

    Raises
    ------
    ArgumentError
        As in `recalibrate`; a level that the model does not have.
    """
    told = progress or Silent()
    if method not in METHODS:
        raise ArgumentError(f"collect: method must be one-pass or sequential; got {method!r}.")
    read = opened_model(model, weights, epsilon)
    output.check_is_no_input(out, (read.path, *(() if weights is None else (weights,))))
    output.check(out, force=force)
    reasons = left_alone(read, only, skip)
    names = {record.name for record in read.layers if record.name not in reasons}
    stream = Stream(data, batch_size, skip_nonfinite=skip_nonfinite, who="collect")
    with random_state_kept():  # a loader that shuffles draws from it
        shard = _collected(read, stream, names, method, level, told)
    with replacing(out, force=force) as temporary:
        temporary.write_text(json.dumps(_document(shard)), "utf-8")
    return shard


def _collected(read: Any, stream: Stream, names: set[str], method: str, level: int, told: Progress) -> Shard:
    stream.head()
    bench: Bench = unrun(read)()
    key = identity(read)
    apart = Apart(bench.outputs, "collect")
    with bench.session():
        stream.taken_apart(apart)
        training = frozenset(names) if method == "one-pass" else frozenset[str]()
        run = LocalRun(bench, stream, told.step, Checkpoint(None, key), training=training)
        trace = run.trace()
        reached = [name for name in trace.order if name in names]
        levels = [tuple(reached)]
        if method == "sequential":
            found = levels_of(trace.order, trace.feeds, set(reached))
            cyclic = [name for each in found for name in each.cyclic]
            if cyclic:
                raise ArgumentError(f"collect: {cyclic[0]} feeds itself; use recalibrate, which repeats its passes.")
            levels = [each.layers for each in found]
        if not 1 <= level <= len(levels):
            raise ArgumentError(f"collect: --level must be between 1 and {len(levels)}; got {level}.")
        told.begin(f"collect: level {level} of {len(levels)}, {len(levels[level - 1])} layers.", stream.samples)
        moments = run(levels[level - 1], level - 1, 0)
    padded = None if run.padded is None else run.padded & frozenset(moments)
    return Shard(key, method, level, len(levels), stream.samples or 0, moments, padded)


def merge(
    model: Any,
    shards: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    weights: str | os.PathLike[str] | None = None,
    epsilon: float | None = None,
) -> Recalibration:
    """Join the moments of `collect` and give the model their statistics; which shard came first does not matter.

    Parameters
    ----------
    model, out, force, weights, epsilon
        As in `recalibrate`.
    shards : sequence of path
        Files of `collect`, all of one model, method and level; each part of the data once.

    Raises
    ------
    ArgumentError
        No shard, one that is damaged, is given twice, or is of another model, method or level.

    Notes
    -----
    The model is the one that `collect` was given, with the same weights and statistics: what it measured belongs to
    them. A copy of a shard is the same part of the data, and refused as that.
    """
    read = opened_model(model, weights, epsilon)
    template: Any = None if weights is None else opened_model(weights, None, epsilon)
    if out is not None:
        output.check_is_no_input(out, shards)
        output.check(out, source=read.path if template is None else template.path, force=force)
    parts = _read_all(shards)
    _check_model(read, parts[0], shards[0])
    first = parts[0]
    moments = merged([each.moments for each in parts])
    records = {record.name: record for record in read.layers}
    found = {name: recalibration.statistics(records[name], each) for name, each in moments.items()}
    put(read, template, {name: (each.mean, each.variance) for name, each in found.items()}, out, force, "merge")
    notes: tuple[str, ...] = ()
    if first.level < first.levels:
        notes = (f"Level {first.level} of {first.levels}: collect --level {first.level + 1} from this model next.",)
    notes += padding.notes(None, first.padded, tuple(found))
    reasons = {record.name: "not in the shards" for record in read.layers if record.name not in found}
    done = Outcome(found, passes=1, forwards=1.0, samples=sum(each.samples for each in parts), notes=notes)
    return result(model, read, done, reasons, out, "merge")


def _document(shard: Shard) -> dict[str, Any]:
    held = {name: getattr(shard, name) for name in ("key", "method", "level", "levels", "samples")}
    padded = None if shard.padded is None else sorted(shard.padded)
    return {"schema": SCHEMA, **held, "padded": padded, "moments": moments_document(shard.moments)}


def _read_all(shards: Sequence[str | os.PathLike[str]]) -> list[Shard]:
    """The shards, each once, all of one model, method and level."""
    places = [Path(each) for each in shards]
    if not places:
        raise ArgumentError("merge: no shard. Give the files that collect wrote.")
    parts: list[Shard] = []
    seen: dict[str, Path] = {}
    for place in places:
        part = _read(place)
        content = json.dumps(_document(part))
        if content in seen:
            same = "" if seen[content] == place else f", also as {seen[content]}"
            raise ArgumentError(f"merge: {place} is given twice{same}; each part of the data counts once.")
        seen[content] = place
        parts.append(part)
        if _kind(part) != _kind(parts[0]):
            raise ArgumentError(f"merge: {place} is of another model, method or level than {places[0]}.")
        if part.padded != parts[0].padded:
            raise ArgumentError(
                f"merge: {place} and {places[0]} leave padding out of other layers. Give mask or lengths with every "
                "part of the data, or with none, and pad all to one length."
            )
    return parts


def _kind(shard: Shard) -> tuple[Any, ...]:
    return shard.key, shard.method, shard.level, frozenset(shard.moments)


def _check_model(read: Any, shard: Shard, place: str | os.PathLike[str]) -> None:
    records = {record.name: record for record in read.layers}
    unknown = [name for name in shard.moments if name not in records]
    if unknown:
        raise ArgumentError(f"merge: the shards measured {unknown[0]!r}, which {read.path} does not hold.")
    odd = [name for name, each in shard.moments.items() if np.shape(each.mean) != (records[name].channels,)]
    if odd or shard.key != identity(read):
        raise ArgumentError(
            f"merge: {place} was measured on another model than {read.path}, or on other weights or statistics of it. "
            "Give the model that collect was given."
        )


def _read(path: Path) -> Shard:
    try:
        held: Any = json.loads(path.read_text("utf-8"))
        if held["schema"] != SCHEMA:
            raise ValueError(held["schema"])
        moments = read_moments(held["moments"])
        level, levels, samples = (int(held[name]) for name in ("level", "levels", "samples"))
        padded = held.get("padded")
        known = None if padded is None else frozenset(str(name) for name in padded)
        return Shard(str(held["key"]), str(held["method"]), level, levels, samples, moments, known)
    except OSError as error:
        raise ArgumentError(f"merge: {path} cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"merge: {path} is no file that collect wrote ({type(error).__name__}: {error}).") from None
