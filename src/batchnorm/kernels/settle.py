"""From a channel's sums to its statistics, its coefficients and the moving average: float64, one channel at a time.

The kernels add ``d = x - shift`` and ``d*d``; here `equations.moments` ends: ``mean = shift + sum(d)/n``,
``variance = sum(d*d)/n - (sum(d)/n)**2``. The subtraction costs digits where the shift is far from the mean, so the
sums are taken again, around the mean, where ``(mean - shift)**2 > variance``.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from .block import (
    BETA,
    BETA_GRAD,
    CORRECTION,
    COUNT,
    DECAY,
    DOUBLE,
    ELEMENT,
    EPSILON,
    GAMMA,
    GAMMA_GRAD,
    GRAD_SCALE,
    GRAD_SHIFT,
    GRAD_SLOPE,
    GUARD,
    MEAN,
    MOVING_DOUBLE,
    MOVING_MEAN,
    MOVING_VARIANCE,
    PITCH,
    SKIPPED,
    VARIANCE,
    WORK,
)
from .intrinsics import get_double, get_float, get_half, get_int, get_short, put_double, put_float, put_int
from .per_channel import choose, like, root

__all__ = [
    "AGAIN",
    "coefficients",
    "get_element",
    "get_wide",
    "gradient_coefficients",
    "gradient_terms",
    "moments_from",
    "put_wide",
    "scale_and_shift",
    "settled",
    "update_moving",
]

AGAIN = 1.0
"""Squared standard deviations between shift and mean from which the sums are taken again: up to there the subtraction
costs the variance at most one bit."""


@njit(error_model="numpy")
def get_wide(block, address, index):
    """A number of the arithmetic's type, as float64."""
    return get_double(address, index) if get_int(block, DOUBLE) != 0 else np.float64(get_float(address, index))


@njit(error_model="numpy")
def put_wide(block, address, index, value):
    """Write it, rounded."""
    if get_int(block, DOUBLE) != 0:
        put_double(address, index, value)
    else:
        put_float(address, index, np.float32(value))


@njit(error_model="numpy")
def rounded(block, value):
    """A float64 rounded to the arithmetic's type."""
    return value if get_int(block, DOUBLE) != 0 else np.float64(np.float32(value))


@njit(error_model="numpy")
def get_element(block, address, index):
    """An element of a tensor, as float64."""
    kind = get_int(block, ELEMENT)
    if kind == 0:
        return np.float64(get_float(address, index))
    if kind == 1:
        return get_double(address, index)
    return np.float64(get_short(address, index) if kind == 2 else get_half(address, index))


# -- the equations: of float64, or of vectors of them, a channel a lane ------------------------------------------------


@njit(error_model="numpy")
def moments_from(shift, total, squares, n) -> Any:
    """Mean and variance; the mean's distance from the shift, squared, and the mean square."""
    distance, spread = total / n, squares / n
    variance = spread - distance * distance
    nothing = like(variance, 0.0)
    return shift + distance, choose(variance < nothing, nothing, variance), distance * distance, spread


@njit(error_model="numpy")
def scale_and_shift(mean, high, variance, gamma, beta, epsilon) -> Any:
    """Of ``y = (x - high)*scale + shift``, where ``high + low`` is the mean.

    `equations.normalized`, with the low part of the mean in the addend: one float32 cannot hold the mean of N(1e6, 1).
    """
    scale = like(mean, 1.0) / root(variance + epsilon) * gamma
    return scale, beta - (mean - high) * scale


@njit(error_model="numpy")
def gradient_terms(mean, high, variance, gamma, epsilon, total, along, n) -> Any:
    """The gradient of gamma, and ``scale, slope, shift`` of ``dx = scale*g + slope*(x - high) + shift``.

    `equations.parameter_gradients` and `equations.input_gradient` with the terms in x and in 1 gathered; ``total`` is
    ``sum(g)``, ``along`` is ``sum(g * (x - high))``.
    """
    inverse, low = like(mean, 1.0) / root(variance + epsilon), mean - high
    of_gamma = inverse * (along - low * total)
    scale = inverse * gamma
    return (
        of_gamma,
        scale,
        like(mean, 0.0) - scale * inverse * of_gamma / n,
        scale * (inverse * low * of_gamma - total) / n,
    )


# -- a channel of a block ----------------------------------------------------------------------------------------------


@njit(error_model="numpy")
def settled(block, channel, shift, total, squares):
    """Store mean and variance. 0: done; 1: sum again around the stored mean; 2: again, in float64."""
    mean, variance, distance, spread = moments_from(shift, total, squares, float(get_int(block, COUNT)))
    put_double(get_int(block, MEAN), channel, mean)
    put_double(get_int(block, VARIANCE), channel, variance)
    if spread == math.inf:
        return 2
    return 1 if distance > AGAIN * variance else 0


@njit(error_model="numpy")
def _multiplier(block, channel):
    gamma = get_int(block, GAMMA)
    return get_wide(block, gamma, channel) if gamma != 0 else 1.0


@njit(error_model="numpy")
def coefficients(block, channel):
    """``high, scale, shift`` of a channel: `scale_and_shift`."""
    pitch, beta, work = get_int(block, PITCH), get_int(block, BETA), get_int(block, WORK)
    mean = get_double(get_int(block, MEAN), channel)
    variance = get_double(get_int(block, VARIANCE), channel)
    addend = get_wide(block, beta, channel) if beta != 0 else 0.0
    high = rounded(block, mean)
    scale, shift = scale_and_shift(
        mean, high, variance, _multiplier(block, channel), addend, get_double(block, EPSILON)
    )
    put_wide(block, work, channel, high)
    put_wide(block, work, pitch + channel, scale)
    put_wide(block, work, 2 * pitch + channel, shift)


@njit(error_model="numpy")
def gradient_coefficients(block, channel, total, along):
    """Gradients of beta and gamma, and the coefficients of the way back: `gradient_terms`."""
    pitch, work = get_int(block, PITCH), get_int(block, WORK)
    mean, n = get_double(get_int(block, MEAN), channel), float(get_int(block, COUNT))
    variance, gamma = get_double(get_int(block, VARIANCE), channel), _multiplier(block, channel)
    of_gamma, scale, slope, shift = gradient_terms(
        mean, rounded(block, mean), variance, gamma, get_double(block, EPSILON), total, along, n
    )
    put_double(get_int(block, BETA_GRAD), channel, total)
    put_double(get_int(block, GAMMA_GRAD), channel, of_gamma)
    put_wide(block, work, GRAD_SCALE * pitch + channel, scale)
    put_wide(block, work, GRAD_SLOPE * pitch + channel, slope)
    put_wide(block, work, GRAD_SHIFT * pitch + channel, shift)


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
