"""Count, mean and M2 of a stream, mergeable: what recalibration adds up, on one machine or many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.errors import ArgumentError

from . import equations
from .ops import Moments, moments

__all__ = ["Accumulator", "merge_moments"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Accumulator:
    """Moments of everything seen so far.

    Attributes
    ----------
    count : float or array
        Counted elements of each channel.
    mean, m2 : array of float64
        The mean, and the sum of squared distances from it.
    """

    count: Any
    mean: Array
    m2: Array

    @classmethod
    def of(cls, x: ArrayLike, axis: int | tuple[int, ...] = -1, mask: ArrayLike | None = None) -> Accumulator:
        """Moments of one batch; see `batchnorm.moments` for the arguments."""
        return cls.from_moments(moments(x, axis, mask=mask))

    @classmethod
    def from_moments(cls, one: Moments) -> Accumulator:
        """What `batchnorm.moments` found of one batch, flattened to one axis."""
        return cls(one.count, one.mean.reshape(-1), one.variance.reshape(-1) * one.count)

    @classmethod
    def from_parts(cls, count: Any, high: ArrayLike, low: ArrayLike, variance: ArrayLike) -> Accumulator:
        """Moments that a framework computed in its own precision (`equations.moments`), flattened to one axis.

        The mean comes as two numbers, ``high + low``, and loses nothing when they are added here in float64.
        """
        mean = np.asarray(high, np.float64).reshape(-1) + np.asarray(low, np.float64).reshape(-1)
        counted = np.asarray(count).reshape(-1)
        number = int(counted[0]) if counted.size == 1 else counted.astype(np.float64)
        return cls(number, mean, np.asarray(variance, np.float64).reshape(-1) * number)

    def merge(self, other: Accumulator) -> Accumulator:
        """Moments of both together; exact up to rounding whatever the order."""
        if not np.any(self.count):
            return other
        if not np.any(other.count):
            return self
        empty = np.equal(self.count + other.count, 0)  # a channel that neither has counted, where each counts its own
        count = np.where(empty, 1, other.count) if np.any(empty) else other.count
        total, mean, m2 = equations.pooled(self.count, self.mean, self.m2, count, other.mean, other.m2)
        return Accumulator(np.where(empty, 0, total) if np.any(empty) else total, mean, m2)

    def variance(self, ddof: int) -> Array:
        """``m2 / (count - ddof)``; divisor count where that is not positive, 0 where nothing was counted."""
        return np.asarray(equations.sample_variance(np, self.m2 / np.maximum(self.count, 1), self.count, ddof))


def merge_moments(
    count1: float, mean1: ArrayLike, variance1: ArrayLike, count2: float, mean2: ArrayLike, variance2: ArrayLike
) -> tuple[float, Array, Array]:
    """Count, mean and variance of two samples together, from those of each.

    ``n = n1+n2; d = mean2-mean1; mean = mean1 + d*n2/n; variance = (n1*v1 + n2*v2 + d^2*n1*n2/n) / n``

    Parameters
    ----------
    count1, count2 : float
        Elements of each sample; not both 0.
    mean1, variance1, mean2, variance2 : array_like
        Means and variances (divisor count) of each sample, of one shape.

    Returns
    -------
    tuple of (float, array, array)
        Count, mean and variance (divisor count) of the union, in float64. The distance of the two means is part of
        that variance: averaging the variances loses it.

    Raises
    ------
    ArgumentError
        A negative count, or two counts of 0.

    Notes
    -----
    T. F. Chan, G. H. Golub and R. J. LeVeque, The American Statistician 37 (1983), section 3,
    doi:10.1080/00031305.1983.10483115. ``torch.optim.swa_utils.update_bn`` averages the variances instead.

    Examples
    --------
    >>> merge_moments(2, 0.0, 1.0, 2, 4.0, 1.0)
    (4, array(2.), array(5.))
    """
    if count1 < 0 or count2 < 0 or count1 + count2 == 0:
        raise ArgumentError(f"merge_moments: counts must be positive; got {count1} and {count2}.")
    a, b = (np.asarray(v, np.float64) for v in (mean1, mean2))
    m2_a, m2_b = (np.asarray(v, np.float64) * n for v, n in ((variance1, count1), (variance2, count2)))
    n, mean, m2 = equations.pooled(count1, a, m2_a, count2, b, m2_b)
    return n, np.asarray(mean), np.asarray(m2 / n)
