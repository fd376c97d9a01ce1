"""From a channel's sums to its statistics, its coefficients and the moving average: float64, one channel at a time.

The kernels add ``d = x - shift`` and ``d*d``; here `equations.moments` ends: ``mean = shift + sum(d)/n``,
``variance = sum(d*d)/n - (sum(d)/n)**2``. The subtraction costs digits where the shift is far from the mean, so the
sums are taken again, around the mean, where ``(mean - shift)**2 > 16 variance``.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

import math

import numpy as np
from numba import njit

from .block import (
    BETA,
    CHANNELS,
    CORRECTION,
    COUNT,
    DECAY,
    EPSILON,
    GAMMA,
    GUARD,
    MEAN,
    MOVING_DOUBLE,
    MOVING_MEAN,
    MOVING_VARIANCE,
    SKIPPED,
    VARIANCE,
    WORK,
)
from .intrinsics import get_double, get_float, get_int, get_wide, put_double, put_float, put_int, put_wide, rounded

__all__ = ["coefficients", "settled", "update_moving"]

AGAIN = 16.0
"""Squared standard deviations between shift and mean from which the sums are taken again: the variance then loses less
than a factor of 17 of its accuracy, and one channel in 16,000 of normal data is summed twice."""


@njit(error_model="numpy")
def settled(block, channel, shift, total, squares):
    """Store mean and variance. 0: done; 1: sum again around the stored mean; 2: again, in float64."""
    n = get_int(block, COUNT)
    distance = total / n
    spread = squares / n
    variance = spread - distance * distance
    variance = 0.0 if variance < 0.0 else variance
    put_double(get_int(block, MEAN), channel, shift + distance)
    put_double(get_int(block, VARIANCE), channel, variance)
    if spread == math.inf:
        return 2
    return 1 if distance * distance > AGAIN * variance else 0


@njit(error_model="numpy")
def coefficients(block, spec, channel):
    """``high, scale, shift`` of ``y = (x - high)*scale + shift``, where ``high + low`` is the mean.

    `equations.normalized`, with the low part of the mean in the addend: one float32 cannot hold the mean of N(1e6, 1).
    """
    channels = get_int(block, CHANNELS)
    mean = get_double(get_int(block, MEAN), channel)
    variance = get_double(get_int(block, VARIANCE), channel)
    gamma, beta, work = get_int(block, GAMMA), get_int(block, BETA), get_int(block, WORK)
    scale = 1.0 / math.sqrt(variance + get_double(block, EPSILON))
    if gamma != 0:
        scale *= get_wide(spec, gamma, channel)
    high = rounded(spec, mean)
    low = mean - high
    shift = -low * scale
    if beta != 0:
        shift += get_wide(spec, beta, channel)
    put_wide(spec, work, channel, high)
    put_wide(spec, work, channels + channel, scale)
    put_wide(spec, work, 2 * channels + channel, shift)


@njit(error_model="numpy")
def update_moving(block, channel):
    """`equations.decayed` of the moving statistics, in their own type; the guard of `training.update`."""
    moving_mean, moving_variance = get_int(block, MOVING_MEAN), get_int(block, MOVING_VARIANCE)
    if moving_mean == 0 or get_int(block, COUNT) < 2:
        return
    mean = get_double(get_int(block, MEAN), channel)
    variance = get_double(get_int(block, VARIANCE), channel) * get_double(block, CORRECTION)
    decay = get_double(block, DECAY)
    if get_int(block, MOVING_DOUBLE) != 0:
        if _kept_out(block, channel, mean, variance):
            return
        put_double(moving_mean, channel, decay * get_double(moving_mean, channel) + (1.0 - decay) * mean)
        put_double(moving_variance, channel, decay * get_double(moving_variance, channel) + (1.0 - decay) * variance)
        return
    single_mean, single_variance = np.float32(mean), np.float32(variance)
    if _kept_out(block, channel, single_mean, single_variance):
        return
    kept, taken = np.float32(decay), np.float32(1.0 - decay)
    put_float(moving_mean, channel, kept * get_float(moving_mean, channel) + taken * single_mean)
    put_float(moving_variance, channel, kept * get_float(moving_variance, channel) + taken * single_variance)


@njit(error_model="numpy")
def _kept_out(block, channel, mean, variance):
    if get_int(block, GUARD) == 0 or (math.isfinite(mean) and math.isfinite(variance)):
        return False
    skipped = get_int(block, SKIPPED)
    if skipped != 0:
        put_int(skipped, channel, get_int(skipped, channel) + 1)
    return True
