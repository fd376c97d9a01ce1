"""What a layer remembers: how moving statistics follow the batches, and which statistics inference takes.

One state machine for every layer, over a namespace ``xp`` (see `equations`). A state is a dict of arrays of one shape:

====================  =======================================================  ==============  =======
name                  meaning                                                  held            initial
====================  =======================================================  ==============  =======
``moving_mean``       moving average of the batch means                        always          0
``moving_variance``   moving average of the batch variances                    always          1
``remaining``         product of the decays applied so far                     debiased        1
``updates``           updates so far                                           cumulative      0
``moving_stddev``     moving average of ``sqrt(variance + epsilon)``           renorm          1
``renorm_mean``       the mean that renorm corrects towards                    renorm          0
``renorm_stddev``     the standard deviation that renorm corrects towards      renorm          1
====================  =======================================================  ==============  =======

``remaining`` and ``updates`` are held per channel, because the guard skips channels one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from . import equations
from .equations import Limits, Moments

__all__ = [
    "Renorm",
    "Rule",
    "State",
    "Statistics",
    "inference_statistics",
    "or_moving",
    "state_names",
    "update",
    "update_all",
]

State = dict[str, Any]
Average = Callable[[Any, Any], Any]
Statistics = Literal["moving", "debiased", "cumulative"]
NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Renorm:
    """Batch renormalization: its limits, and the share of the old value its own averages keep."""

    limits: Limits = NO_LIMITS
    decay: float = 0.99


@dataclass(frozen=True, slots=True)
class Rule:
    """How moving statistics follow the batches.

    Parameters
    ----------
    epsilon : float
        Added to the variance inside the root; positive.
    decay : float
        Share of the old value that one update keeps, 0 to 1; not used by ``"cumulative"``.
    ddof : int
        The stored variance is divided by count - ddof.
    statistics : {"moving", "debiased", "cumulative"}
        ``"moving"``: the average starts at its initial value and forgets it at the pace of the decay. ``"debiased"``:
        the initial value is taken out when inference reads the average. ``"cumulative"``: the plain mean over all
        updates.
    guard : bool
        Leave a channel's statistics alone where the batch's are NaN or infinite.
    renorm : Renorm, optional
        Batch renormalization; None is batch normalization.
    """

    epsilon: float
    decay: float
    ddof: int = 0
    statistics: Statistics = "moving"
    guard: bool = True
    renorm: Renorm | None = None


def state_names(rule: Rule) -> dict[str, float]:
    """The names of the state's arrays in their order in a weights list, each with its initial value."""
    names = {"moving_mean": 0.0, "moving_variance": 1.0}
    if rule.renorm is not None:
        names |= {"moving_stddev": 1.0, "renorm_mean": 0.0, "renorm_stddev": 1.0}
    if rule.statistics == "debiased":
        names["remaining"] = 1.0
    if rule.statistics == "cumulative":
        names["updates"] = 0.0
    return names


def inference_statistics(xp: Any, rule: Rule, state: State) -> tuple[Any, Any]:
    """Mean and variance that inference normalises with: the moving ones, less their initial value if debiased.

    The variance is never negative: early on, the initial value's rounding can exceed a small debiased variance.
    """
    mean, variance = state["moving_mean"], state["moving_variance"]
    if rule.statistics != "debiased":
        return mean, variance
    remaining = state["remaining"]
    mean = equations.without_initial(xp, mean, 0.0, remaining)
    if rule.renorm is not None:  # the standard deviation is the average then, and the variance follows from it
        return mean, _variance_of(xp, rule, equations.without_initial(xp, state["moving_stddev"], 1.0, remaining))
    return mean, _not_negative(xp, equations.without_initial(xp, variance, 1.0, remaining))


def or_moving(xp: Any, batch: Moments, mean: Any, variance: Any) -> Moments:
    """The batch's moments where something was counted, the given statistics elsewhere (everything was masked)."""
    some = batch.count > 0
    return Moments(
        batch.count,
        xp.where(some, batch.high, mean),
        xp.where(some, batch.low, 0 * batch.low),
        xp.where(some, batch.variance, variance),
    )


