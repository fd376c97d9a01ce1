"""How far training and inference part in one layer, what of it is sampling, and which causes share it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.equations import debias
from batchnorm.core.record import LayerRecord

from . import channels as of
from .measured import Measured

__all__ = ["FEWEST", "LEAVES", "SHOWS", "Effect", "counted", "debiased", "effect", "left_in", "shares"]

SHOWS = 0.3
"""Root mean square over channels of the shift and the stretch, in standard deviations. Of 24 trainings those that lost
at most 2 points of accuracy in inference had at most .27, those that lost 13 and more at least .46."""
SIGNIFICANT = 9.0
"""Times what sampling alone gives on average: three standard deviations where all channels move together."""
FEWEST = 16
"""Samples: a dozen prove nothing, as the noise itself is estimated from them."""
FEWEST_FITTED, LEAVES, CLOSE, ALONE = 4, 0.1, 0.15, 4.0
"""Channels from which one weight is fitted; the part of the gap that it may leave; the standard deviations, of which
first layers of nets that were trained too briefly leave .09 and an input off by a factor of 3 leaves .3; and how much
better it must be than the initial value alone.
"""
USUAL_BATCH = 32
"""Where the batch size of the training is not known."""
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Effect:
    """The gap of one layer.

    Attributes
    ----------
    size : float
        Root mean square over channels of ((mean - moving_mean)/s, sqrt(moving_variance + epsilon)/s - 1), s the root of
        variance + epsilon, less what sampling gives.
    noise : float
        The mean square that sampling alone gives, of the data and of the moving average.
    significant : bool
        Whether sampling cannot have made it.
    needed : int or None
        Samples after which a gap of `SHOWS` would be significant; None where no number is enough.
    """

    size: float
    noise: float
    significant: bool
    needed: int | None


def counted(record: LayerRecord, seen: Measured) -> Measured:
    """What a layer was fed, without the padding that the data tell of where its statistics are nearer to that.

    Statistics that leave padding out are right, also where the layer itself counts it; those that have it are BN406's.
    """
    if seen.padding is None or seen.padding.source != "data":
        return seen
    data = seen.padding.data
    without = replace(seen, count=int(np.max(data.count)), mean=data.mean, variance=data.variance(0))
    distances = [_raw(record, each, *_stored(record))[0] for each in (without, seen)]
    return without if distances[0] < distances[1] else seen


def effect(record: LayerRecord, seen: Measured) -> Effect:
    """The gap between a record's statistics and what its layer is fed."""
    raw, finite = _raw(record, seen, *_stored(record))
    ours, theirs = _noise(record, seen)
    data = ours / max(seen.samples, 1)
    noise = data + theirs
    if not finite:
        return Effect(math.inf, noise, seen.samples >= FEWEST, None)
    room = SHOWS**2 / SIGNIFICANT - theirs
    needed = max(FEWEST, math.ceil(ours / room)) if room > 0 else None
    significant = seen.samples >= FEWEST and raw > SIGNIFICANT * noise
    return Effect(math.sqrt(max(raw - noise, 0.0)), noise, significant, needed)


def _stored(record: LayerRecord) -> tuple[Array, Array]:
    return of.mean(record), of.variance(record)


def _raw(record: LayerRecord, seen: Measured, mean: Array, variance: Array) -> tuple[float, bool]:
    """Mean over channels of shift^2 + stretch^2."""
    epsilon = record.epsilon or 0.0
    with np.errstate(all="ignore"):
        s = np.sqrt(seen.variance + epsilon)
        shift = (seen.mean - mean) / s
        stretch = np.sqrt(variance + epsilon) / s - 1
        square = shift**2 + stretch**2
    # A channel that is constant here, with no epsilon to hold it, has no scale to measure in.
    square = square[~((s == 0) & (seen.mean == mean))]
    return (float(np.mean(square)) if square.size else 0.0), bool(np.all(np.isfinite(square)))


def _noise(record: LayerRecord, seen: Measured) -> tuple[float, float]:
    """What one sample gives, and what the moving average has of its own: (1-decay)/(1+decay) of a batch's noise."""
    one = _one_sample(record, seen)
    decay = record.decay if record.decay is not None and 0 <= record.decay < 1 else None
    if decay is None or record.averaging != "exponential":
        return one, 0.0
    return one, (1 - decay) / (1 + decay) * one / (seen.batch_size or USUAL_BATCH)


def _one_sample(record: LayerRecord, seen: Measured) -> float:
    epsilon = record.epsilon or 0.0
    with np.errstate(all="ignore"):
        square = seen.variance + epsilon
        ratio = np.minimum((np.maximum(of.variance(record), 0) + epsilon) / square, 4.0)
        each = seen.mean_noise / square + ratio / 4 * seen.variance_noise / square**2
    return float(np.mean(each[np.isfinite(each)])) if np.isfinite(each).any() else 0.0


