"""What one layer's stored numbers show by themselves, worst first: the rules about one record, in short.

`list` prints the worst sign of each layer, `explain` begins with the worst layer and the worst channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batchnorm.core.record import LayerRecord

from .rules import RANK, Level, of_record
from .rules import channels as of

__all__ = ["Scale", "Sign", "effective_scale", "epsilon_dominated", "initial_share", "signs_of", "worst_channels"]

initial_share = of.initial_share


@dataclass(frozen=True, slots=True)
class Sign:
    """One thing that shows: how bad, which rule it belongs to, where, and in a short line what."""

    level: Level
    rule: str
    channels: tuple[int, ...]
    text: str


def signs_of(record: LayerRecord) -> tuple[Sign, ...]:
    """Every sign of one layer, worst first; none where the file holds no statistics."""
    if not of.held(record):
        return ()
    found = of_record(record)
    return tuple(Sign(one.level, one.rule.code, one.hit.channels, one.hit.short) for one in found)


def worst_channels(record: LayerRecord) -> tuple[int, ...]:
    """All channels, those with the worst signs first; within one sign, the smallest variance first."""
    severity = np.full(record.channels, len(RANK))
    for sign in reversed(signs_of(record)):
        severity[list(sign.channels)] = RANK[sign.level]
    variance = np.zeros(record.channels) if record.moving_variance is None else of.variance(record)
    order = np.lexsort((np.arange(record.channels), np.nan_to_num(variance, nan=-1.0), severity))
    return tuple(int(c) for c in order)


@dataclass(frozen=True, slots=True)
class Scale:
    """Smallest, middle and largest effective scale ``|gamma| / sqrt(moving_variance + epsilon)`` of a layer."""

    min: float
    median: float
    max: float


def effective_scale(record: LayerRecord) -> Scale | None:
    """How much the layer stretches its channels in inference; None without an epsilon or statistics."""
    if record.moving_variance is None or record.epsilon is None:
        return None
    with np.errstate(all="ignore"):
        scale = of.scale(record, record.epsilon)
        return Scale(float(np.min(scale)), float(np.median(scale)), float(np.max(scale)))


def epsilon_dominated(record: LayerRecord) -> int | None:
    """Channels whose variance is under ten epsilon; None where it cannot be known."""
    if record.moving_variance is None or record.epsilon is None:
        return None
    return int(np.sum(of.variance(record) < of.EPSILON_DOMINATED * record.epsilon))
