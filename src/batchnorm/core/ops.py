"""Batch normalization on NumPy arrays: any axis, any rank, masks, float16, bfloat16, float32 and float64.

Plan first (shapes, `plan`), then apply (data, `equations`). Half precision and float32 are computed in float64, so the
one rounding that shows is the last one; float64 is computed in float64 around the first element (docs/NUMERICS.md).
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
    """Count, mean and variance of each channel over all other axes.

    ``mean = sum(x)/count; variance = sum((x - mean)^2)/count``

    Parameters
    ----------
    x : array_like
        Any rank from 1; integers count as float64.
    axis : int or tuple of int
        The axis or axes that hold the channels; all others are reduced.
    mask : array_like of bool, optional
        True where an element counts: the shape of ``x`` less its channel axes, or anything that broadcasts to the rank
        of ``x`` with 1 on the channel axes. None counts everything.

    Returns
    -------
    Moments
        In float64 whatever the input. The variance is never negative; a constant channel has exactly 0.

    Raises
    ------
    ArgumentError
        An axis outside the input, a mask that does not broadcast, no counted element in some channel.
    TypeError
        Complex or non-numeric input.

    Notes
    -----
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
    """Inference: ``gamma * (x - mean) / sqrt(variance + epsilon) + beta`` with the statistics given.

    Parameters
    ----------
    x : array_like
        Any rank from 1.
    mean, variance : array_like
        Statistics of each channel, of the channel axes' shape.
    gamma, beta : array_like, optional
        Multiplier and addend of each channel; None is 1 and 0.
    epsilon : float
        Added to the variance inside the root; at least 0.
    axis : int or tuple of int
        The axis or axes that hold the channels.

    Returns
    -------
    array
        The shape and dtype of ``x`` (float64 for integers). The mean is subtracted first, so the error does not grow
        with mean/sd as it does in ``x * scale + shift``.

    Raises
    ------
    ArgumentError
        A parameter whose shape is not that of the channel axes; a negative epsilon.

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
    """Training: normalise with the batch's own mean and variance.

    ``y = gamma * (x - batch_mean) / sqrt(batch_variance + epsilon) + beta``

    Parameters
    ----------
    x, gamma, beta, epsilon, axis
        As in `normalize`.
    mask : array_like of bool, optional
        As in `moments`: which elements count in the statistics. Masked positions are normalised like any other.

    Returns
    -------
    y : array
        The shape and dtype of ``x`` (float64 for integers). A constant channel gives exactly beta.
    moments : Moments
        The batch's statistics, in float64.

    Raises
    ------
    ArgumentError, TypeError
        As in `moments` and `normalize`.

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
    """Gradients of training-mode batch normalization, in closed form.

    ``dx = gamma*inv_std*(grad - (sum(grad) + x_hat*sum(grad*x_hat))/count); dgamma = sum(grad*x_hat);
    dbeta = sum(grad)``; at masked positions the part that goes through the statistics is absent.

    Parameters
    ----------
    grad : array_like
        Gradient of the loss with respect to the output; the shape of ``x``.
    x, gamma, epsilon, axis, mask
        What `batch_norm` was given.

    Returns
    -------
    Gradients
        Without a mask each channel of the input gradient sums to 0 and is orthogonal to x_hat up to
        ``epsilon * inv_std**2``.

    Raises
    ------
    ArgumentError, TypeError
        As in `batch_norm`; a gradient of another shape than ``x``.

    Notes
    -----
    S. Ioffe and C. Szegedy, arXiv:1502.03167, section 3, with the three terms of its chain rule collected.

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
