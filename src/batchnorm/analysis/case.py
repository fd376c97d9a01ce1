"""What the sentences of an explanation are about, and the thresholds they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from batchnorm.core.record import LayerRecord

from .expected import Reading
from .explanation import ChannelExplanation
from .signs import Sign, signs_of

__all__ = ["GONE", "Case", "Unlike", "collected", "epsilon_dominates", "unlike", "updates_until"]

GONE = 0.01
"""An initial value that is under 1 % of a moving average no longer shows in four digits of most outputs."""
UNLIKE_COUNT = 8
"""Fewer values say too little of an input's mean and spread to compare them with the stored ones."""
UNLIKE_MEAN = 1.0
UNLIKE_SPREAD = 2.0
UNSETTLED = 5.0
"""Early in a training the weights before the layer still move, and with them what its statistics are of."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """What the sentences are about: a layer, its channels worked through, and how they were asked for."""

    record: LayerRecord
    explained: tuple[ChannelExplanation, ...]
    expected: tuple[Reading, ...] | None
    mode: str
    given: bool
    upstream: str | None = None

    @property
    def lead(self) -> ChannelExplanation:
        """The worst channel, or the only one."""
        return self.explained[0]

    @property
    def of_lead(self) -> str:
        """`` of channel 3`` where the layer has several."""
        return f" of channel {self.lead.channel}" if self.record.channels > 1 else ""

    @property
    def in_lead(self) -> str:
        """`` in channel 3`` where the layer has several."""
        return f" in channel {self.lead.channel}" if self.record.channels > 1 else ""

    def sign(self, rule: str) -> Sign | None:
        """The sign of that rule, if the record shows it."""
        return next((sign for sign in signs_of(self.record) if sign.rule == rule), None)


@dataclass(frozen=True, slots=True)
class Unlike:
    """How an input differs from what the statistics are of: the distance of its mean and the ratio of its spread."""

    stored_mean: float
    distance: float
    ratio: float


def unlike(case: Case) -> Unlike | None:
    """How this input differs from the data behind the statistics; None where it does not, or cannot be told."""
    lead, batch = case.lead, case.lead.batch
    if batch is None or batch.count < UNLIKE_COUNT or case.record.untouched():
        return None
    if lead.moving_mean is None or lead.moving_variance is None or not batch.variance >= 0:
        return None
    mean, variance, epsilon = lead.moving_mean, lead.moving_variance, lead.epsilon or 0.0
    if lead.debiased is not None and lead.debiased.variance > 0:
        mean, variance = lead.debiased.mean, lead.debiased.variance
    sd = math.sqrt(max(variance, 0.0) + epsilon)
    if not sd > 0:
        return None
    found = Unlike(mean, abs(batch.mean - mean) / sd, math.sqrt(batch.variance + epsilon) / sd)
    weight = case.record.initial_weight
    slack = UNSETTLED if weight is not None and weight > GONE else 1.0
    alike = (
        found.distance <= slack * UNLIKE_MEAN and 1 / UNLIKE_SPREAD <= slack * found.ratio <= slack**2 * UNLIKE_SPREAD
    )
    return None if alike else found


def epsilon_dominates(case: Case) -> bool:
    """Whether the variance of the lead channel is under ten epsilon."""
    lead = case.lead
    return (
        lead.epsilon is not None and lead.moving_variance is not None and 0 <= lead.moving_variance < 10 * lead.epsilon
    )


def updates_until(decay: float, share: float = GONE) -> int | None:
    """Updates after which the initial value's share is under ``share``; None where it never is."""
    if not 0 < decay < 1:
        return 1 if decay == 0 else None
    return math.ceil(math.log(share) / math.log(decay))


def collected(table: tuple[Callable[[Case], str | None], ...], case: Case) -> tuple[str, ...]:
    """The sentences of a table that apply to the case, in its order."""
    return tuple(sentence for write in table if (sentence := write(case)) is not None)
