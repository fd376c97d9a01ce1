"""Training-mode normalization over `keras.ops`, forward and backward, for a backend's custom gradient to carry.

Everything that is static lives in a `How`; everything else in the arguments. ``x`` comes and goes in its own type and
is widened inside, so that half precision is what is kept for the backward pass.
"""

# Keras ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import ops

from batchnorm.core import equations, training
from batchnorm.core.equations import Limits, Moments

__all__ = ["Collective", "Fixed", "How", "Kept", "Outputs", "backward", "cast", "forward", "statistics"]

Collective = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class How:
    """What is static about one application.

    ``axes`` are reduced; ``count`` is the elements of each channel, None where the data tell (a mask, a shape that is
    not known yet, other replicas). ``parts`` says
    that axis 0 holds virtual batches (kept, but shared by gamma). ``wide`` is the type of the arithmetic, ``narrow``
    that of the output. ``limits`` asks for renorm. ``gather`` stacks an array of every replica along axis 0, ``total``
    sums it over the replicas; both are None where nothing is synchronised. ``choose`` is that of
    `equations.moments`, ``xp`` the namespace of its arithmetic. ``few`` subtracts both parts of the mean from the
    input: one operation more on the input, and six less of the channels' size.
    """

    axes: tuple[int, ...]
    epsilon: float
    wide: str
    narrow: str
    count: int | None = None
    parts: bool = False
    limits: Limits | None = None
    gather: Collective | None = None
    total: Collective | None = None
    choose: Any = None
    few: bool = False
    xp: Any = ops


class Fixed(NamedTuple):
    """Arrays without a gradient, of the rank of ``x``; None where not needed."""

    mask: Any = None
    count: Any = None
    mean: Any = None
    variance: Any = None
    renorm_mean: Any = None
    renorm_std: Any = None


class Outputs(NamedTuple):
    """``y`` and the batch's moments; ``count`` is None where it is static."""

    y: Any
    high: Any
    low: Any
    variance: Any
    count: Any


REFINE = keras.backend.backend() not in ("jax", "torch")
"""TensorFlow and NumPy add one number after another: see `equations.moments`."""


def cast(x: Any, dtype: str) -> Any:
    """``x`` in another type; itself where it has that type already."""
    return x if keras.backend.standardize_dtype(x.dtype) == dtype else ops.cast(x, dtype)


class Kept(NamedTuple):
    """What the backward pass needs beside ``x``, ``gamma`` and the mask: all of the channels' size."""

    high: Any
    low: Any
    inverse: Any
    count: Any
    r: Any = None
    d: Any = None


def statistics(how: How, wide: Any, fixed: Fixed) -> Moments:
    """The moments that normalise: of the batch, of all replicas' batches, or the moving ones where nothing counts."""
    if how.count is not None:
        return _moments(how, wide, max(how.count, 1), None)._replace(count=how.count)
    batch = _moments(how, wide, _positive(fixed.count), fixed.mask)._replace(count=fixed.count)
    if how.gather is not None:
        batch = _merged(batch, how.gather)
    return training.or_moving(how.xp, batch, fixed.mean, fixed.variance)


def _moments(how: How, wide: Any, count: Any, mask: Any) -> Moments:
    return equations.moments(how.xp, wide, how.axes, count, mask, refine=REFINE, choose=how.choose)


def forward(how: How, x: Any, gamma: Any, beta: Any, fixed: Fixed) -> tuple[Outputs, Kept]:
    """``gamma * (x_hat*r + d) + beta`` and what else the layer and the backward pass need."""
    batch = statistics(how, cast(x, how.wide), fixed)
    kept = _kept(how, batch, fixed)
    if kept.d is not None:
        through = kept.d if gamma is None else gamma * kept.d
        beta = through if beta is None else beta + through
    y = equations.output(*_centered(how, x, kept), _scale(kept, gamma), beta)
    count = None if how.count is not None else batch.count
    return Outputs(cast(y, how.narrow), batch.high, batch.low, batch.variance, count), kept


def backward(how: How, grad: Any, x: Any, gamma: Any, mask: Any, kept: Kept) -> tuple[Any, Any, Any]:
    """The gradients of ``x``, ``gamma`` and ``beta``, in closed form.

    A replica's gamma and beta get the replica's own sums, which the training loop adds up as it does for any weight;
    its input gets the sums over all replicas.
    """
    grad = cast(grad, how.wide)
    centered, low = _centered(how, x, kept)
    own = equations.parameter_gradients(how.xp, grad, centered, how.axes, mask)
    sums = equations.of_x_hat(own, low, kept.inverse)
    everywhere = sums if how.total is None else tuple(ops.unstack(how.total(ops.stack(sums)), axis=0))
    back = equations.around_high(everywhere, low, kept.inverse)
    dx = equations.input_gradient(how.xp, grad, centered, _scale(kept, gamma), back, kept.count, mask)
    through_gamma = sums[1] if kept.r is None else sums[1] * kept.r + sums[0] * kept.d
    return (
        cast(dx, keras.backend.standardize_dtype(x.dtype)),
        _over_parts(how, through_gamma),
        _over_parts(how, sums[0]),
    )


def _centered(how: How, x: Any, kept: Kept) -> tuple[Any, Any]:
    # x - high, and what of the mean is still to be subtracted.
    centered = cast(x, how.wide) - kept.high
    return (centered - kept.low, None) if how.few else (centered, kept.low)


def _scale(kept: Kept, gamma: Any) -> Any:
    scale = kept.inverse if gamma is None else kept.inverse * gamma
    return scale if kept.r is None else scale * kept.r


def _kept(how: How, batch: Moments, fixed: Fixed) -> Kept:
    inverse = equations.inv_std(how.xp, batch.variance, how.epsilon)
    count = _positive(batch.count) if how.count is None else max(how.count, 1)
    if how.limits is None:
        return Kept(batch.high, batch.low, inverse, count)
    r, d = equations.renorm(how.xp, batch, fixed.renorm_mean, fixed.renorm_std, how.epsilon, how.limits)
    return Kept(batch.high, batch.low, inverse, count, ops.stop_gradient(r), ops.stop_gradient(d))


def _positive(count: Any) -> Any:
    return ops.where(count > 0, count, 0 * count + 1)


def _merged(batch: Moments, gather: Collective) -> Moments:
    # One collective for all four numbers. Every replica calls it, also one without a single element.
    count = ops.broadcast_to(batch.count, batch.high.shape)
    rows = gather(ops.expand_dims(ops.stack([count, batch.high, batch.low, batch.variance]), 0))
    return equations.merge_all(ops, Moments(*(rows[:, i] for i in range(4))))


def _over_parts(how: How, sums: Any) -> Any:
    return ops.sum(sums, axis=0, keepdims=True) if how.parts else sums
