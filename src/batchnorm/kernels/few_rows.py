"""A matrix of few rows, whole, on one thread: forward, inference and the way back, a vector of channels at a time.

Sums, statistics, moving averages and output of a vector of adjacent channels follow each other without leaving the
registers: at this size the other way's steps from phase to phase, and its statistics channel by channel, take three
times as long as the data. The equations are those of `settle`; sums are taken around a shift as in `forward_last`, the
mean of some rows, and again around the mean where that was far.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

import math
from typing import Any

from numba import njit

from . import block as at
from .activations import activate, before_activation
from .block import CHANNELS, COUNT, GRAD, LENGTH, MEAN, RESIDUAL, RESIDUAL_GRAD, VARIANCE, WORK, X, Y
from .intrinsics import get_double, get_int, has_residual, is_double, lanes
from .memory import load, load_some, store, store_some
from .per_channel import (
    all_true,
    any_true,
    doubled,
    like,
    load_double_some,
    load_wide_some,
    singled,
    store_double_some,
    store_wide_some,
    zeros,
)
from .settle import AGAIN, get_element, gradient_terms, moments_from, put_wide, scale_and_shift, update_moving
from .vectors import add_to, fma, splat
from .walk_last import in_double

__all__ = ["backward", "inference", "training"]

FLUSH = 64
"""Rows that are added up in the arithmetic's type, then in float64."""
SAMPLES = 32
"""Rows, at most, whose mean becomes the shift."""


def training(_part, _parts, block, spec):
    """Output, statistics and moving statistics."""
    channels, n = get_int(block, CHANNELS), lanes(spec)
    for channel in range(0, channels, n):
        some = min(n, channels - channel)
        mean, variance = _statistics(block, channel, some, spec)
        store_double_some(spec, get_int(block, MEAN), channel, mean, some)
        store_double_some(spec, get_int(block, VARIANCE), channel, variance, some)
        _follow(block, channel, some, mean, variance, spec)
        _write(block, channel, some, mean, variance, spec)


def inference(_part, _parts, block, spec):
    """The output, from given statistics."""
    channels, n = get_int(block, CHANNELS), lanes(spec)
    for channel in range(0, channels, n):
        some = min(n, channels - channel)
        mean, variance = _given(block, channel, some, spec)
        _write(block, channel, some, mean, variance, spec)


def backward(_part, _parts, block, spec):
    """The gradients."""
    channels, n = get_int(block, CHANNELS), lanes(spec)
    for channel in range(0, channels, n):
        _back(block, channel, min(n, channels - channel), spec)


# -- memory ------------------------------------------------------------------------------------------------------------


@njit(error_model="numpy")
def _step(block, tensor):
    """From a row to the next: narrow rows were laid together to wide ones, which follow each other without a gap."""
    channels = get_int(block, CHANNELS)
    return get_int(block, tensor + 2) if get_int(block, LENGTH) == channels else channels


@njit(error_model="numpy")
def _read(spec, tensor, index, some):
    return load(spec, tensor, index) if some == lanes(spec) else load_some(spec, tensor, index, some)


@njit(error_model="numpy")
def _put(spec, tensor, index, value, some):
    if some == lanes(spec):
        store(spec, tensor, index, value)
    else:
        store_some(spec, tensor, index, value, some)


@njit(error_model="numpy")
def _given(block, channel, some, spec) -> Any:
    """Mean and variance."""
    mean = load_double_some(spec, get_int(block, MEAN), channel, some)
    return mean, load_double_some(spec, get_int(block, VARIANCE), channel, some)


@njit(error_model="numpy")
def _parameter(block, slot, channel, some, absent, spec):
    """Gamma or beta, in float64."""
    address = get_int(block, slot)
    if address == 0:
        return like(zeros(spec), absent)
    return doubled(spec, load_wide_some(spec, address, channel, some))


# -- forward -----------------------------------------------------------------------------------------------------------


@njit(error_model="numpy")
def _statistics(block, channel, some, spec):
    """Mean and variance of some channels."""
    n = like(zeros(spec), float(get_int(block, COUNT)))
    shift = _middle(block, channel, some, spec)
    total, squares = _sums(block, channel, some, shift, spec)
    mean, variance, distance, spread = moments_from(doubled(spec, shift), total, squares, n)
    if any_true(distance > like(n, AGAIN) * variance):
        shift = singled(spec, mean)
        total, squares = _sums(block, channel, some, shift, spec)
        mean, variance, distance, spread = moments_from(doubled(spec, shift), total, squares, n)
    if all_true(spread - spread == zeros(spec)):
        return mean, variance
    store_double_some(spec, get_int(block, MEAN), channel, mean, some)
    store_double_some(spec, get_int(block, VARIANCE), channel, variance, some)
    for c in range(channel, channel + some):
        if not math.isfinite(get_double(get_int(block, VARIANCE), c)):
            put_wide(block, get_int(block, WORK), c, get_element(block, get_int(block, X), c))
            in_double(block, c)
    return _given(block, channel, some, spec)


