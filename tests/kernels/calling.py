"""Calls of the kernels' door on NumPy arrays, and the bounds they are held to."""

import numpy as np

from batchnorm.core.dtypes import unit_roundoff
from batchnorm.kernels import cpu

view = cpu.view_of


def parameters(rng, channels, dtype=np.float32):
    return rng.standard_normal(channels).astype(dtype), rng.standard_normal(channels).astype(dtype)


def views(**given):
    return {name: None if one is None else view(one) for name, one in given.items()}


def forward(x, gamma=None, beta=None, *, axis=1, epsilon=1e-3, residual=None, out=None, **options):
    """Output, mean and variance of `cpu.forward`."""
    y = np.full_like(x, np.nan, order="K") if out is None else out
    mean, variance = np.full(x.shape[axis], np.nan), np.full(x.shape[axis], np.nan)
    given = views(gamma=gamma, beta=beta, residual=residual)
    cpu.forward(view(x), view(y), view(mean), view(variance), axis=axis, epsilon=epsilon, **given, **options)
    return y, mean, variance


def inference(x, mean, variance, gamma=None, beta=None, *, axis=1, epsilon=1e-3, residual=None, **options):
    """Output of `cpu.inference`."""
    y = np.full_like(x, np.nan, order="K")
    given = views(gamma=gamma, beta=beta, residual=residual)
    cpu.inference(view(x), view(y), view(mean), view(variance), axis=axis, epsilon=epsilon, **given, **options)
    return y


def output_bound(y, x_hat, gamma, beta, dtype):
    """How far an output may be from the exactly computed one.

    With u of the arithmetic: x - high, scale and shift round once each, the fused product once, and the low part of the
    mean and half of the variance's error add two more to x_hat: 6u of the terms' sizes. Then one rounding to the type.
    """
    u = unit_roundoff("float64" if dtype == "float64" else "float32")
    return 6 * u * (np.abs(gamma * x_hat) + np.abs(gamma) + np.abs(beta)) + unit_roundoff(dtype) * np.abs(y)


def per_channel(values, x, axis):
    """A number a channel, so that it broadcasts over x, in float64."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return np.asarray(values, np.float64).reshape(shape)
