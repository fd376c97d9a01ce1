"""The equations of batch normalization, once, over a namespace ``xp``.

``xp`` is ``numpy``, ``torch``, ``jax.numpy`` or ``keras.ops``. The only names used of it are ``sum``, ``sqrt``,
``mean``, ``where``, ``cumsum`` and ``isfinite``; the rest is arithmetic. Statistics keep the rank of ``x`` with
length 1 on the reduced axes, so that they broadcast. Every function is pure and takes arrays of one floating-point
type, the type the arithmetic is done in: callers convert half precision to float32 before and back after.

The mean is carried as two numbers, ``high + low``: one float32 cannot hold the mean of N(1e6, 1) to better than 0.03
standard deviations. Source of the algorithm: the corrected two-pass of T. F. Chan, G. H. Golub and R. J. LeVeque,
"Algorithms for Computing the Sample Variance", The American Statistician 37 (1983), section 2,
doi:10.1080/00031305.1983.10483115. Source of the layer: S. Ioffe and C. Szegedy, "Batch Normalization", ICML 2015,
arXiv:1502.03167, algorithms 1 and 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .sums import has_runs, in_runs, mean_in_runs

__all__ = [
    "Limits",
    "Moments",
    "affine",
    "around_high",
    "counted_sums",
    "debias",
    "decayed",
    "decayed_all",
    "fold",
    "input_gradient",
    "inv_std",
    "merge_all",
    "moments",
    "moments_around",
    "normalized",
    "of_x_hat",
    "output",
    "output_tangent",
    "parameter_gradients",
    "pooled",
    "renorm",
    "sample_variance",
    "standardize",
    "statistics_tangent",
    "without_initial",
]


FAR = 16.0
"""The square of the distance, in standard deviations, from which on a first element is far from its channel's mean."""


class Limits(NamedTuple):
    """Clipping of batch renormalization; None does not clip."""

    rmin: float | None = None
    rmax: float | None = None
    dmax: float | None = None


class Moments(NamedTuple):
    """What one batch says of each channel.

    ``count`` elements were counted, their mean is ``high + low``, and ``variance`` is the mean of the squared distances
    from it (divisor ``count``); ``low`` is None where ``high`` is all of it. Zero counted elements give a mean and a
    variance of 0.
    """

    count: Any
    high: Any
    low: Any
    variance: Any

    @property
    def mean(self) -> Any:
        """``high + low``, rounded to one number."""
        return self.high if self.low is None else self.high + self.low


def moments(
    xp: Any, x: Any, axes: tuple[int, ...], count: Any, mask: Any = None, *, refine: bool = False, choose: Any = None
) -> Moments:
    """Count, mean and variance of ``x`` over ``axes``, by corrected two-pass around the first counted element.

    Parameters
    ----------
    xp : namespace
        See the module.
    x : array
        The batch.
    axes : tuple of int
        The reduced axes, not negative.
    count : int or array
        Counted elements of each channel; at least 1 (pass 1 where there is none: all sums are then 0).
    mask : array of bool, optional
        True where an element counts; the rank of ``x``, full on the reduced axes, length 1 (or full, where each has
        its own mask: virtual batches) on the kept ones.
    refine : bool
        Sum in runs (`sums`): for namespaces that add one number after another, as TensorFlow does on the CPU, and
        NumPy over leading axes. In float32 that is off by 2e-5 at 1e5 elements, and by 1e-3 where rounding takes sides.
        PyTorch and JAX add in blocks and have no need of it.
    choose : callable, optional
        ``choose(condition, yes, no)`` runs one of two functions without arguments, as `jax.lax.cond` does. It saves a
        read of the input: ``low`` is what rounding took from ``high``, and is measured only where some first element
        is so far from its channel's mean that the differences from it were themselves rounded by too much.
    """
    first = _first_counted(xp, x, axes, mask)
    distance = _counted_mean(xp, x - first, axes, count, mask, refine)
    high = first + distance
    if choose is None:
        return moments_around(xp, x, high, axes, count, mask, refine=refine)
    centered = x - high
    square = _counted_mean(xp, centered * centered, axes, count, mask, refine)

    def measured() -> Any:
        return _counted_mean(xp, x - high, axes, count, mask, refine)

    far = xp.sum(xp.where(distance * distance > FAR * square, 1, 0)) > 0
    low = choose(far, measured, lambda: (first - high) + distance)
    return Moments(count, high, low, abs(square - low * low))


