"""Where training and inference part on given data: each layer's own input against its stored statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.accumulator import Accumulator
from batchnorm.core.record import LayerRecord

from .numbers import brief, count

__all__ = ["Gap", "first_gap", "gap_sentence"]

SHOWS = 0.3
"""Root mean square over channels of the shift and the stretch, in standard deviations; networks below it lose at most
a point or two of accuracy."""


@dataclass(frozen=True, slots=True, eq=False)
class Gap:
    """The first layer whose training-mode output would differ, by how much, and on how many elements a channel."""

    record: LayerRecord
    position: int
    effect: float
    count: int


def first_gap(records: Sequence[LayerRecord], inputs: Mapping[str, Sequence[NDArray[Any]]]) -> Gap | None:
    """The first layer, in the order of the data's way, where the stored statistics are not this data's.

    Parameters
    ----------
    records : sequence of LayerRecord
        The layers in the order of the data's way.
    inputs : mapping
        Layer name -> the inputs of its calls, in inference mode.
    """
    for position, record in enumerate(records):
        calls = inputs.get(record.name, ())
        if calls and record.moving_mean is not None and record.moving_variance is not None:
            batch = _moments(calls, record)
            found = _effect(record, batch)
            if found > SHOWS:
                return Gap(record, position, found, int(batch.count))
    return None


def gap_sentence(gap: Gap | None, layers: int) -> str:
    """What to say of it first."""
    if gap is None:
        return "On this data the stored statistics fit: training and inference mode agree in every layer."
    where = f"the {_ordinal(gap.position + 1)} of {count(layers, 'batch normalization')}"
    return (
        f"On this data training and inference mode differ, beginning at {gap.record.name} ({where}): its stored "
        f"statistics are off by {brief(gap.effect, 2)} standard deviations ({count(gap.count, 'element')} a channel)."
    )


def _moments(calls: Sequence[NDArray[Any]], record: LayerRecord) -> Accumulator:
    whole = Accumulator.of(calls[0], record.axis)
    for call in calls[1:]:
        whole = whole.merge(Accumulator.of(call, record.axis))
    return whole


def _effect(record: LayerRecord, batch: Accumulator) -> float:
    # The root mean square over channels of ((mean - moving_mean)/s, sqrt(moving_variance + epsilon)/s - 1) with s the
    # standard deviation of the data, less what sampling alone would give: 1/n for the mean, 1/(2n) for the spread.
    epsilon = record.epsilon or 0.0
    assert record.moving_mean is not None
    assert record.moving_variance is not None
    with np.errstate(all="ignore"):
        s = np.sqrt(batch.variance(0).ravel() + epsilon)
        shift = (batch.mean.ravel() - record.moving_mean) / s
        stretch = np.sqrt(record.moving_variance.astype(np.float64) + epsilon) / s - 1
        square = np.mean(shift**2 + stretch**2) - 1.5 / max(float(batch.count), 1.0)
    return float(np.sqrt(max(square, 0.0))) if np.isfinite(square) else float("inf")


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
