"""What one layer's stored numbers show by themselves, worst first.

Each sign is a small function of a record in `SIGNS`; the thresholds are named where they are used. `list` prints the
worst one of each layer, `explain` begins with the worst layer and the worst channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.equations import inv_std
from batchnorm.core.record import LayerRecord

from .numbers import brief, count, percent

__all__ = ["Scale", "Sign", "effective_scale", "epsilon_dominated", "initial_share", "signs_of", "worst_channels"]

Level = Literal["error", "warning", "note"]
RANK = {"error": 0, "warning": 1, "note": 2}

INITIAL_SHARE = 0.10
"""More than a tenth of the stored variance being the initial 1 moves outputs by 5 % and more."""
EPSILON_DOMINATED = 10.0
"""Below 10 epsilon the output's spread is off by 5 % and more."""
DOMINATED_SHARE = 0.25
"""A quarter of the channels below epsilon is a fault of the input's scale, a few are dead features."""
NEVER_VARIED = 1e-12
"""A variance of that fraction of the layer's median is rounding, not data."""
DEAD_GAMMA = 1e-3
"""Of the layer's 95th percentile; what passes such a channel is below the noise of half precision."""
LARGE_MEAN = 1e6
"""Of mean^2 to variance: from there scale-and-shift inference in float32 loses three digits."""


@dataclass(frozen=True, slots=True)
class Sign:
    """One thing that shows: how bad, which rule it belongs to, where, and in a short line what."""

    level: Level
    rule: str
    channels: tuple[int, ...]
    text: str


def signs_of(record: LayerRecord) -> tuple[Sign, ...]:
    """Every sign of one layer, worst first."""
    if record.moving_mean is None or record.moving_variance is None:
        return ()
    with np.errstate(all="ignore"):
        found = [sign for check in SIGNS if (sign := check(record)) is not None]
    return tuple(sorted(found, key=lambda sign: RANK[sign.level]))


def worst_channels(record: LayerRecord) -> tuple[int, ...]:
    """All channels, those with the worst signs first; within one sign, the smallest variance first."""
    severity = np.full(record.channels, len(RANK))
    for sign in reversed(signs_of(record)):
        severity[list(sign.channels)] = RANK[sign.level]
    variance = np.zeros(record.channels) if record.moving_variance is None else _wide(record.moving_variance)
    order = np.lexsort((np.arange(record.channels), np.nan_to_num(variance, nan=-1.0), severity))
    return tuple(int(c) for c in order)


def initial_share(record: LayerRecord) -> NDArray[np.float64] | None:
    """Per channel, the share of the stored variance that is still its initial value; None where it cannot be known."""
    weight = record.initial_weight
    if weight is None or record.moving_variance is None or record.initial_variance is None:
        return None
    with np.errstate(all="ignore"):
        return np.minimum(weight * record.initial_variance / _wide(record.moving_variance), 1.0)


