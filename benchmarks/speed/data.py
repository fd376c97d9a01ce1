"""What the engines are given, and what is right, computed in float64."""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np

from .cases import Case

EPSILON = 1e-3
BLOCK = 1_048_583  # a prime: the tiled numbers repeat along no axis
NEAR_KINK = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""Closer to the kink of ReLU than this, rounding decides which side a value is on: not compared."""


class Data(NamedTuple):
    """Arrays in memory as the case lies: N(1, 1) as input, N(0, 1) as gradient and residual; and a number a channel."""

    x: np.ndarray
    grad: np.ndarray
    residual: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def make(case: Case) -> Data:
    """The same numbers in every process."""
    rng = np.random.default_rng(20)
    dtype = np.dtype(getattr(ml_dtypes, case.dtype, case.dtype))
    block = rng.standard_normal(BLOCK, np.float32)

    def tiled(shift: float, start: int) -> np.ndarray:
        return np.resize(np.roll(block + np.float32(shift), start).astype(dtype), case.physical)

    c = case.channels
    per_channel = [rng.standard_normal(c), rng.standard_normal(c), rng.standard_normal(c), rng.random(c) + 0.5]
    return Data(tiled(1, 0), tiled(0, 1), tiled(0, 2), *(each.astype(np.float32) for each in per_channel))


def error(case: Case, data: Data, got: np.ndarray) -> float:
    """The largest error of the output (or the input's gradient) over the largest exact value, in some channels."""
    worst = 0.0
    for channel in sorted({0, case.channels // 2, case.channels - 1}):
        wanted, near = _exact(case, data, channel)
        here = _channel(case, got, channel)
        off = np.where(near, 0.0, np.abs(here - wanted))
        worst = max(worst, float(off.max() / np.abs(wanted).max()))
    return worst


def _channel(case: Case, array: np.ndarray, channel: int) -> np.ndarray:
    return np.take(array, channel, axis=case.axis).astype(np.float64)


def _exact(case: Case, data: Data, channel: int) -> tuple[np.ndarray, np.ndarray]:
    x, grad, residual = (_channel(case, each, channel) for each in (data.x, data.grad, data.residual))
    gamma, beta, mean, variance = (float(each[channel]) for each in data[3:])
    if case.operation != "inference":
        mean = x.mean()
        variance = np.square(x - mean).mean()
    inverse = 1 / np.sqrt(variance + EPSILON)
    x_hat = (x - mean) * inverse
    z = gamma * x_hat + beta + (residual if case.fused == "add+relu" else 0.0)
    near = (np.abs(z) < NEAR_KINK[case.dtype]) & (case.fused != "plain")
    if case.operation != "backward":
        return z if case.fused == "plain" else np.maximum(z, 0.0), near
    upstream = grad if case.fused == "plain" else np.where(z > 0, grad, 0.0)
    return gamma * inverse * (upstream - upstream.mean() - x_hat * (upstream * x_hat).mean()), near