def moments_around(
    xp: Any,
    x: Any,
    high: Any,
    axes: tuple[int, ...],
    count: Any,
    mask: Any = None,
    total: Any = None,
    *,
    refine: bool = False,
) -> Moments:
    """The second pass of `moments`: exact around any ``high`` near the mean, which is taken as a constant.

    Parameters
    ----------
    xp, x, axes, count, mask, refine
        As in `moments`; ``count`` is that of the whole batch where ``total`` is given.
    high : array
        A number near the mean of each channel.
    total : callable, optional
        Adds a sum over the parts of a synchronised batch; None where ``x`` is all of it.

    Notes
    -----
    What differentiation of the batch statistics goes through: the derivative of ``high`` cancels against that of
    ``low``, so none is needed.
    """

    def mean_of(values: Any) -> Any:
        if total is None:
            return _counted_mean(xp, values, axes, count, mask, refine)
        return total(_counted_sum(xp, values, axes, mask, refine)) / count

    centered = x - high
    low = mean_of(centered)
    # Below 0 by a rounding only, and not further from the true variance with the other sign.
    return Moments(count, high, low, abs(mean_of(centered * centered) - low * low))


def _counted_mean(xp: Any, values: Any, axes: tuple[int, ...], count: Any, mask: Any, refine: bool) -> Any:
    if mask is None and refine and has_runs(values, axes, count):
        return mean_in_runs(xp, values, axes)
    return _counted_sum(xp, values, axes, mask, refine) / count


def _counted_sum(xp: Any, values: Any, axes: tuple[int, ...], mask: Any, refine: bool = False) -> Any:
    # where(), not a product: padding may hold NaN, and 0 * NaN is NaN.
    counted = values if mask is None else xp.where(mask, values, 0.0)
    return in_runs(xp, counted, axes) if refine else xp.sum(counted, axis=axes, keepdims=True)


def _first_counted(xp: Any, x: Any, axes: tuple[int, ...], mask: Any) -> Any:
    # Subtracted before anything is summed: a constant channel then gives differences of exactly 0.
    if mask is None:
        first = x[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(len(x.shape)))]
        return xp.sum(first, axis=axes, keepdims=True) if axes else first  # the sum gives an empty batch its 0
    # Axis by axis, not over a flattened mask: lengths may be unknown, and a virtual batch has its own first element.
    left, is_first = xp.where(mask, 1, 0), mask
    for axis in reversed(axes):
        chosen = xp.where(left == 1, xp.cumsum(left, axis=axis), 0) == 1
        is_first = xp.where(chosen, is_first, False)
        left = xp.sum(xp.where(chosen, 1, 0), axis=axis, keepdims=True)
    return _counted_sum(xp, x, axes, is_first)


def inv_std(xp: Any, variance: Any, epsilon: float) -> Any:
    """``1 / sqrt(variance + epsilon)``."""
    return 1 / xp.sqrt(variance + epsilon)


def standardize(x: Any, high: Any, low: Any, inverse: Any) -> Any:
    """``(x - mean) * inv_std`` with the mean as ``high + low``: subtracted first, so a large mean costs nothing."""
    return (x - high - low) * inverse


def output(centered: Any, low: Any, scale: Any, beta: Any) -> Any:
    """``scale * (x - mean) + beta`` the mean as ``high + low``, ``centered = x - high``, ``scale = gamma*inv_std``.

    `standardize` and `affine` with everything gathered that is of the channels' size. The mean is still subtracted
    first: only ``low``, a rounding of it, goes into the addend. Here, in `of_x_hat` and in `around_high` ``low`` is
    None where it has been subtracted, too.
    """
    if low is None:
        return affine(centered, scale, beta)
    shift = -low * scale if beta is None else beta - low * scale
    return centered * scale + shift


def affine(x_hat: Any, gamma: Any, beta: Any) -> Any:
    """``gamma * x_hat + beta``; an absent gamma or beta is None."""
    y = x_hat if gamma is None else x_hat * gamma
    return y if beta is None else y + beta


