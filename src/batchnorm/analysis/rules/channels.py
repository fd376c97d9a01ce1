"""The channels of a layer: which are small, constant or dead, and how a sentence names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.numbers import count
from batchnorm.core.equations import inv_std
from batchnorm.core.record import LayerRecord

__all__ = [
    "DEAD_GAMMA", "EPSILON_DOMINATED", "Mask", "constant", "dead", "held", "indices", "initial_share",
    "initially", "mean", "named", "near_epsilon", "numbers", "scale", "some", "variance", "wide",
]  # fmt: skip

EPSILON_DOMINATED = 10.0
"""Below 10 epsilon the output's spread is off by 5 % and more."""
NEVER_VARIED = 1e-12
"""A variance of that fraction of the layer's median is rounding, not data."""
ROUNDING = 6e-8
"""Half a unit in the last place of float32: a spread of that fraction of the mean is rounding."""
DEAD_GAMMA = 1e-3
"""Of the layer's 95th percentile; what passes such a channel is below the noise of half precision."""
NO_GAMMA = 1e-6
"""Below it a gamma is 0 whatever the others are: after the nearest convolution's weights nothing of it shows."""
LARGE_GAMMA = 10.0
"""No usual gamma is larger: beside one that exploded, the others are not dead."""
MOST_NAMED = 4
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def wide(values: Any) -> Array:
    """In float64."""
    return np.asarray(values).astype(np.float64)


def mean(record: LayerRecord) -> Array:
    """The moving mean in float64."""
    return wide(record.moving_mean)


def variance(record: LayerRecord) -> Array:
    """The moving variance in float64."""
    return wide(record.moving_variance)


def held(record: LayerRecord) -> bool:
    """Whether the file holds both moving statistics."""
    return record.moving_mean is not None and record.moving_variance is not None


def constant(record: LayerRecord) -> Mask:
    """Channels whose variance is rounding: they never varied."""
    spread = variance(record)
    finite = spread[np.isfinite(spread)]
    median = float(np.median(finite)) if finite.size else 0.0
    with np.errstate(all="ignore"):
        rounding = (ROUNDING * mean(record)) ** 2
        return (spread >= 0) & ((spread <= NEVER_VARIED * median) | (spread < rounding))


def dead(record: LayerRecord) -> Mask:
    """Channels whose gamma is next to nothing beside the others."""
    if record.gamma is None:
        return np.zeros(record.channels, bool)
    size = np.abs(wide(record.gamma))
    usual = min(float(np.percentile(size, 95)), LARGE_GAMMA)
    return (size < DEAD_GAMMA * usual) | (size < NO_GAMMA)


def near_epsilon(record: LayerRecord) -> Mask:
    """Channels that varied, but less than ten epsilon."""
    spread = variance(record)
    if record.epsilon is None or record.epsilon <= 0:
        return np.zeros(record.channels, bool)
    return ~constant(record) & (spread >= 0) & (spread < EPSILON_DOMINATED * record.epsilon)


def scale(record: LayerRecord, epsilon: float) -> Array:
    """``abs(gamma) / sqrt(moving_variance + epsilon)``."""
    with np.errstate(all="ignore"):
        found = inv_std(np, variance(record), record.epsilon if record.epsilon is not None else epsilon)
        return found if record.gamma is None else np.abs(wide(record.gamma)) * found


def initial_share(record: LayerRecord) -> Array | None:
    """Per channel, the share of the stored variance that is still its initial value; None where it cannot be known."""
    weight = record.initial_weight
    if weight is None or record.moving_variance is None or record.initial_variance is None:
        return None
    with np.errstate(all="ignore"):
        return np.minimum(weight * record.initial_variance / variance(record), 1.0)


def initially(record: LayerRecord) -> str:
    """``mean 0 and variance 1``."""
    variance = 1.0 if record.initial_variance is None else record.initial_variance
    return f"mean {record.initial_mean or 0.0:g} and variance {variance:g}"


def indices(where: Mask) -> tuple[int, ...]:
    """The numbers of the channels that are set."""
    return tuple(int(c) for c in np.flatnonzero(where))


def some(channels: Sequence[int], total: int) -> str:
    """``every channel``, ``channel 3``, ``5 of 64 channels``: for a table."""
    if len(channels) == total:
        return "every channel" if total > 1 else "its channel"
    if len(channels) == 1:
        return f"channel {channels[0]}"
    return f"{len(channels)} of {count(total, 'channel')}"


def named(channels: Sequence[int], total: int) -> str:
    """The same with their numbers: ``5 of 64 channels (0, 3, 9, 12, ...)``."""
    if len(channels) == total or len(channels) == 1:
        return some(channels, total)
    shown = ", ".join(map(str, channels[:MOST_NAMED])) + (", ..." if len(channels) > MOST_NAMED else "")
    return f"{some(channels, total)} ({shown})"


def numbers(values: Array, channels: Sequence[int], most: int = 64) -> list[float]:
    """The values of some channels, for evidence: at most so many."""
    return [float(values[c]) for c in channels[:most]]
