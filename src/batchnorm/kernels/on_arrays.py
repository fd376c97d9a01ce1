"""`batchnorm.core.ops` on NumPy arrays, by the compiled kernels where Numba is installed.

The table of `dispatch` decides: small arrays in float64 in one call (`tiny`), larger ones by the kernels of `cpu`, and
`core.ops` for the rest: no Numba, integers, several channel axes, long double, and values whose squares overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.core import ops
from batchnorm.core.arrays import as_axis, as_float, full_mask, parameter, result_dtype
from batchnorm.core.ops import Gradients, Moments
from batchnorm.core.plan import Plan, plan
from batchnorm.errors import ArgumentError

from . import cpu
from .operands import Target, checked_out, readable, vector

__all__ = ["Call", "batch_norm", "batch_norm_grad", "compiled_moments", "moments", "normalize"]

Array = NDArray[Any]
Axis = int | tuple[int, ...]
TINY = 8192
"""Elements up to which `tiny` takes a call: beyond, the kernels' vectors win over their longer way in."""
HUGE = 1e72
"""A variance beyond it: differences or scales leave float32's range, and `core.ops` computes in float64."""
FLOAT32 = np.dtype(np.float32)
ABSENT = np.empty(0, np.float32)
_new: Any = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


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
    Never E[x^2] - E[x]^2, which gives 24, -8 or 0 for a variance of 1 at mean 1e4 in float32. Bounds, for small arrays
    (float64 throughout) and for those the compiled kernels take: docs/NUMERICS.md.

    Examples
    --------
    >>> moments([[1.0], [5.0]])
    Moments(count=2, mean=array([3.]), variance=array([4.]))
    """
    found = compiled_moments(x, axis, mask)
    return ops.moments(x, axis, mask=mask) if found is None else found


def compiled_moments(x: ArrayLike, axis: Axis, mask: ArrayLike | None, most: int | None = None) -> Moments | None:
    """`moments` by the compiled kernels, on ``most`` threads at most; None where `core.ops` should take the call."""
    fast = Call.of(x, axis, mask, "moments")
    if fast is None:
        return None
    values = fast.x if cpu.fits(cpu.view_of(fast.x), axis=fast.axis, mask=fast.mask is not None) else fast.x.copy("C")
    mean, variance = np.empty((2, fast.channels))
    views = [cpu.view_of(one) for one in (values, mean, variance)]
    count = cpu.moments(*views, axis=fast.axis, mask=fast.mask, most=most)
    return None if fast.failed(count, variance) else Moments(count, mean, variance)


def normalize(
    x: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    epsilon: float,
    axis: Axis = -1,
    out: Array | None = None,
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
    out : array, optional
        Takes the result; of its shape and dtype. It may be ``x``, or overlap it in any way.

    Returns
    -------
    array
        The shape and dtype of ``x`` (float64 for integers). The mean is subtracted first, so the error does not grow
        with mean/sd as it does in ``x * scale + shift``.

    Raises
    ------
    ArgumentError
        A parameter whose shape is not that of the channel axes; a negative epsilon; an ``out`` that cannot take the
        result.

    Examples
    --------
    >>> normalize([[1.0], [5.0]], [0.05885344], [0.91000736], [0.80644524], epsilon=1e-3).round(6).ravel()
    array([0.795191, 4.174858])
    """
    fast = Call.of(x, axis, None, "normalize")
    if fast is None or not float(np.max(np.abs(variance), initial=0.0)) < HUGE:  # NaN is not, either
        target = checked_out(out, np.shape(x), result_dtype(x), "normalize")
        return _into(target, ops.normalize(x, mean, variance, gamma, beta, epsilon=epsilon, axis=axis))
    target = fast.target(out, "normalize")
    given = fast.parameters("normalize", epsilon, mean=mean, variance=variance, gamma=gamma, beta=beta)
    m, v = (np.ascontiguousarray(one, np.float64) for one in (given["mean"], given["variance"]))
    into, views = target.views()[:2], fast.views(given)
    cpu.inference(*into, cpu.view_of(m), cpu.view_of(v), axis=fast.axis, epsilon=epsilon, **views)
    return target.done()


