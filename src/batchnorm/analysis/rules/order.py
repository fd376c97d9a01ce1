"""Whether batches differ from each other by more than chance, as those of a loader that does not shuffle do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.numbers import brief
from batchnorm.core.accumulator import Accumulator

__all__ = ["Order", "order_of"]

FEWEST = 4
"""Batches of one size."""
SURE = 4.0
"""Standard deviations: a quantile of .99997 of the ratio that shuffled batches give, all channels moving together."""
MATTERS = 2.0
"""Times chance: samples that are a little alike, as from one patient or one day, are in every loader."""
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Order:
    """How batches differ from each other.

    Attributes
    ----------
    ratio : float
        The variance of the batches' means over that which as many random samples give: 1 where they were shuffled.
    batches : int
        Of one size.
    """

    ratio: float
    batches: int

    @property
    def shows(self) -> bool:
        """Whether chance cannot have made it."""
        return self.ratio > max(MATTERS, _chance(self.batches - 1))

    def __str__(self) -> str:
        return (
            f"Batches differ from each other {brief(self.ratio, 2)} times as much as shuffled ones: where training "
            "took them in such an order, the moving average is that of the last of them"
        )


def order_of(means: Accumulator, size: int, mean_noise: Array, variance: Array) -> Order | None:
    """From the means of batches of ``size`` samples, and what one sample adds to the variance of a mean.

    None with few batches, or where nothing varies.
    """
    batches = int(np.max(means.count))
    known = (variance > 0) & (mean_noise > 0)
    if batches < FEWEST or size < 1 or not known.any():
        return None
    seen = np.sum((size * means.variance(1) / np.where(known, variance, 1))[known])
    chance = np.sum((mean_noise / np.where(known, variance, 1))[known])
    return Order(float(seen / chance), batches)


def _chance(freedom: int) -> float:
    """The ratio that chance hardly passes: chi-square over its degrees of freedom (Wilson and Hilferty, 1931)."""
    part = 2 / (9 * freedom)
    return float((1 - part + SURE * np.sqrt(part)) ** 3)
