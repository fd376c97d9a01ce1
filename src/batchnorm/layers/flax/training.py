# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportMissingTypeStubs=false
# (JAX' annotations are partial: devices, trees of arrays and collectives come out unknown.)
"""Training-mode batch normalization in JAX: differentiable any number of times, in both directions, on any mesh axis.

The skin around `batchnorm.core.equations` and `batchnorm.core.training` with ``xp = jax.numpy``. What is JAX' own lies
here: the derivative as a `jax.custom_jvp` (its transpose is the closed form of the gradient, so reverse mode, forward
mode and their compositions all come from one rule), collectives over a named axis, and the scan over virtual batches.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from batchnorm.core import equations, training
from batchnorm.core.equations import Moments
from batchnorm.core.plan import Plan, mask_shape
from batchnorm.core.training import Rule, State
from batchnorm.errors import ArgumentError

__all__ = ["Sync", "Task", "full_mask", "train"]


LARGE = 1 << 15
"""Less than this is read again in the time that a condition takes."""


class Sync(NamedTuple):
    """A named axis of devices (pmap, shard_map, vmap), and its indices in groups that share a batch; None: all do."""

    axis_name: Any
    groups: tuple[tuple[int, ...], ...] | None = None

    @property
    def size(self) -> int:
        """Devices that share a batch."""
        return lax.axis_size(self.axis_name) if self.groups is None else max(len(group) for group in self.groups)

    def total(self, values: Any) -> Any:
        """The sum of a tree of arrays over the devices."""
        return lax.psum(values, self.axis_name, axis_index_groups=self.groups)

    def gathered(self, values: Any) -> Any:
        """A tree of arrays, each stacked over the devices along a new axis 0.

        A sum of slots and not `lax.all_gather`, whose result `jax.shard_map` takes for different on each device: the
        statistics merged from it could then not leave the map as one replicated array.
        """
        position: Any = lax.axis_index(self.axis_name)
        if self.groups is not None:
            positions = {index: place for group in self.groups for place, index in enumerate(group)}
            position = jnp.asarray([positions[index] for index in range(len(positions))])[position]
        mine = jnp.arange(self.size) == position

        def slotted(value: Any) -> Any:
            return jnp.where(mine.reshape((-1,) + (1,) * value.ndim), value, 0)

        return self.total(jax.tree.map(slotted, values))


class Task(NamedTuple):
    """What is known of a batch before its data: the reduced axes, who shares it, the samples of a virtual batch."""

    reduced: tuple[int, ...]
    epsilon: float
    sync: Sync | None = None
    virtual_batch_size: int | None = None


def full_mask(mask: Any, shape: tuple[int, ...], how: Plan, who: str) -> Any:
    """A mask at the rank of the input, in full on the reduced axes; on the channel axes of length 1 or in full.

    Raises
    ------
    TypeError
        The mask holds floating-point numbers.
    ArgumentError
        It has neither the input's shape less the channel axes nor one that broadcasts to the input's.
    """
    given = jnp.asarray(mask)
    if jnp.issubdtype(given.dtype, jnp.inexact):
        raise TypeError(f"{who}: mask must be boolean, True where an element counts; got dtype {given.dtype}.")
    lead = (1,) * (len(shape) - given.ndim)
    try:
        aligned, _ = mask_shape(given.shape, shape, how.kept, who)
    except ArgumentError:
        aligned = lead + given.shape
        if len(aligned) != len(shape) or any(m not in (1, n) for m, n in zip(aligned, shape, strict=True)):
            raise
    full = tuple(m if i in how.kept else n for i, (m, n) in enumerate(zip(aligned, shape, strict=True)))
    return jnp.broadcast_to(given.astype(bool).reshape(aligned), full)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(
    task: Task, rule: Rule, state: State, x: Any, mask: Any = None, gamma: Any = None, beta: Any = None
) -> tuple[Any, State, Any]:
    """Normalise a batch with its own statistics, and the state after it.

    Parameters
    ----------
    task : Task
        The shapes, and who takes part.
    rule : Rule
        How the statistics are averaged.
    state : dict of arrays
        See `batchnorm.core.training`; each of the rank of ``x`` with 1 on the reduced axes.
    x : array
        The batch, in the type the arithmetic is done in.
    mask : array of bool, optional
        The rank of ``x``, full length on the reduced axes.
    gamma, beta : array, optional
        Of the state's shape.

    Returns
    -------
    y : array
        As ``x``.
    state : dict of arrays
        No gradient flows through it.
    skipped : array
        How many updates the guard left out for each channel.
    """
    if task.virtual_batch_size is None:
        y, batch = _normalized(task, rule, state, x, mask, gamma, beta)
        after, skipped = training.update(jnp, rule, state, _constant(state, batch))
        return y, after, skipped.astype(batch.high.dtype)
    return _train_in_parts(task, rule, state, x, mask, gamma, beta)


def _normalized(task: Task, rule: Rule, state: State, x: Any, mask: Any, gamma: Any, beta: Any) -> tuple[Any, Moments]:
    mean, variance = training.inference_statistics(jnp, rule, state)
    instead = (lax.stop_gradient(mean).astype(x.dtype), lax.stop_gradient(variance).astype(x.dtype))
    if mask is None:
        return _output(task, x, None, instead, gamma, beta)
    # A NaN or an infinity in the padding shows in the output and nowhere else: without this a loss that ignores the
    # padding would still have NaN gradients, 0 * NaN.
    odd = ~mask & ~jnp.isfinite(x)
    y, batch = _output(task, jnp.where(odd, 0, x), mask, instead, gamma, beta)
    return jnp.where(odd, equations.affine(*lax.stop_gradient((x, gamma, beta))), y), batch


class _Centered(NamedTuple):
    # x - high, and what is of the channels' size: x_hat = (values - low) * inverse.
    values: Any
    low: Any
    inverse: Any


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _output(task: Task, x: Any, mask: Any, instead: tuple[Any, Any], gamma: Any, beta: Any) -> tuple[Any, Moments]:
    centered, batch = _centered(task, x, mask, instead)
    return _scaled(centered, gamma, beta), batch


def _scaled(centered: _Centered, gamma: Any, beta: Any) -> Any:
    return equations.output(centered.values, centered.low, _scale(centered, gamma), beta)


def _scale(centered: _Centered, gamma: Any) -> Any:
    return centered.inverse if gamma is None else centered.inverse * gamma


@_output.defjvp
def _(task: Task, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    x, mask, instead, gamma, beta = primals
    centered, batch = _centered(task, x, mask, instead)
    sums, count = _sums(task, tangents[0], centered, mask, batch)
    parts = centered.values, centered.low, centered.inverse
    moved = equations.output_tangent(
        tangents[0], *parts, _scale(centered, gamma), sums, count, (tangents[3], tangents[4])
    )
    return (_scaled(centered, gamma, beta), batch), (moved, jax.tree.map(jnp.zeros_like, batch))


def _sums(task: Task, tangent: Any, centered: _Centered, mask: Any, batch: Moments) -> tuple[tuple[Any, Any], Any]:
    own = equations.counted_sums(jnp, tangent, centered.values, task.reduced, mask)
    sums = equations.of_x_hat(own, centered.low, centered.inverse)
    return sums if task.sync is None else task.sync.total(sums), jnp.maximum(batch.count, 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _centered(task: Task, x: Any, mask: Any, instead: tuple[Any, Any]) -> tuple[_Centered, Moments]:
    # `instead` are the mean and variance of a channel of which nothing is counted.
    batch = _moments(task, x, mask)
    used = batch if mask is None else training.or_moving(jnp, batch, *instead)
    return _Centered(x - used.high, used.low, equations.inv_std(jnp, used.variance, task.epsilon)), batch


@_centered.defjvp
def _(task: Task, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    # Reached by second derivatives only.
    centered, batch = _centered(task, *primals)
    sums, count = _sums(task, tangents[0], centered, primals[1], batch)
    moved = _Centered(tangents[0], *equations.statistics_tangent(centered.inverse, sums, count))
    return (centered, batch), (moved, jax.tree.map(jnp.zeros_like, batch))


def _moments(task: Task, x: Any, mask: Any) -> Moments:
    ones = jnp.ones_like(x, shape=()) if mask is None else mask.astype(x.dtype)
    held = [n if i in task.reduced else 1 for i, n in enumerate(x.shape)]
    count = (
        ones * jnp.asarray(_product(held), x.dtype) if mask is None else jnp.sum(ones, axis=task.reduced, keepdims=True)
    )
    is_large = not isinstance(x.size, int) or x.size > LARGE  # unknown while exporting
    choose = lax.cond if is_large else None
    batch = equations.moments(jnp, x, task.reduced, jnp.maximum(count, 1), mask, choose=choose)
    batch = batch._replace(count=jnp.broadcast_to(count, batch.high.shape))
    return batch if task.sync is None else equations.merge_all(jnp, task.sync.gathered(batch))


def _product(lengths: list[int]) -> int:
    return functools.reduce(lambda a, b: a * b, lengths, 1)


def _constant(state: State, batch: Moments) -> Moments:
    dtype = state["moving_mean"].dtype
    return jax.tree.map(lambda value: lax.stop_gradient(value).astype(dtype), batch)


def _train_in_parts(
    task: Task, rule: Rule, state: State, x: Any, mask: Any, gamma: Any, beta: Any
) -> tuple[Any, State, Any]:
    # Axis 0 then counts the parts, kept like a channel axis. The last part may be shorter: it is filled up with
    # positions that do not count.
    length, size = x.shape[0], task.virtual_batch_size
    assert size is not None
    filled = -length % size
    if filled and mask is None:
        mask = jnp.ones([n if i in task.reduced else 1 for i, n in enumerate(x.shape)], bool)

    def split(value: Any) -> Any:
        padded = jnp.pad(value, [(0, filled)] + [(0, 0)] * (value.ndim - 1))
        return padded.reshape((padded.shape[0] // size, size, *value.shape[1:]))

    inner = task._replace(reduced=tuple(i + 1 for i in task.reduced), virtual_batch_size=None)
    wide = jax.tree.map(lambda value: value[None], (state, gamma, beta))
    y, batch = _normalized(inner, rule, wide[0], split(x), None if mask is None else split(mask), *wide[1:])
    return y.reshape((length + filled, *x.shape[1:]))[:length], *_updated_in_turn(rule, state, _constant(state, batch))


def _updated_in_turn(rule: Rule, state: State, parts: Moments) -> tuple[State, Any]:
    # The first part outside the scan: within shard_map the state may become different on each device only there.
    state, skipped = training.update(jnp, rule, state, jax.tree.map(lambda v: v[0], parts))
    dtype = parts.high.dtype

    def step(carry: tuple[State, Any], part: Moments) -> tuple[tuple[State, Any], None]:
        after, out = training.update(jnp, rule, carry[0], part)
        return (after, carry[1] + out.astype(dtype)), None

    (state, count), _ = lax.scan(step, (state, skipped.astype(dtype)), jax.tree.map(lambda v: v[1:], parts))
    return state, count
