"""Small arrays: one compiled call from NumPy's arrays to NumPy's arrays, in float64 throughout.

At this size the arithmetic costs less than deciding how to do it. The equations are `equations.moments` (corrected
two-pass around the first element) and `equations.normalized`, so the bounds are those of `core.ops`. The input is
``outer x channels x inner`` numbers in C order, flat; an absent gamma or beta is an array of length 0.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

import math

from numba import njit

from .caching import CACHE

__all__ = ["apply", "train"]


MEAN, VARIANCE, HIGH, LOW, SCALE = range(5)
"""Rows of what is known of each channel; the caller keeps the first two."""


@njit(cache=CACHE, nogil=True, error_model="numpy")
def train(x, gamma, beta, y, rows, channels, inner, epsilon):
    """Output, and ``rows``."""
    count = x.size // channels
    if inner == 1:
        _moments_of_columns(x, rows, channels, count)
    else:
        for c in range(channels):
            _moments_of_planes(x, rows, c, channels, inner, count)
    for c in range(channels):
        low = rows[LOW, c] / count
        variance = rows[VARIANCE, c] / count - low * low
        rows[LOW, c], rows[VARIANCE, c] = low, 0.0 if variance < 0.0 else variance
        rows[MEAN, c] = rows[HIGH, c] + low
    _write(x, gamma, beta, y, rows, channels, inner, epsilon)


@njit(cache=CACHE, nogil=True, error_model="numpy")
def apply(x, mean, variance, gamma, beta, y, rows, channels, inner, epsilon):
    """Output, with mean and variance given."""
    for c in range(channels):
        rows[HIGH, c], rows[VARIANCE, c], rows[LOW, c] = mean[c], variance[c], 0.0
    _write(x, gamma, beta, y, rows, channels, inner, epsilon)


@njit(error_model="numpy")
def _moments_of_columns(x, rows, channels, count):
    for c in range(channels):
        rows[HIGH, c], rows[VARIANCE, c], rows[LOW, c] = 0.0, 0.0, 0.0
    for n in range(1, count):
        for c in range(channels):
            rows[HIGH, c] += x[n * channels + c] - float(x[c])
    for c in range(channels):
        rows[HIGH, c] = x[c] + rows[HIGH, c] / count
    for n in range(count):
        for c in range(channels):
            d = x[n * channels + c] - rows[HIGH, c]
            rows[LOW, c] += d
            rows[VARIANCE, c] += d * d


@njit(error_model="numpy")
def _moments_of_planes(x, rows, c, channels, inner, count):
    # Four sums in turn: an addition takes as long as four of them can begin.
    step, first = channels * inner, float(x[c * inner])
    a0, a1, a2, a3 = 0.0, 0.0, 0.0, 0.0
    for start in range(c * inner, x.size, step):
        for i in range(start, start + inner):
            a0, a1, a2, a3 = a1, a2, a3, a0 + (x[i] - first)
    high = first + ((a0 + a1) + (a2 + a3)) / count
    a0, a1, a2, a3 = 0.0, 0.0, 0.0, 0.0
    q0, q1, q2, q3 = 0.0, 0.0, 0.0, 0.0
    for start in range(c * inner, x.size, step):
        for i in range(start, start + inner):
            d = x[i] - high
            a0, a1, a2, a3 = a1, a2, a3, a0 + d
            q0, q1, q2, q3 = q1, q2, q3, q0 + d * d
    rows[HIGH, c], rows[VARIANCE, c], rows[LOW, c] = high, (q0 + q1) + (q2 + q3), (a0 + a1) + (a2 + a3)


@njit(error_model="numpy")
def _write(x, gamma, beta, y, rows, channels, inner, epsilon):
    """``(x - high - low)*scale + beta``."""
    for c in range(channels):
        scale = 1.0 / math.sqrt(rows[VARIANCE, c] + epsilon)
        rows[SCALE, c] = scale * gamma[c] if gamma.size else scale
    step = channels * inner
    if inner > 1:
        for c in range(channels):
            high, low, scale, shift = rows[HIGH, c], rows[LOW, c], rows[SCALE, c], beta[c] if beta.size else 0.0
            for start in range(c * inner, x.size, step):
                for i in range(start, start + inner):
                    y[i] = (x[i] - high - low) * scale + shift
    elif beta.size:
        for start in range(0, x.size, step):
            for c in range(channels):
                y[start + c] = (x[start + c] - rows[HIGH, c] - rows[LOW, c]) * rows[SCALE, c] + beta[c]
    else:
        for start in range(0, x.size, step):
            for c in range(channels):
                y[start + c] = (x[start + c] - rows[HIGH, c] - rows[LOW, c]) * rows[SCALE, c]
