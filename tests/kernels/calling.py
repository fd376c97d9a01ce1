"""Calls of the kernels' door on NumPy arrays, what they should give, and the bounds they are held to."""

import numpy as np

from batchnorm.core import reference
from batchnorm.core.dtypes import unit_roundoff
from batchnorm.kernels import cpu

view = cpu.view_of
EPSILON = 1e-3
SLOPES = {
    "identity": np.ones_like,
    "relu": lambda z: 1.0 * (z > 0),
    "relu6": lambda z: 1.0 * ((z > 0) & (z < 6)),
    "leaky_relu": lambda z: np.where(z > 0, 1.0, 0.01),
    "silu": lambda z: 1 / (1 + np.exp(-z)) * (1 + z * (1 - 1 / (1 + np.exp(-z)))),
}
APPLIED = {
    "identity": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "relu6": lambda z: np.clip(z, 0, 6),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "silu": lambda z: z / (1 + np.exp(-z)),
}


def wide(dtype):
    """The type of the arithmetic, and of gamma and beta."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def parameters(rng, channels, dtype=np.float32):
    return tuple(rng.standard_normal(channels).astype(wide(dtype)) for _ in range(2))


def views(**given):
    return {name: None if one is None else view(one) for name, one in given.items()}


def forward(x, gamma=None, beta=None, *, axis=1, residual=None, out=None, moving=None, **options):
    """Output, mean and variance of `cpu.forward`."""
    y = np.full_like(x, np.nan) if out is None else out
    mean, variance = np.full(x.shape[axis], np.nan), np.full(x.shape[axis], np.nan)
    given = views(gamma=gamma, beta=beta, residual=residual)
    places = [view(one) for one in (x, y, mean, variance)]
    cpu.forward(*places, axis=axis, epsilon=EPSILON, moving=moving, **given, **options)
    return y, mean, variance


def inference(x, mean, variance, gamma=None, beta=None, *, axis=1, residual=None, **options):
    """Output of `cpu.inference`."""
    y = np.full_like(x, np.nan)
    given = views(gamma=gamma, beta=beta, residual=residual)
    cpu.inference(*[view(one) for one in (x, y, mean, variance)], axis=axis, epsilon=EPSILON, **given, **options)
    return y


def backward(grad, x, mean, variance, gamma=None, beta=None, *, axis=1, residual=None, out=None, **options):
    """Gradients of x, gamma, beta and the residual of `cpu.backward`."""
    dx = np.full_like(x, np.nan) if out is None else out
    dr = None if residual is None else np.full_like(x, np.nan)
    sums = np.full((2, x.shape[axis]), np.nan)
    given = views(gamma=gamma, beta=beta, residual=residual, residual_out=dr)
    places = [view(one) for one in (grad, x, dx, mean, variance, sums[0], sums[1])]
    cpu.backward(*places, axis=axis, epsilon=EPSILON, **given, **options)
    return dx, sums[0], sums[1], dr


def per_channel(values, x, axis):
    """A number a channel, so that it broadcasts over x, in float64."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return np.asarray(values, np.float64).reshape(shape)


def flat(mask):
    """As the reference takes it."""
    return None if mask is None else mask.reshape(-1)


def check_forward(x, axis, gamma, beta, got, *, mask=None, residual=None, activation="identity"):
    """Hold output and statistics to the reference, at any mean."""
    y, mean, variance = got
    dtype = x.dtype.name
    u = unit_roundoff(wide(dtype))
    wanted_mean, wanted_variance = reference.moments(x, axis=axis, mask=flat(mask))
    sd = np.sqrt(wanted_variance)
    # Each difference rounds once; a lane adds at most 64 of either sign before float64 takes over, and the errors of
    # the lanes average out: 3u of a standard deviation for the mean, 5u (3e-7 in float32) for the variance.
    np.testing.assert_array_less(np.abs(mean - wanted_mean), 3 * u * sd + 2.0**-51 * np.abs(wanted_mean) + 1e-300)
    np.testing.assert_allclose(variance, wanted_variance, rtol=5 * u if u > 1e-10 else 1e-13, atol=1e-300)
    z = reference.training(x, gamma, beta, epsilon=EPSILON, axis=axis, mask=flat(mask))
    check_output(y, z, x, gamma, beta, axis, residual, activation)


