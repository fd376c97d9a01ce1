"""The constants of a layer's inference equation, and how far the output moves when one of them is another."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.equations import inv_std, normalized
from batchnorm.core.record import LayerRecord

__all__ = ["ROLES", "SPREAD", "Constants", "distance", "largest_change", "whole_change"]

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
SPREAD = 3.0
"""Standard deviations either side of a channel's mean within which inputs are taken to lie."""
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """What ``gamma * (x - moving_mean) / sqrt(moving_variance + epsilon) + beta`` is made of, in float64.

    The arrays have the shape ``(channels,)``; what a record does not hold counts as 1 (gamma, variance) or 0.
    """

    gamma: Array
    beta: Array
    moving_mean: Array
    moving_variance: Array
    epsilon: float

    @classmethod
    def of(cls, record: LayerRecord, epsilon: float) -> Constants:
        """The constants of a record; ``epsilon`` where it holds none."""
        return cls(
            gamma=_wide(record.gamma, 1.0, record.channels),
            beta=_wide(record.beta, 0.0, record.channels),
            moving_mean=_wide(record.moving_mean, 0.0, record.channels),
            moving_variance=_wide(record.moving_variance, 1.0, record.channels),
            epsilon=epsilon if record.epsilon is None else record.epsilon,
        )

    def replace(self, **changes: Any) -> Constants:
        """A copy with other constants."""
        return dataclasses.replace(self, **changes)

    def along(self, rank: int, axis: int) -> Constants:
        """A copy whose arrays broadcast over an input of ``rank`` axes with the channels on ``axis``."""
        shape = tuple(-1 if i == axis % rank else 1 for i in range(rank))
        return self.replace(**{role: getattr(self, role).reshape(shape) for role in ROLES})

    def output(self, x: Array) -> Array:
        """The output for inputs of shape ``(n, channels)``, or any that the arrays broadcast over."""
        with np.errstate(all="ignore"):  # a damaged variance gives NaN, as in every engine
            return normalized(np, x, self.moving_mean, self.moving_variance, self.gamma, self.beta, self.epsilon)

    def scale(self) -> Array:
        """``gamma / sqrt(moving_variance + epsilon)``."""
        with np.errstate(all="ignore"):
            return self.gamma * inv_std(np, self.moving_variance, self.epsilon)

    def ends(self, other: Constants) -> Array:
        """The inputs `SPREAD` standard deviations either side of each mean, shape ``(2, channels)``.

        Where a statistic of this layer is no finite number, or a variance is negative, the other layer's stands in.
        """
        mean = _first(np.isfinite, self.moving_mean, other.moving_mean, 0.0)
        variance = _first(_usable, self.moving_variance, other.moving_variance, 1.0)
        reach = SPREAD * np.sqrt(variance)
        return np.stack([mean - reach, mean + reach])


def largest_change(a: Constants, b: Constants) -> Array:
    """How far the output of each channel moves at most when the constants of ``a`` become those of ``b``.

    The maximum of ``abs(y_b(x) - y_a(x))`` over every x from `SPREAD` (3) standard deviations below the channel's
    moving mean to as many above it, both of ``a``. Both outputs are affine in x, so the maximum lies at an end. NaN
    where just one of the outputs is NaN; 0 where both are.
    """
    x = a.ends(b)
    return distance(a.output(x), b.output(x)).max(axis=0)


def whole_change(change: Array) -> float:
    """The largest of all channels; NaN if one is."""
    return float(np.max(change, initial=0.0))


def distance(first: Array, second: Array) -> Array:
    """``abs(second - first)``; 0 where both are the same infinity or both NaN."""
    with np.errstate(invalid="ignore"):
        same = (first == second) | (np.isnan(first) & np.isnan(second))
        return np.where(same, 0.0, np.abs(second - first))


def _wide(values: NDArray[Any] | None, absent: float, channels: int) -> Array:
    return np.full(channels, absent) if values is None else values.astype(np.float64)


def _usable(variance: Array) -> NDArray[np.bool_]:
    return np.isfinite(variance) & (variance >= 0)


def _first(good: Any, values: Array, others: Array, last: float) -> Array:
    return np.where(good(values), values, np.where(good(others), others, last))
