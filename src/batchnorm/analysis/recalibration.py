"""New statistics from data: in one pass of training mode, layer by layer, or without data by taking the start out.

Algorithms over moments; who runs the model, and on how many machines, is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from batchnorm.core import equations
from batchnorm.core.accumulator import Accumulator
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, Refused

from .levels import Level
from .numbers import count as counted

__all__ = ["LEAST", "MOVES", "NOISY", "ROUNDS", "Pass", "Statistics", "debiased", "noise", "sequential", "statistics"]

Array = NDArray[np.float64]
MOVES = 1e-6
"""Of a standard deviation: statistics that move less have come to rest."""
ROUNDS = 20
LEAST = 2
"""Elements a channel without which there is no variance."""
NOISY = 0.1
"""Of the standard deviation of a variance from few elements, sqrt(2/(n-1)): above it the result carries a note."""


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What a layer shall hold, the variance with its format's divisor; ``count`` elements a channel are behind it."""

    mean: Array
    variance: Array
    count: float | None = None


class Pass(Protocol):
    """One run over all the data."""

    def __call__(self, layers: Collection[str], number: int, round: int) -> dict[str, Accumulator]:
        """Moments of what each of the layers gets, all others in inference mode; numbered, for a run that resumes."""
        ...


def statistics(record: LayerRecord, moments: Accumulator) -> Statistics:
    """The moments as a layer stores them: the divisor is its format's, count where that is not known.

    Raises
    ------
    ArgumentError
        Fewer than two elements in some channel.
    """
    least = float(np.min(moments.count))
    if least < LEAST:
        raise ArgumentError(
            f"recalibrate: the data give layer {record.name} {counted(int(least), 'element')} a channel, and a "
            f"variance needs at least {LEAST}; {int(np.ceil(1 + 2 / NOISY**2))} would bring its sampling noise under "
            f"{NOISY:.0%}. Give more data."
        )
    return Statistics(moments.mean, moments.variance(record.ddof or 0), least)


def noise(count: float) -> float:
    """The relative standard deviation of a variance from so many independent normal elements: ``sqrt(2/(n-1))``."""
    return float(np.sqrt(2 / max(count - 1, 1)))


def sequential(
    run: Pass,
    levels: Sequence[Level],
    records: Mapping[str, LayerRecord],
    write: Callable[[str, Statistics], None],
    done: Mapping[str, Statistics],
    finished: Callable[[int, Mapping[str, Statistics]], None],
) -> dict[str, Statistics]:
    """Layer by layer in the order of the data's way: what each gets when all before it hold their new statistics.

    Parameters
    ----------
    run : Pass
        Runs the model over the data.
    levels : sequence of Level
        Which layers share a pass.
    records : mapping
        Of the layers by name.
    write : callable
        Lets the model hold new statistics of a layer.
    done : mapping
        Levels of an earlier run that need not be measured again; they are written.
    finished : callable
        Told the number of each level that is done, and all statistics so far.

    Raises
    ------
    Refused
        A layer that feeds itself does not come to rest in 20 rounds.
    """
    found = dict(done)
    for name, each in found.items():
        write(name, each)
    for number, level in enumerate(levels):
        if all(name in found for name in level.layers):
            continue
        _measure(run, level.layers, number, 0, records, write, found)
        _settle(run, level, number, records, write, found)
        finished(number, found)
    return found


def _measure(
    run: Pass,
    layers: Collection[str],
    number: int,
    round: int,
    records: Mapping[str, LayerRecord],
    write: Callable[[str, Statistics], None],
    found: dict[str, Statistics],
) -> float:
    """One pass; how far the statistics moved, in standard deviations, against those that were found before."""
    moved = 0.0
    moments = run(layers, number, round)
    for name in layers:
        if name not in moments:
            raise ArgumentError(f"recalibrate: this data did not reach {name} again; give data that does not change.")
        new = statistics(records[name], moments[name])
        moved = max(moved, _distance(records[name], found[name], new) if name in found else np.inf)
        found[name] = new
        write(name, new)
    return moved