def check_output(y, z, x, gamma, beta, axis, residual=None, activation="identity"):
    """Hold an output to the exact ``z`` before residual and activation.

    With u of the arithmetic: x - high, scale and shift round once each, the fused product once, and the low part of the
    mean and half of the variance's error add two more to x_hat: 6u of the terms' sizes. The residual adds one rounding,
    SiLU's exponential, sum and quotient six; then one rounding to the output's type.
    """
    g, b = per_channel(gamma, x, axis), per_channel(beta, x, axis)
    r = 0.0 if residual is None else residual.astype(np.float64)
    wanted = APPLIED[activation](z + r)
    u = max(unit_roundoff(wide(x.dtype)), 2.0**-53)
    terms = np.abs(z - b) + np.abs(g) + np.abs(b) + np.abs(r)
    bound = (12 if activation == "silu" else 6) * u * terms + unit_roundoff(x.dtype.name) * np.abs(wanted)
    assert np.all(np.abs(y.astype(np.float64) - wanted) <= bound)


def check_backward(grad, x, axis, gamma, beta, got, *, mask=None, residual=None, activation="identity"):
    """Hold the gradients to the reference's closed form, fed with the gradient before the activation."""
    dx, dgamma, dbeta, dr = got
    z = reference.training(x, gamma, beta, epsilon=EPSILON, axis=axis, mask=flat(mask))
    z = z if residual is None else z + residual.astype(np.float64)
    g = grad.astype(np.float64) * SLOPES[activation](z)
    wanted, wanted_gamma, wanted_beta = reference.backward(g, x, gamma, epsilon=EPSILON, axis=axis, mask=flat(mask))
    u = unit_roundoff(wide(x.dtype))
    # A lane adds at most 64 numbers, each of two roundings (ten with SiLU's slope), before float64 takes over.
    sizes = reference.backward(np.abs(g), np.abs(x.astype(np.float64)), gamma, epsilon=EPSILON, axis=axis)[2]
    slack = (66 + 10 * (activation == "silu")) * u * sizes
    assert np.all(np.abs(dbeta - wanted_beta) <= slack)
    assert np.all(np.abs(dgamma - wanted_gamma) <= 8 * slack)  # products with x_hat, which stays under 8 here
    # Elements at a kink, where rounding decides which side they are on, say nothing.
    clear = (np.abs(z) > 1e-5) & (np.abs(z - 6) > 1e-5) if activation != "identity" else np.ones(x.shape, bool)
    scale = np.abs(per_channel(gamma, x, axis)) / np.sqrt(per_channel(_variance(x, axis, mask), x, axis) + EPSILON)
    # The promise is 1e-6 of the largest term: the terms cancel, wholly where a channel has one element.
    tolerance = (1e-6 if u > 1e-10 else 1e-14) * np.max(np.abs(g) * scale)
    tolerance = tolerance + 2 * unit_roundoff(x.dtype.name) * np.abs(wanted)
    # In half precision the second pass reads the gradient before the activation as it was rounded for the residual.
    tolerance = tolerance + (0 if residual is None else unit_roundoff(x.dtype.name) * np.abs(g) * scale)
    assert np.all((np.abs(dx.astype(np.float64) - wanted) <= tolerance)[clear])
    if dr is not None and activation != "identity":
        bound = 12 * u * (np.abs(grad.astype(np.float64)) * (1 + np.abs(z))) + unit_roundoff(x.dtype.name) * np.abs(g)
        assert np.all((np.abs(dr.astype(np.float64) - g) <= bound)[clear])


def _variance(x, axis, mask):
    return reference.moments(x, axis=axis, mask=flat(mask))[1]
