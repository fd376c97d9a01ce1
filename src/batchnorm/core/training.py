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

from dataclasses import dataclass
from typing import Any, Literal

from . import equations
from .equations import Limits, Moments

__all__ = ["Renorm", "Rule", "State", "Statistics", "inference_statistics", "or_moving", "state_names", "update"]

State = dict[str, Any]
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
    variance = equations.without_initial(xp, variance, 1.0, remaining)
    return (
        equations.without_initial(xp, mean, 0.0, remaining),
        xp.where(variance < 0, 0 * variance, variance),
    )


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
    finite = xp.where(xp.isfinite(batch.mean), xp.isfinite(stored), False)
    counted = xp.where(finite, batch.count, batch.count) > 1  # of the arrays' shape, also where count is one number
    skipped = xp.where(finite, False, counted) if rule.guard else xp.where(finite, False, False)
    applied = xp.where(skipped, False, counted)
    new = _averaged(xp, rule, state, batch, stored)
    return {name: xp.where(applied, new[name], old) for name, old in state.items()}, skipped


def _averaged(xp: Any, rule: Rule, state: State, batch: Moments, stored: Any) -> State:
    decay = rule.decay if rule.statistics != "cumulative" else state["updates"] / (state["updates"] + 1)
    new: State = {
        "moving_mean": equations.decayed(state["moving_mean"], batch.mean, decay),
        "moving_variance": equations.decayed(state["moving_variance"], stored, decay),
    }
    if "remaining" in state:
        new["remaining"] = state["remaining"] * rule.decay
    if "updates" in state:
        new["updates"] = state["updates"] + 1
    if rule.renorm is not None:
        new |= _renormed(xp, rule, rule.renorm, state, batch, decay)
    return new


def _renormed(xp: Any, rule: Rule, renorm: Renorm, state: State, batch: Moments, decay: Any) -> State:
    # With renorm the standard deviation is averaged, not the variance, as Keras does; the variance follows from it.
    std = xp.sqrt(batch.variance + rule.epsilon)
    moving_std = equations.decayed(state["moving_stddev"], std, decay)
    variance = moving_std * moving_std - rule.epsilon
    return {
        "moving_stddev": moving_std,
        "moving_variance": xp.where(variance < 0, 0 * variance, variance),
        "renorm_mean": equations.decayed(state["renorm_mean"], batch.mean, renorm.decay),
        "renorm_stddev": equations.decayed(state["renorm_stddev"], std, renorm.decay),
    }
