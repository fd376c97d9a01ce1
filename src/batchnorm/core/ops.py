"""Batch normalization on NumPy arrays: any axis, any rank, masks, float16, bfloat16, float32 and float64.

Plan first (shapes, `plan`), then apply (data, `equations`). Half precision and float32 are computed in float64, so the
one rounding that shows is the last one; float64 is computed in float64 around the first element (docs/NUMERICS.md).
The public functions of these names stand in `batchnorm.kernels.on_arrays`, and come here for what no kernel takes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.errors import ArgumentError

from . import equations
from .arrays import QUIET, as_float, parameter, prepare, result_dtype
from .plan import Plan

__all__ = ["Gradients", "Moments", "as_float", "batch_norm", "batch_norm_grad", "check_epsilon", "moments", "normalize"]

Array = NDArray[Any]
Axis = int | tuple[int, ...]


class Moments(NamedTuple):
    """Moments of a batch, per channel, in float64.

    ``count`` is an int, the same for every channel; ``mean`` and ``variance`` (divisor count) have the shape of the
    channel axes.
    """

    count: Any
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


class Gradients(NamedTuple):
    """Gradients of a loss: of the input (its shape and dtype), of gamma and of beta (channels' shape, float64)."""

    x: Array
    gamma: NDArray[np.float64]
    beta: NDArray[np.float64]


@np.errstate(**QUIET)
def moments(x: ArrayLike, axis: Axis = -1, *, mask: ArrayLike | None = None) -> Moments:
    """Count, mean and variance of each channel over all other axes; arguments and errors: `batchnorm.moments`.

    Corrected two-pass around the first counted element, computed in float64; never E[x^2] - E[x]^2, which gives
    24, -8 or 0 for a variance of 1 at mean 1e4 in float32. Bounds: docs/NUMERICS.md.

    Examples
    --------
    >>> moments([[1.0], [5.0]])
    Moments(count=2, mean=array([3.]), variance=array([4.]))
    """
    wide, how, counted = prepare(x, axis, mask, "moments")
    batch = _batch_moments(wide, how, counted, "moments")
    return _public(batch, how)


@np.errstate(**QUIET)
def normalize(
    x: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    epsilon: float,
    axis: Axis = -1,
) -> Array:
    """Inference, with the statistics given; arguments and errors: `batchnorm.normalize`.

    The mean is subtracted first, so the error does not grow with mean/sd as it does in ``x * scale + shift``.

    Examples
    --------
    >>> normalize([[1.0], [5.0]], [0.05885344], [0.91000736], [0.80644524], epsilon=1e-3).round(6).ravel()
    array([0.795191, 4.174858])
    """
    wide, how, _ = prepare(x, axis, None, "normalize")
    check_epsilon(epsilon, "normalize")
    m, v, g, b = _parameters(how, "normalize", mean=mean, variance=variance, gamma=gamma, beta=beta)
    return equations.normalized(np, wide, m, v, g, b, epsilon).astype(result_dtype(x))


@np.errstate(**QUIET)
def batch_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    epsilon: float,
    axis: Axis = -1,
    mask: ArrayLike | None = None,
) -> tuple[Array, Moments]:
    """Training, with the batch's own mean and variance; arguments and errors: `batchnorm.batch_norm`.

    Examples
    --------
    >>> y, batch = batch_norm([[1.0], [5.0]], epsilon=1e-3)
    >>> y.round(5).ravel()
    array([-0.99988,  0.99988])
    """
    wide, how, counted = prepare(x, axis, mask, "batch_norm")
    check_epsilon(epsilon, "batch_norm")
    g, b = _parameters(how, "batch_norm", gamma=gamma, beta=beta)
    batch = _batch_moments(wide, how, counted, "batch_norm")
    x_hat = equations.standardize(wide, batch.high, batch.low, equations.inv_std(np, batch.variance, epsilon))
    return equations.affine(x_hat, g, b).astype(result_dtype(x)), _public(batch, how)


@np.errstate(**QUIET)
def batch_norm_grad(
    grad: ArrayLike,
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    epsilon: float,
    axis: Axis = -1,
    mask: ArrayLike | None = None,
) -> Gradients:
    """Gradients of training, in closed form; arguments and errors: `batchnorm.batch_norm_grad`.

    Examples
    --------
    >>> batch_norm_grad([[1.0], [0.0]], [[1.0], [5.0]], epsilon=1.0).beta
    array([1.])
    """
    wide, how, counted = prepare(x, axis, mask, "batch_norm_grad")
    check_epsilon(epsilon, "batch_norm_grad")
    upstream = as_float(grad, "batch_norm_grad").astype(np.float64)
    if upstream.shape != wide.shape:
        raise ArgumentError(f"batch_norm_grad: grad must have the shape of x, {wide.shape}; got {upstream.shape}.")
    (g,) = _parameters(how, "batch_norm_grad", gamma=gamma)
    batch = _batch_moments(wide, how, counted, "batch_norm_grad")
    inverse = equations.inv_std(np, batch.variance, epsilon)
    x_hat = equations.standardize(wide, batch.high, batch.low, inverse)
    sums = equations.parameter_gradients(np, upstream, x_hat, how.reduced, counted)
    scale = inverse if g is None else inverse * g
    dx = equations.input_gradient(np, upstream, x_hat, scale, sums, batch.count, counted)
    dbeta, dgamma = (s.reshape(how.channel_shape) for s in sums)
    return Gradients(dx.astype(result_dtype(x)), dgamma, dbeta)


def _batch_moments(wide: Array, how: Plan, counted: Array | None, who: str) -> equations.Moments:
    count = how.count if counted is None else int(np.sum(counted))
    if count == 0:
        reason = "every position is masked" if how.count else "it is empty"
        raise ArgumentError(f"{who}: no element to take statistics of in an input of shape {wide.shape}: {reason}.")
    return equations.moments(np, wide, how.reduced, count, counted)


def _public(batch: equations.Moments, how: Plan) -> Moments:
    return Moments(batch.count, batch.mean.reshape(how.channel_shape), batch.variance.reshape(how.channel_shape))


def _parameters(how: Plan, who: str, **given: ArrayLike | None) -> list[Any]:
    return [None if value is None else parameter(how, who, name, value) for name, value in given.items()]


def check_epsilon(epsilon: float, who: str) -> None:
    """Refuse an epsilon under 0, or NaN."""
    if not epsilon >= 0:
        raise ArgumentError(f"{who}: epsilon must be at least 0; got {epsilon}.")