def _settle(
    run: Pass,
    level: Level,
    number: int,
    records: Mapping[str, LayerRecord],
    write: Callable[[str, Statistics], None],
    found: dict[str, Statistics],
) -> None:
    """Layers that are fed by their own output: again and again until nothing moves."""
    if not level.cyclic:
        return
    for round in range(1, ROUNDS):
        if _measure(run, level.cyclic, number, round, records, write, found) < MOVES:
            return
    raise Refused(
        f"recalibrate: {', '.join(level.cyclic)} feeds itself, and its statistics do not come to rest in {ROUNDS} "
        "rounds. Use --method one-pass, or leave it out with --skip."
    )


def _distance(record: LayerRecord, old: Statistics, new: Statistics) -> float:
    with np.errstate(all="ignore"):
        spread = np.sqrt(new.variance + (record.epsilon or 0.0))
        safe = np.where(spread > 0, spread, 1.0)
        shift = np.abs(new.mean - old.mean) / safe
        stretch = np.abs(np.sqrt(old.variance + (record.epsilon or 0.0)) - spread) / safe
    return float(max(np.max(shift), np.max(stretch)))


def debiased(records: Sequence[LayerRecord]) -> tuple[dict[str, Statistics], dict[str, str]]:
    """The statistics with their initial value taken out; and the layers in which there is none, with the reason.

    ``(moving - decay**updates * initial) / (1 - decay**updates)``

    Raises
    ------
    Refused
        The number of updates is in doubt, or unknown, or a variance would turn negative, in any layer.
    """
    found: dict[str, Statistics] = {}
    nothing: dict[str, str] = {}
    for record in records:
        reason = _holds_no_initial(record)
        if reason is not None:
            nothing[record.name] = reason
            continue
        found[record.name] = _without_initial(record)
    return found, nothing


def _holds_no_initial(record: LayerRecord) -> str | None:
    if record.recalibrated is not None:
        return f"its statistics were recalibrated ({record.recalibrated}) and hold no initial value"
    if record.averaging == "cumulative":
        return "a plain mean over all updates holds no initial value"
    if record.averaging == "exponential" and record.decay is None and record.momentum is not None:
        return "its statistics are debiased already"
    return None


def _without_initial(record: LayerRecord) -> Statistics:
    who = f"recalibrate --debias: {record.name}"
    way_out = "Pass --updates N if you know it, leave the layer out with --skip, or recalibrate with --data."
    weight = record.initial_weight
    if record.updates_doubt is not None:
        raise Refused(f"{who}: the number of updates is in doubt: {record.updates_doubt}. {way_out}")
    if record.decay is None:
        raise Refused(f"{who}: its decay (momentum) is not in the file. Load the weights into the live model.")
    if weight is None:
        raise Refused(f"{who}: the file does not hold the number of updates. {way_out}")
    if record.initial_mean is None or record.initial_variance is None:
        raise Refused(f"{who}: its statistics did not start from 0 and 1, and from what is not known. {way_out}")
    if weight == 1:
        raise Refused(f"{who}: it was never updated, so that its statistics are nothing but their initial value.")
    assert record.moving_mean is not None
    assert record.moving_variance is not None
    mean, variance = (
        np.asarray(equations.without_initial(np, stored.astype(np.float64), initial, weight))
        for stored, initial in (
            (record.moving_mean, record.initial_mean),
            (record.moving_variance, record.initial_variance),
        )
    )
    if np.any(variance < 0):
        channel = int(np.argmin(variance))
        raise Refused(
            f"{who}: the variance of channel {channel} would turn negative ({variance[channel]:.3g}): "
            f"{weight:.3g} of the initial value cannot be left in a stored {record.moving_variance[channel]:.3g}. "
            f"{way_out}"
        )
    return Statistics(mean, variance)


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Accumulator]:
    """The moments of several parts of the data together."""
    found: dict[str, Accumulator] = {}
    for part in parts:
        for name, moments in part.items():
            found[name] = found[name].merge(moments) if name in found else moments
    return found