def debiased(record: LayerRecord) -> LayerRecord:
    """The record without its initial value, where that is known and leaves no negative variance."""
    weight = record.initial_weight
    if weight is None or not 0 < weight < 1 or record.initial_mean is None or record.initial_variance is None:
        return record
    variance = debias(of.variance(record), record.initial_variance, weight)
    if np.any(variance < 0):
        return record
    return record.replace(moving_mean=debias(of.mean(record), record.initial_mean, weight), moving_variance=variance)


def shares(record: LayerRecord, seen: Measured) -> dict[str, float]:
    """How much of the gap each cause accounts for; they add up to 1.

    ``initial_value``: what is gone when the initial value is taken out; without a counter, what `left_in` explains.
    ``small_batch``: what batches of that size give
    by themselves, the moving average's sampling error and the variance between batches that none of them sees.
    ``divisor``: batch variances were divided by count and not by count - 1, which few elements show. ``epsilon``:
    always 0, as one and the same epsilon stands in both modes of a model. ``data_shift``: what is left.
    """
    total, finite = _raw(record, seen, *_stored(record))
    if not finite or total <= 0:
        return {"initial_value": 0.0, "data_shift": 1.0, "small_batch": 0.0, "epsilon": 0.0, "divisor": 0.0}
    initial = _initial(record, seen, total)
    rest = 1.0 - initial
    divisor = min(_divisor(record, seen) / total, rest)
    small = min(_small_batch(record, seen) / total, rest - divisor)
    return {
        "initial_value": initial,
        "data_shift": max(rest - small - divisor, 0.0),
        "small_batch": small,
        "epsilon": 0.0,
        "divisor": divisor,
    }


def _initial(record: LayerRecord, seen: Measured, total: float) -> float:
    if record.initial_weight is None:
        fitted = left_in(record, seen)
        return 0.0 if fitted is None else fitted[1]
    without, _ = _raw(record, seen, *_stored(debiased(record)))
    return min(max((total - without) / total, 0.0), 1.0)


def left_in(record: LayerRecord, seen: Measured) -> tuple[float, float] | None:
    """The weight of the initial value by the statistics themselves, where no counter tells, and its share of the gap.

    One number has to give the mean and the variance of every channel: ``stored = w*initial + (1 - w)*data``. None where
    that leaves more than a tenth of the gap or .15 standard deviations, or where the initial value alone, w = 1, would
    explain nearly as much: statistics that happen to be like it, of standardised input, look the same.
    """
    if record.averaging == "cumulative" or record.initial_mean is None or record.initial_variance is None:
        return None
    if record.channels < FEWEST_FITTED:
        return None
    weights = np.concatenate([np.geomspace(0.01, 0.5, 60), 1 - np.geomspace(0.5, 0.01, 60)[1:]])
    left = [_unexplained(record, seen, float(weight)) for weight in (0.0, *weights, 1.0)]
    best = int(np.argmin(left))
    if not 0 < best < len(left) - 1 or left[best] > min(LEAVES * left[0], left[-1] / ALONE, CLOSE**2):
        return None
    return float(weights[best - 1]), 1 - left[best] / left[0]


def _unexplained(record: LayerRecord, seen: Measured, weight: float) -> float:
    """Mean over channels of shift^2 + stretch^2 between what is stored and what the data and the initial value give."""
    epsilon = record.epsilon or 0.0
    with np.errstate(all="ignore"):
        s = np.sqrt(seen.variance + epsilon)
        mean = weight * (record.initial_mean or 0.0) + (1 - weight) * seen.mean
        variance = weight * (record.initial_variance or 0.0) + (1 - weight) * seen.variance
        stretch = (np.sqrt(of.variance(record) + epsilon) - np.sqrt(variance + epsilon)) / s
        square = ((of.mean(record) - mean) / s) ** 2 + stretch**2
    square = square[np.isfinite(square)]
    return float(np.mean(square)) if square.size else 0.0


def _small_batch(record: LayerRecord, seen: Measured) -> float:
    """The sampling error of the moving average, and the variance between batches that none of them sees."""
    if seen.batch_size is None:
        return 0.0
    count = _elements(seen)
    inside = np.maximum(seen.variance - seen.mean_noise / seen.batch_size, 0.0)
    if record.ddof == 1 and count > 1:
        inside = np.minimum(inside * count / (count - 1), seen.variance)
    return _noise(record, seen)[1] + max(_stretched(record, seen, inside) - _divisor(record, seen), 0.0)


def _divisor(record: LayerRecord, seen: Measured) -> float:
    """What a batch variance with divisor count is too small by, were all elements independent."""
    count = _elements(seen)
    if record.ddof != 0 or seen.batch_size is None or count < 1:
        return 0.0
    return _stretched(record, seen, seen.variance * (count - 1) / count)


def _elements(seen: Measured) -> float:
    """Elements a channel of one batch."""
    return (seen.batch_size or 0) * seen.count / max(seen.samples, 1)


def _stretched(record: LayerRecord, seen: Measured, variance: Array) -> float:
    epsilon = record.epsilon or 0.0
    with np.errstate(all="ignore"):
        stretch = np.sqrt((variance + epsilon) / (seen.variance + epsilon)) - 1
    finite = stretch[np.isfinite(stretch)]
    return float(np.mean(finite**2)) if finite.size else 0.0