def normalized(xp: Any, x: Any, mean: Any, variance: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """``gamma * (x - mean) / sqrt(variance + epsilon) + beta``: inference."""
    scale = inv_std(xp, variance, epsilon)
    scale = scale if gamma is None else scale * gamma
    return affine(x - mean, scale, beta)


def fold(xp: Any, mean: Any, variance: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any]:
    """``scale, shift`` of the linear map ``x * scale + shift`` that inference is.

    Mathematically the same; numerically ``x * scale`` and ``shift`` cancel where the mean is large, so only folding
    into another layer's weights uses it.
    """
    scale = inv_std(xp, variance, epsilon)
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale
    return scale, shift if beta is None else shift + beta


def sample_variance(xp: Any, variance: Any, count: Any, ddof: float) -> Any:
    """``variance * count / (count - ddof)``, the variance that is stored; as it is where count <= ddof.

    A single element has no spread to correct: 0 stays 0 rather than becoming 0/0.
    """
    if not ddof:
        return variance
    if isinstance(count, int):
        return variance * (count / (count - ddof)) if count > ddof else variance
    return xp.where(count > ddof, variance * count / xp.where(count > ddof, count - ddof, 1), variance)


def decayed(moving: Any, batch: Any, decay: Any) -> Any:
    """``decay * moving + (1 - decay) * batch``: one update of a moving average."""
    return decay * moving + (1 - decay) * batch


def decayed_all(xp: Any, moving: Any, batches: Any, decay: float, applied: Any, ones: Any) -> Any:
    """`decayed` for all batches along axis 0, in their order, skipping those that are not ``applied``.

    ``decay^n * moving + sum_k (1 - decay) * decay^(updates after k) * batch_k``. ``ones`` is 1 where ``applied``, in
    the arrays' type.
    """
    times = xp.sum(ones, axis=0)
    weights = (1 - decay) * decay ** (times - xp.cumsum(ones, axis=0))
    return decay**times * moving + xp.sum(xp.where(applied, weights * batches, 0.0), axis=0)


def debias(moving: Any, initial: float, remaining: Any) -> Any:
    """``(moving - remaining * initial) / (1 - remaining)``: the average with the initial value taken out.

    ``remaining`` is the share of the initial value still in it, ``decay**updates``; it must be below 1.
    """
    return (moving - remaining * initial) / (1 - remaining)


def without_initial(xp: Any, moving: Any, initial: float, remaining: Any) -> Any:
    """As `debias`; where nothing was averaged yet (``remaining`` is 1) the moving value itself."""
    started = remaining < 1
    return xp.where(started, debias(moving, initial, xp.where(started, remaining, 0 * remaining)), moving)


def merge_all(xp: Any, parts: Moments) -> Moments:
    """Moments of a whole from those of its parts, stacked along axis 0, each weighted by its count.

    The merge of Chan, Golub and LeVeque, section 3, over all parts at once; parts of count 0 change nothing. The
    distance of the parts' means adds to the variance: averaging variances alone loses it.
    """
    total = xp.sum(parts.count, axis=0)
    divisor = xp.where(total > 0, total, 0 * total + 1)
    filled = parts.count > 0
    order = xp.cumsum(xp.where(filled, 1, 0), axis=0)
    origin = xp.sum(xp.where(xp.where(filled, order, 0) == 1, parts.high, 0.0), axis=0)
    distance = xp.where(filled, parts.high - origin + parts.low, 0.0)
    delta = xp.sum(parts.count * distance, axis=0) / divisor
    high = origin + delta
    spread = parts.count * (xp.where(filled, parts.variance, 0.0) + (distance - delta) ** 2)
    return Moments(total, high, (origin - high) + delta, xp.sum(spread, axis=0) / divisor)


def pooled(n1: Any, mean1: Any, m2_1: Any, n2: Any, mean2: Any, m2_2: Any) -> tuple[Any, Any, Any]:
    """``count, mean, M2`` of two samples together; M2 is the sum of squared distances from the mean.

    ``d = mean2 - mean1; mean = mean1 + d*n2/n; M2 = M2_1 + M2_2 + d^2*n1*n2/n``. At least one count is positive.
    """
    n = n1 + n2
    d = mean2 - mean1
    share = n2 / n
    return n, mean1 + d * share, m2_1 + m2_2 + d * d * (n1 * share)


def renorm(
    xp: Any, batch: Moments, renorm_mean: Any, renorm_std: Any, epsilon: float, limits: Limits
) -> tuple[Any, Any]:
    """``r, d`` of batch renormalization: the output is ``gamma * (x_hat*r + d) + beta``, r and d held constant.

    ``r = clip(std / renorm_std, rmin, rmax)``, ``d = clip((mean - renorm_mean) / renorm_std, -dmax, dmax)``, with
    ``std = sqrt(variance + epsilon)`` of the batch and ``renorm_std`` at least ``sqrt(epsilon)``. S. Ioffe, "Batch
    Renormalization", 2017, arXiv:1702.03275, algorithm 1.
    """
    floor = epsilon**0.5
    std = xp.where(renorm_std < floor, floor, renorm_std)
    r = xp.sqrt(batch.variance + epsilon) / std
    d = (batch.high - renorm_mean + batch.low) / std
    return _clip(xp, r, limits.rmin, limits.rmax), _clip(
        xp, d, None if limits.dmax is None else -limits.dmax, limits.dmax
    )


def _clip(xp: Any, value: Any, low: float | None, high: float | None) -> Any:
    if low is not None:
        value = xp.where(value < low, low, value)
    return value if high is None else xp.where(value > high, high, value)


def parameter_gradients(xp: Any, grad: Any, x_hat: Any, axes: tuple[int, ...], mask: Any = None) -> tuple[Any, Any]:
    """``sum(grad), sum(grad * x_hat)`` over ``axes``: the gradients of beta and gamma.

    Every position takes part, masked or not: a masked position is normalised like any other, it only does not count
    in the statistics. Only a NaN or an infinity in padding that the loss ignores (gradient 0) is left out, for which
    the mask is needed.
    """
    product = grad * x_hat
    if mask is not None:
        product = xp.where(mask, product, xp.where(grad == 0, 0 * grad, product))
    return xp.sum(grad, axis=axes, keepdims=True), xp.sum(product, axis=axes, keepdims=True)


def input_gradient(xp: Any, grad: Any, x_hat: Any, scale: Any, sums: tuple[Any, Any], count: Any, mask: Any) -> Any:
    """The gradient of the input in training: ``scale * (grad - counted * (sum(grad) + x_hat*sum(grad*x_hat))/count)``.

    ``scale`` is gamma * inv_std; ``sums`` are those of `parameter_gradients`, over every part of a synchronised batch;
    ``counted`` is 1 where the mask is true (everywhere without one).
    """
    share = scale / count
    through_statistics = x_hat * (share * sums[1]) + share * sums[0]
    if mask is not None:
        through_statistics = xp.where(mask, through_statistics, 0.0)
    return scale * grad - through_statistics


def of_x_hat(sums: tuple[Any, Any], low: Any, inverse: Any) -> tuple[Any, Any]:
    """``sum(grad), sum(grad * x_hat)`` from `parameter_gradients` of ``x - high`` in the place of ``x_hat``."""
    return sums[0], inverse * (sums[1] if low is None else sums[1] - low * sums[0])


def around_high(sums: tuple[Any, Any], low: Any, inverse: Any) -> tuple[Any, Any]:
    """What `input_gradient` takes for sums with ``x - high`` for ``x_hat``: the way back from `of_x_hat`.

    ``sum(grad) + x_hat*sum(grad*x_hat)`` with the terms in ``x - high`` and in 1 gathered.
    """
    slope = inverse * sums[1]
    return sums[0] if low is None else sums[0] - low * slope, slope


def counted_sums(xp: Any, tangent: Any, x_hat: Any, axes: tuple[int, ...], mask: Any = None) -> tuple[Any, Any]:
    """``sum(tangent), sum(tangent * x_hat)`` over the counted elements: what `statistics_tangent` needs of a batch."""
    return _counted_sum(xp, tangent, axes, mask), _counted_sum(xp, tangent * x_hat, axes, mask)


def statistics_tangent(inverse: Any, sums: tuple[Any, Any], count: Any) -> tuple[Any, Any]:
    """The derivatives of ``low`` and of inv_std in training, as the input moves along ``tangent`` and ``high`` stays.

    ``sum(tangent)/count`` and ``-inv_std**2 * sum(tangent*x_hat)/count``, with the sums of `counted_sums` over every
    part of a synchronised batch; the derivative of ``x - high`` is the tangent itself.
    """
    return sums[0] / count, -inverse * inverse * (sums[1] / count)


def output_tangent(
    tangent: Any,
    centered: Any,
    low: Any,
    inverse: Any,
    scale: Any,
    sums: tuple[Any, Any],
    count: Any,
    moved: tuple[Any, Any],
) -> Any:
    """The derivative of the output in training as input, gamma and beta move; the last two, or None, are ``moved``.

    ``scale*(tangent - (sum(tangent) + x_hat*sum(tangent*x_hat))/count) + x_hat*gamma_tangent + beta_tangent`` with
    ``scale = gamma*inv_std`` and ``x_hat = inv_std*(centered - low)``, ``centered = x - high``. Whatever multiplies
    ``centered`` is gathered first, and what is added: transposed by automatic differentiation, this is
    `parameter_gradients` and `input_gradient` with two sums over the batch, not four.
    """
    along_gamma, along_beta = -scale * (sums[1] / count), -scale * (sums[0] / count)
    along_gamma = along_gamma if moved[0] is None else along_gamma + moved[0]
    along_beta = along_beta if moved[1] is None else along_beta + moved[1]
    added, slope = around_high((along_beta, along_gamma), low, inverse)
    return scale * tangent + centered * slope + added