@njit(error_model="numpy")
def _middle(block, channel, some, spec):
    """The mean of some rows, exactly their value where they are equal."""
    x, step, rows = get_int(block, X), _step(block, X), get_int(block, COUNT)
    first, total, count = _read(spec, x, channel, some), splat(spec, 0.0), min(rows, SAMPLES)
    for k in range(1, count):
        total = total + (_read(spec, x, channel + (rows * k // count) * step, some) - first)
    return first + total / splat(spec, float(count))


@njit(error_model="numpy")
def _sums(block, channel, some, shift, spec):
    """Of ``x - shift`` and of its square, in float64."""
    x, step, rows = get_int(block, X), _step(block, X), get_int(block, COUNT)
    total, squares, nothing = zeros(spec), zeros(spec), splat(spec, 0.0)
    index, row = channel, 0
    while row < rows:
        stop = min(rows, row + FLUSH)
        s0, s1, q0, q1 = nothing, nothing, nothing, nothing
        s2, s3, q2, q3 = nothing, nothing, nothing, nothing
        while row + 4 <= stop:
            d0, d1 = _read(spec, x, index, some) - shift, _read(spec, x, index + step, some) - shift
            index += 2 * step
            d2, d3 = _read(spec, x, index, some) - shift, _read(spec, x, index + step, some) - shift
            index += 2 * step
            s0, s1, s2, s3 = s0 + d0, s1 + d1, s2 + d2, s3 + d3
            q0, q1, q2, q3 = fma(d0, d0, q0), fma(d1, d1, q1), fma(d2, d2, q2), fma(d3, d3, q3)
            row += 4
        while row < stop:
            d0 = _read(spec, x, index, some) - shift
            s0, q0 = s0 + d0, fma(d0, d0, q0)
            index, row = index + step, row + 1
        total = add_to(total, (s0 + s1) + (s2 + s3))
        squares = add_to(squares, (q0 + q1) + (q2 + q3))
    return total, squares


@njit(error_model="numpy")
def _follow(block, channel, some, mean, variance, spec):
    """`settle.update_moving` of some channels; one by one where their types differ or the guard has something to do."""
    moving_mean, moving_variance = get_int(block, at.MOVING_MEAN), get_int(block, at.MOVING_VARIANCE)
    if moving_mean == 0 or get_int(block, COUNT) < 2:
        return
    new_mean = singled(spec, mean)
    new_variance = singled(spec, variance * like(variance, get_double(block, at.CORRECTION)))
    finite = (new_mean - new_mean) + (new_variance - new_variance) == splat(spec, 0.0)
    if (get_int(block, at.MOVING_DOUBLE) != 0) != is_double(spec) or (
        get_int(block, at.GUARD) != 0 and not all_true(finite)
    ):
        for c in range(channel, channel + some):
            update_moving(block, c)
        return
    kept, taken = splat(spec, get_double(block, at.DECAY)), splat(spec, 1.0 - get_double(block, at.DECAY))
    old_mean = load_wide_some(spec, moving_mean, channel, some)
    old_variance = load_wide_some(spec, moving_variance, channel, some)
    store_wide_some(spec, moving_mean, channel, kept * old_mean + taken * new_mean, some)
    store_wide_some(spec, moving_variance, channel, kept * old_variance + taken * new_variance, some)


@njit(error_model="numpy")
def _write(block, channel, some, mean, variance, spec):
    """``activation((x - high)*scale + shift + residual)``."""
    x, x_step, y, y_step = get_int(block, X), _step(block, X), get_int(block, Y), _step(block, Y)
    r, r_step = get_int(block, RESIDUAL), _step(block, RESIDUAL)
    high, scale, shift = _forward(block, channel, some, mean, variance, spec)
    i, j, k = channel, channel, channel
    for _ in range(get_int(block, COUNT)):
        z = fma(_read(spec, x, i, some) - high, scale, shift)
        if has_residual(spec):
            z = z + _read(spec, r, k, some)
        _put(spec, y, j, activate(spec, z), some)
        i, j, k = i + x_step, j + y_step, k + r_step


@njit(error_model="numpy")
def _forward(block, channel, some, mean, variance, spec):
    """``high, scale, shift`` of the way forward."""
    gamma = _parameter(block, at.GAMMA, channel, some, 1.0, spec)
    beta = _parameter(block, at.BETA, channel, some, 0.0, spec)
    high = singled(spec, mean)
    epsilon = like(mean, get_double(block, at.EPSILON))
    scale, shift = scale_and_shift(mean, doubled(spec, high), variance, gamma, beta, epsilon)
    return high, singled(spec, scale), singled(spec, shift)


# -- the way back ------------------------------------------------------------------------------------------------------


@njit(error_model="numpy")
def _back(block, channel, some, spec):
    mean, variance = _given(block, channel, some, spec)
    how = _forward(block, channel, some, mean, variance, spec)
    total, along = _gradient_sums(block, channel, some, how, spec)
    gamma = _parameter(block, at.GAMMA, channel, some, 1.0, spec)
    epsilon, n = like(mean, get_double(block, at.EPSILON)), like(mean, float(get_int(block, COUNT)))
    of_gamma, scale, slope, shift = gradient_terms(
        mean, doubled(spec, how[0]), variance, gamma, epsilon, total, along, n
    )
    store_double_some(spec, get_int(block, at.BETA_GRAD), channel, total, some)
    store_double_some(spec, get_int(block, at.GAMMA_GRAD), channel, of_gamma, some)
    _write_gradient(block, channel, some, how, singled(spec, scale), singled(spec, slope), singled(spec, shift), spec)


@njit(error_model="numpy")
def _gradient_sums(block, channel, some, how, spec):
    """Sums of the gradient before the activation, and of it times ``x - high``; the residual's gradient is written."""
    rows, nothing = get_int(block, COUNT), splat(spec, 0.0)
    places = channel, channel, channel, channel
    total, along, row = zeros(spec), zeros(spec), 0
    while row < rows:
        stop = min(rows, row + FLUSH)
        s0, s1, p0, p1 = nothing, nothing, nothing, nothing
        while row + 2 <= stop:
            u0, d0, places = _one(block, places, some, how, spec)
            u1, d1, places = _one(block, places, some, how, spec)
            s0, s1, p0, p1 = s0 + u0, s1 + u1, fma(u0, d0, p0), fma(u1, d1, p1)
            row += 2
        if row < stop:
            u0, d0, places = _one(block, places, some, how, spec)
            s0, p0, row = s0 + u0, fma(u0, d0, p0), row + 1
        total, along = add_to(total, s0 + s1), add_to(along, p0 + p1)
    return total, along


@njit(error_model="numpy")
def _one(block, places, some, how, spec) -> Any:
    """The gradient before the activation, and ``x - high``, of a row; then where the next one's are."""
    i, j, k, m = places
    high, scale, shift = how
    d, u = _read(spec, get_int(block, X), i, some) - high, _read(spec, get_int(block, GRAD), j, some)
    if has_residual(spec):
        u = before_activation(spec, u, d, scale, shift, _read(spec, get_int(block, RESIDUAL), k, some))
        _put(spec, get_int(block, RESIDUAL_GRAD), m, u, some)
        k, m = k + _step(block, RESIDUAL), m + _step(block, RESIDUAL_GRAD)
    else:
        u = before_activation(spec, u, d, scale, shift, d)
    return u, d, (i + _step(block, X), j + _step(block, GRAD), k, m)


@njit(error_model="numpy")
def _write_gradient(block, channel, some, how, along_g, along_x, constant, spec):
    """``scale*g + slope*(x - high) + shift``; the gradient alone where the statistics were given."""
    source = RESIDUAL_GRAD if has_residual(spec) else GRAD
    x, x_step, y, y_step = get_int(block, X), _step(block, X), get_int(block, Y), _step(block, Y)
    g, g_step, trained = get_int(block, source), _step(block, source), get_int(block, at.TRAINING) != 0
    high, scale, shift = how
    i, j, k = channel, channel, channel
    for _ in range(get_int(block, COUNT)):
        d, u = _read(spec, x, i, some) - high, _read(spec, g, k, some)
        if not has_residual(spec):
            u = before_activation(spec, u, d, scale, shift, d)
        dx = fma(u, along_g, fma(d, along_x, constant)) if trained else u * along_g
        _put(spec, y, j, dx, some)
        i, j, k = i + x_step, j + y_step, k + g_step