def _non_finite(record: LayerRecord) -> Sign | None:
    named = {name: getattr(record, name) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    bad = {name: ~np.isfinite(_wide(values)) for name, values in named.items() if values is not None}
    names = [name for name, where in bad.items() if where.any()]
    where = np.logical_or.reduce(list(bad.values()))
    return _sign("error", "BN101", where, f"{' and '.join(names)} not finite in {{channels}}") if names else None


def _negative_variance(record: LayerRecord) -> Sign | None:
    return _sign("error", "BN102", _variance(record) < 0, "moving_variance below zero in {channels}")


def _never_updated(record: LayerRecord) -> Sign | None:
    if not record.untouched():
        return None
    every = np.ones(record.channels, bool)
    return _sign("note", "BN106", every, "statistics still their initial 0 and 1")


def _not_converged(record: LayerRecord) -> Sign | None:
    share, weight = initial_share(record), record.initial_weight
    if share is None or weight is None:
        return None
    where = _shows_initial(record, share, weight)
    if where.mean() < INITIAL_SHARE:
        return None
    return _sign("warning", "BN107", where, f"variance {percent(float(share.max()))} initial value")


def _shows_initial(record: LayerRecord, share: NDArray[np.float64], weight: float) -> NDArray[np.bool_]:
    # The mean moves by weight * mean/(1 - weight) once the initial 0 is taken out.
    mean, variance = _wide(record.moving_mean), _variance(record)
    moved = np.abs(mean) * weight / max(1 - weight, 1e-300)
    return (share > INITIAL_SHARE) | (moved > 0.1 * np.sqrt(variance + (record.epsilon or 0.0)))


def _epsilon_dominated(record: LayerRecord) -> Sign | None:
    if record.epsilon is None or record.epsilon <= 0:
        return None
    variance, constant = _variance(record), _constant(record)
    varied = ~constant & (variance >= 0)
    below = varied & (variance < record.epsilon)
    if varied.any() and below.sum() >= DOMINATED_SHARE * varied.sum():
        return _sign("warning", "BN103", below, "variance below epsilon in {channels}")
    near = varied & (variance < EPSILON_DOMINATED * record.epsilon)
    return _sign("note", "BN103", near, f"variance under {EPSILON_DOMINATED:g} epsilon in {{channels}}")


def _constant_channel(record: LayerRecord) -> Sign | None:
    return _sign("note", "BN110", _constant(record), "variance near 0, it never varied, in {channels}")


def _dead_gamma(record: LayerRecord) -> Sign | None:
    if record.gamma is None:
        return None
    size = np.abs(_wide(record.gamma))
    dead = (size < DEAD_GAMMA * np.percentile(size, 95)) | (size < 1e-6)
    level: Level = "warning" if dead.mean() >= 0.5 else "note"
    return _sign(level, "BN104", dead, "gamma near 0, only beta comes out, in {channels}")


def _cancellation(record: LayerRecord) -> Sign | None:
    ratio = _wide(record.moving_mean) ** 2 / (_variance(record) + (record.epsilon or 0.0))
    return _sign("warning", "BN109", ratio > LARGE_MEAN, "mean over 1000 standard deviations in {channels}")


def _epsilon_unknown(record: LayerRecord) -> Sign | None:
    if record.epsilon is not None:
        return None
    return Sign("note", "BN201", (), "epsilon unknown: pass --eps")


def _odd_epsilon(record: LayerRecord) -> Sign | None:
    if record.epsilon is None or 0 < record.epsilon <= 0.1:
        return None
    small = _variance(record) < 1e-5
    if record.epsilon > 0.1:
        return Sign("warning", "BN206", (), f"epsilon {brief(record.epsilon)} is no small constant")
    return _sign("warning", "BN206", small, f"epsilon {brief(record.epsilon)} with variance near 0 in {{channels}}")


SIGNS: tuple[Callable[[LayerRecord], Sign | None], ...] = (
    _non_finite,
    _negative_variance,
    _not_converged,
    _never_updated,
    _epsilon_dominated,
    _odd_epsilon,
    _cancellation,
    _dead_gamma,
    _constant_channel,
    _epsilon_unknown,
)


def _sign(level: Level, rule: str, where: NDArray[np.bool_], text: str) -> Sign | None:
    channels = tuple(int(c) for c in np.flatnonzero(where))
    return Sign(level, rule, channels, text.format(channels=_channels(channels, len(where)))) if channels else None


def _channels(channels: Sequence[int], total: int) -> str:
    if len(channels) == total:
        return "every channel" if total > 1 else "its channel"
    if len(channels) == 1:
        return f"channel {channels[0]}"
    return f"{len(channels)} of {count(total, 'channel')}"


def _wide(values: Any) -> NDArray[np.float64]:
    return np.asarray(values).astype(np.float64)


def _variance(record: LayerRecord) -> NDArray[np.float64]:
    return _wide(record.moving_variance)


def _constant(record: LayerRecord) -> NDArray[np.bool_]:
    mean, variance = _wide(record.moving_mean), _variance(record)
    finite = variance[np.isfinite(variance)]
    median = float(np.median(finite)) if finite.size else 0.0
    return (variance >= 0) & ((variance < NEVER_VARIED * median) | (variance < (6e-8 * mean) ** 2))


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
        scale = inv_std(np, _variance(record), record.epsilon)
        if record.gamma is not None:
            scale = np.abs(_wide(record.gamma)) * scale
        return Scale(float(np.min(scale)), float(np.median(scale)), float(np.max(scale)))


def epsilon_dominated(record: LayerRecord) -> int | None:
    """Channels whose variance is under ten epsilon; None where it cannot be known."""
    if record.moving_variance is None or record.epsilon is None:
        return None
    return int(np.sum(_variance(record) < EPSILON_DOMINATED * record.epsilon))