def update(xp: Any, rule: Rule, state: State, batch: Moments) -> tuple[State, Any]:
    """The state after one batch, and the channels whose update was skipped for a NaN or an infinity.

    A batch of fewer than two counted elements a channel says nothing of a variance: it changes nothing.

    Parameters
    ----------
    xp : namespace
        See `equations`.
    rule : Rule
        How to average.
    state : dict of arrays
        See the module.
    batch : Moments
        Of the arrays' shape, in the state's dtype.

    Returns
    -------
    state : dict of arrays
        New arrays; the old state is not touched.
    skipped : array of bool
        Channels left alone by the guard; never true without it.
    """
    stored = equations.sample_variance(xp, batch.variance, batch.count, rule.ddof)
    applied, skipped = _applied(xp, rule, batch, stored)
    decay = rule.decay if rule.statistics != "cumulative" else state["updates"] / (state["updates"] + 1)

    def average(moving: Any, value: Any) -> Any:
        return equations.decayed(moving, value, decay)

    def renorm_average(moving: Any, value: Any) -> Any:
        return equations.decayed(moving, value, _renorm_decay(rule))

    new = _averaged(xp, rule, state, batch, stored, average, renorm_average)
    return {name: xp.where(applied, new[name], old) for name, old in state.items()}, skipped


def update_all(xp: Any, rule: Rule, state: State, batches: Moments) -> tuple[State, Any]:
    """The state after several batches: that of `update` for one after the other, up to rounding, without a loop.

    Parameters
    ----------
    xp, rule, state
        As in `update`.
    batches : Moments
        Stacked along a new axis 0, in the order of the updates; ``count`` too.

    Returns
    -------
    state, skipped
        As in `update`; ``skipped`` has the batches along axis 0.
    """
    stored = equations.sample_variance(xp, batches.variance, batches.count, rule.ddof)
    applied, skipped = _applied(xp, rule, batches, stored)
    zero = 0 * state["moving_mean"]
    ones = xp.where(applied, zero + 1, zero)
    times = xp.sum(ones, axis=0)

    def average(moving: Any, values: Any) -> Any:
        return equations.decayed_all(xp, moving, values, rule.decay, applied, ones)

    def plain(moving: Any, values: Any) -> Any:
        updates = xp.where(times > 0, state["updates"] + times, zero + 1)
        return moving + xp.sum(xp.where(applied, values - moving, 0.0), axis=0) / updates

    def renorm_average(moving: Any, values: Any) -> Any:
        return equations.decayed_all(xp, moving, values, _renorm_decay(rule), applied, ones)

    chosen = plain if rule.statistics == "cumulative" else average
    new = _averaged(xp, rule, state, batches, stored, chosen, renorm_average, times)
    return {name: xp.where(times > 0, new[name], old) for name, old in state.items()}, skipped


def _applied(xp: Any, rule: Rule, batch: Moments, stored: Any) -> tuple[Any, Any]:
    finite = xp.isfinite(batch.mean) & xp.isfinite(stored)
    if rule.guard and isinstance(batch.count, int) and batch.count > 1:
        return finite, ~finite
    counted = xp.where(finite, batch.count, batch.count) > 1  # of the arrays' shape, also where count is one number
    skipped = counted & ~finite if rule.guard else counted & ~counted
    return counted & ~skipped, skipped


def _averaged(
    xp: Any,
    rule: Rule,
    state: State,
    batch: Moments,
    stored: Any,
    average: Average,
    renorm_average: Average,
    times: Any = 1,
) -> State:
    new: State = {
        "moving_mean": average(state["moving_mean"], batch.mean),
        "moving_variance": average(state["moving_variance"], stored),
    }
    if "remaining" in state:
        new["remaining"] = state["remaining"] * rule.decay**times
    if "updates" in state:
        new["updates"] = state["updates"] + times
    if rule.renorm is None:
        return new
    # With renorm the standard deviation is averaged, not the variance, as Keras does; the variance follows from it.
    std = xp.sqrt(batch.variance + rule.epsilon)
    stored_std = xp.sqrt(stored + rule.epsilon) if rule.ddof else std
    new["moving_stddev"] = average(state["moving_stddev"], stored_std)
    new["moving_variance"] = _variance_of(xp, rule, new["moving_stddev"])
    new["renorm_mean"] = renorm_average(state["renorm_mean"], batch.mean)
    new["renorm_stddev"] = renorm_average(state["renorm_stddev"], std)
    return new


def _renorm_decay(rule: Rule) -> float:
    assert rule.renorm is not None
    return rule.renorm.decay


def _variance_of(xp: Any, rule: Rule, std: Any) -> Any:
    return _not_negative(xp, std * std - rule.epsilon)


def _not_negative(xp: Any, variance: Any) -> Any:
    return xp.where(variance < 0, 0 * variance, variance)