def batch_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    epsilon: float,
    axis: Axis = -1,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Array, Moments]:
    """Training: normalise with the batch's own mean and variance.

    ``y = gamma * (x - batch_mean) / sqrt(batch_variance + epsilon) + beta``

    Parameters
    ----------
    x, gamma, beta, epsilon, axis, out
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
    if mask is None and out is None and type(x) is np.ndarray and x.dtype is FLOAT32 and type(axis) is int:
        found = _tiny(x, gamma, beta, epsilon, axis)
        if found is not None:
            return found
    fast = Call.of(x, axis, mask, "batch_norm")
    if fast is not None:
        target = fast.target(out, "batch_norm")
        views = fast.views(fast.parameters("batch_norm", epsilon, gamma=gamma, beta=beta))
        mean, variance = np.empty((2, fast.channels))
        into = (*target.views()[:2], cpu.view_of(mean), cpu.view_of(variance))
        if target.in_place:  # nothing may be overwritten before it is certain that the result holds
            count = cpu.moments(into[0], *into[2:], axis=fast.axis, mask=fast.mask)
            if not fast.failed(count, variance):
                cpu.inference(*into, axis=fast.axis, epsilon=epsilon, **views)
        else:
            count = cpu.forward(*into, axis=fast.axis, epsilon=epsilon, mask=fast.mask, **views)
        if not fast.failed(count, variance):
            return target.done(), Moments(count, mean, variance)
    into_out = checked_out(out, np.shape(x), result_dtype(x), "batch_norm")
    y, batch = ops.batch_norm(x, gamma, beta, epsilon=epsilon, axis=axis, mask=mask)
    return _into(into_out, y), batch


def batch_norm_grad(
    grad: ArrayLike,
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    epsilon: float,
    axis: Axis = -1,
    mask: ArrayLike | None = None,
    out: Array | None = None,
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
    out : array, optional
        Takes the gradient of x; it may be ``grad``, or overlap it or ``x`` in any way.

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
    fast = Call.of(x, axis, mask, "batch_norm_grad")
    if fast is not None:
        upstream = as_float(grad, "batch_norm_grad")
        if upstream.shape != fast.x.shape:
            shapes = f"{fast.x.shape}; got {upstream.shape}"
            raise ArgumentError(f"batch_norm_grad: grad must have the shape of x, {shapes}.")
        upstream = readable(upstream.astype(fast.x.dtype, copy=False))
        target = fast.target(out, "batch_norm_grad", upstream)
        views = fast.views(fast.parameters("batch_norm_grad", epsilon, gamma=gamma))
        rows = np.empty((4, fast.channels))
        mean, variance, dgamma, dbeta = (cpu.view_of(row) for row in rows)
        source, place, (g,) = target.views()
        count = cpu.moments(source, mean, variance, axis=fast.axis, mask=fast.mask)
        if not fast.failed(count, rows[1]):
            given = {"axis": fast.axis, "epsilon": epsilon, "mask": fast.mask}
            cpu.backward(g, source, place, mean, variance, dgamma, dbeta, **given, **views)
            return Gradients(target.done(), rows[2], rows[3])
    into = checked_out(out, np.shape(x), result_dtype(x), "batch_norm_grad")
    found = ops.batch_norm_grad(grad, x, gamma, epsilon=epsilon, axis=axis, mask=mask)
    return found._replace(x=_into(into, found.x))


def _into(out: Array | None, result: Array) -> Array:
    if out is None:
        return result
    out[...] = result
    return out


def _tiny(x: Array, gamma: Any, beta: Any, epsilon: float, axis: int) -> tuple[Array, Moments] | None:
    """The shortest way for a small float32 array; None where it is none, or something is to be said of an argument."""
    shape, size = x.shape, x.size
    if not 0 < size <= TINY or not x.flags.c_contiguous or not -len(shape) <= axis < len(shape) or not epsilon >= 0:
        return None
    channels, inner = shape[axis], 1
    for n in shape[axis + 1 :] if axis != -1 else ():
        inner *= n
    if gamma is None:
        gamma = ABSENT
    elif type(gamma) is not np.ndarray or gamma.dtype is not FLOAT32 or gamma.shape != (channels,):
        return None
    if beta is None:
        beta = ABSENT
    elif type(beta) is not np.ndarray or beta.dtype is not FLOAT32 or beta.shape != (channels,):
        return None
    train = _loaded()
    if train is None:
        return None
    y, rows = np.empty_like(x), np.empty((5, channels))
    train(x.ravel(), gamma, beta, y.ravel(), rows, channels, inner, epsilon)
    return y, _new(Moments, (size // channels, rows[0], rows[1]))


_train: list[Any] = []


def _loaded() -> Any:
    if not _train:
        if cpu.available():
            _train.append(import_module("batchnorm.kernels.tiny").train)
        else:
            _train.append(None)
    return _train[0]


class Call:
    """A call that the kernels take: its input, one channel axis, and its mask."""

    def __init__(self, x: Array, how: Plan, mask: Array | None) -> None:
        self.x, self.how, self.axis = x, how, how.kept[0]
        self.channels, self.dtype = how.channel_shape[0], x.dtype.name
        self.mask = mask

    @classmethod
    def of(cls, x: Any, axis: Any, mask: ArrayLike | None, who: str) -> Call | None:
        """None where the call is for `core.ops`: which also says what is wrong with an argument."""
        if not isinstance(x, np.ndarray):
            return None
        array: Array = as_float(np.asarray(x), who)  # pyright: ignore[reportUnknownArgumentType]
        if array.size <= TINY or not cpu.supports(array.dtype.newbyteorder("=").name):
            return None
        how = plan(array.shape, as_axis(axis, who), who)
        if len(how.kept) != 1:
            return None
        counted = None if mask is None else np.squeeze(full_mask(mask, array.shape, how, who), how.kept[0])
        return cls(readable(array), how, counted)

    def target(self, out: Any, who: str, *read: Array) -> Target:
        """Where the result goes."""
        checked = checked_out(out, self.x.shape, self.x.dtype, who)
        return Target(checked, self.x, self.axis, *read, mask=self.mask is not None)

    def parameters(self, who: str, epsilon: float, **given: ArrayLike | None) -> dict[str, Array]:
        """Those that are there, checked."""
        ops.check_epsilon(epsilon, who)
        named = {name: value for name, value in given.items() if value is not None}
        return {name: parameter(self.how, who, name, value).reshape(-1) for name, value in named.items()}

    def views(self, given: Mapping[str, Array | None]) -> dict[str, Any]:
        """Of gamma and beta, if they are there, in the type of the arithmetic."""
        named = {name: one for name, one in given.items() if name in ("gamma", "beta") and one is not None}
        return {name: cpu.view_of(vector(one, self.dtype)) for name, one in named.items()}

    @staticmethod
    def failed(count: int, variance: Array) -> bool:
        """Nothing counted, which `core.ops` puts into words, or values beyond float32."""
        return count == 0 or float(np.max(variance, initial=0.0)) > HUGE
