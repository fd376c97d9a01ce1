"""The float64 reference: slow, obvious, and the oracle of every test.

Each function spells one formula for a single channel as a Python loop over exactly rounded sums (`math.fsum`); the
helpers at the end lay arrays out by channel. With several axes the channels are counted in C order of those axes as
given; masks are flat, over the other axes. It shares no code with `equations`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["backward", "debias", "fold", "inference", "merge", "moments", "training", "update"]

Array = NDArray[np.float64]
Axis = int | tuple[int, ...]


def _moments(values: list[float]) -> tuple[float, float]:
    n = len(values)
    pivot = values[0]
    mean = math.fsum(v - pivot for v in values) / n
    return pivot + mean, math.fsum((v - pivot - mean) ** 2 for v in values) / n


def update(moving: float, batch: float, decay: float) -> float:
    """``decay * moving + (1 - decay) * batch``."""
    return decay * moving + (1 - decay) * batch


def debias(moving: float, initial: float, decay: float, updates: int) -> float:
    """``(moving - decay^t * initial) / (1 - decay^t)``."""
    return (moving - decay**updates * initial) / (1 - decay**updates)


def merge(n1: int, mean1: float, m2_1: float, n2: int, mean2: float, m2_2: float) -> tuple[int, float, float]:
    """Count, mean and M2 of two samples together."""
    n, d = n1 + n2, mean2 - mean1
    return n, mean1 + d * n2 / n, m2_1 + m2_2 + d * d * n1 * n2 / n


def fold(mean: float, variance: float, gamma: float, beta: float, epsilon: float) -> tuple[float, float]:
    """``scale`` and ``shift`` of the linear map that inference is."""
    scale = gamma / math.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def inference(
    x: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    *,
    epsilon: float,
    axis: Axis = -1,
) -> Array:
    """``gamma * (x - mean) / sqrt(variance + epsilon) + beta`` per channel, in float64."""
    by_channel, restore = _by_channel(x, axis)
    y = np.empty_like(by_channel)
    with np.errstate(invalid="ignore", divide="ignore"):  # a damaged variance gives NaN, as it does in every engine
        for c, values in enumerate(by_channel):
            g, b = _at(gamma, c, 1.0), _at(beta, c, 0.0)
            m, v = _at(mean, c, 0.0), _at(variance, c, 1.0)
            y[c] = g * (values - m) / np.sqrt(np.float64(v + epsilon)) + b
    return restore(y)


def moments(x: ArrayLike, *, axis: Axis = -1, mask: ArrayLike | None = None) -> tuple[Array, Array]:
    """Mean and variance (divisor count) of each channel over its counted elements."""
    by_channel, _ = _by_channel(x, axis)
    counted = _mask_row(mask, by_channel.shape[1])
    pairs = [_moments([float(v) for v, keep in zip(values, counted, strict=True) if keep]) for values in by_channel]
    return np.array([mean for mean, _ in pairs]), np.array([variance for _, variance in pairs])


def training(
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    *,
    epsilon: float,
    axis: Axis = -1,
    mask: ArrayLike | None = None,
) -> Array:
    """The same as `inference`, with each channel's own mean and variance."""
    by_channel, restore = _by_channel(x, axis)
    counted = _mask_row(mask, by_channel.shape[1])
    y = np.empty_like(by_channel)
    for c, values in enumerate(by_channel):
        x_hat = _x_hat(values, counted, epsilon)
        y[c] = [_at(gamma, c, 1.0) * h + _at(beta, c, 0.0) for h in x_hat]
    return restore(y)


def backward(
    grad: ArrayLike,
    x: ArrayLike,
    gamma: ArrayLike | None,
    *,
    epsilon: float,
    axis: Axis = -1,
    mask: ArrayLike | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of the input, gamma and beta in training, by the closed form, per channel."""
    rows, restore = _by_channel(x, axis)
    grads, _ = _by_channel(grad, axis)
    counted = _mask_row(mask, rows.shape[1])
    dx, dgamma, dbeta = np.empty_like(rows), np.empty(len(rows)), np.empty(len(rows))
    for c, (values, g) in enumerate(zip(rows, grads, strict=True)):
        x_hat = _x_hat(values, counted, epsilon)
        _, variance = _moments([float(v) for v, keep in zip(values, counted, strict=True) if keep])
        scale = _at(gamma, c, 1.0) / math.sqrt(variance + epsilon)
        dbeta[c] = math.fsum(g)
        dgamma[c] = math.fsum(gi * h for gi, h in zip(g, x_hat, strict=True))
        n = sum(counted)
        dx[c] = [
            scale * (gi - keep * (dbeta[c] + h * dgamma[c]) / n) for gi, h, keep in zip(g, x_hat, counted, strict=True)
        ]
    return restore(dx), dgamma, dbeta


def _x_hat(values: Array, counted: list[bool], epsilon: float) -> list[float]:
    kept = [float(v) for v, keep in zip(values, counted, strict=True) if keep]
    pivot = kept[0]
    low = math.fsum(v - pivot for v in kept) / len(kept)
    _, variance = _moments(kept)
    return [(float(v) - pivot - low) / math.sqrt(variance + epsilon) for v in values]


def _by_channel(x: ArrayLike, axis: Axis) -> tuple[Array, Any]:
    kept = (axis,) if isinstance(axis, int) else axis
    front = tuple(range(len(kept)))
    moved = np.moveaxis(np.asarray(x).astype(np.float64), kept, front)

    def restore(rows: Array) -> Array:
        return np.moveaxis(rows.reshape(moved.shape), front, kept)

    return moved.reshape(math.prod(moved.shape[: len(kept)]), -1), restore


def _mask_row(mask: ArrayLike | None, length: int) -> list[bool]:
    return [True] * length if mask is None else [bool(keep) for keep in np.asarray(mask).reshape(-1)]


def _at(values: ArrayLike | None, channel: int, absent: float) -> float:
    return absent if values is None else float(np.asarray(values).reshape(-1)[channel])
