"""One training step of the layer, pure: what a backend can compile into one dispatch.

`train` goes from the input and the state to the output and the state after it. Everything static is in the `Task` and
in the shapes; nothing here reads or writes a variable.
"""

# Keras ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from keras import ops

from batchnorm.core import training
from batchnorm.core.equations import Moments
from batchnorm.core.plan import Plan
from batchnorm.core.training import Rule, State

from . import shapes
from .apply import Collective, Fixed, How, Outputs, cast
from .backends import few, running

__all__ = ["Task", "Trained", "per_channel", "train"]


@dataclass(frozen=True, slots=True)
class Task:
    """What is static about the steps of a layer.

    Of ``plan`` only the axes and the channels count: lengths may be unknown, or other ones. ``wide`` is the type of the
    arithmetic, ``narrow`` that of the output, ``size`` the samples of a virtual batch. ``gather`` and ``total`` are
    those of `apply.How`.
    """

    plan: Plan
    rule: Rule
    wide: str
    narrow: str
    size: int | None = None
    gather: Collective | None = None
    total: Collective | None = None


class Trained(NamedTuple):
    """The output, the state after the step, and how many updates of each channel the guard left out; None for none."""

    y: Any
    state: State
    skipped: Any


def train(task: Task, x: Any, mask: Any, gamma: Any, beta: Any, state: State) -> Trained:
    """Normalise a batch with its own statistics, and follow them; ``mask`` is a full one, or None."""
    if task.size is None:
        outputs, count = _normalised(task, task.plan, x, mask, gamma, beta, state)
        batch = _batch(outputs, count, task.plan.channel_shape, _dtype(state))
        return Trained(outputs.y, *_followed(training.update, task.rule, state, batch))
    parts = shapes.in_parts(x, mask, task.size, task.plan.kept)
    outputs, count = _normalised(task, _with_parts(task.plan), parts.x, parts.mask, gamma, beta, state)
    batch = _batch(outputs, count, (-1, *task.plan.channel_shape), _dtype(state), stacked=True)
    state, skipped = _followed(training.update_all, task.rule, state, batch)
    return Trained(shapes.joined(outputs.y, parts), state, ops.sum(skipped, axis=0))


def per_channel(dtype: str, shape: tuple[int, ...], *values: Any) -> tuple[Any, ...]:
    """Arrays of the channels' shape at the rank of the input, in ``dtype``; None stays None."""
    return tuple(None if v is None else running.XP.reshape(cast(v, dtype), shape) for v in values)


def _normalised(
    task: Task, plan: Plan, x: Any, mask: Any, gamma: Any, beta: Any, state: State
) -> tuple[Outputs, int | None]:
    static, count = shapes.counted(x, mask, plan.reduced, task.wide)
    if static is not None and task.gather is not None:
        static, count = None, ops.full((1,) * len(x.shape), static, dtype=task.wide)
    how = How(
        axes=plan.reduced,
        epsilon=task.rule.epsilon,
        wide=task.wide,
        narrow=task.narrow,
        count=static,
        parts=task.size is not None,
        limits=None if task.rule.renorm is None else task.rule.renorm.limits,
        gather=task.gather,
        total=task.total,
        choose=running.CHOOSE if shapes.is_large(x) else None,
        few=few() and not shapes.is_large(x),
        xp=running.XP,
    )
    gamma, beta = per_channel(task.wide, plan.broadcast_shape, gamma, beta)
    return running.train(how, x, gamma, beta, _fixed(task, plan, mask, count, state)), static


def _fixed(task: Task, plan: Plan, mask: Any, count: Any, state: State) -> Fixed:
    mean = variance = renorm_mean = renorm_std = None
    if count is not None:
        mean, variance = training.inference_statistics(running.XP, task.rule, state)
        mean, variance = per_channel(task.wide, plan.broadcast_shape, mean, variance)
    if task.rule.renorm is not None:
        averages = state["renorm_mean"], state["renorm_stddev"]
        renorm_mean, renorm_std = per_channel(task.wide, plan.broadcast_shape, *averages)
    return Fixed(mask, count, mean, variance, renorm_mean, renorm_std)


def _batch(outputs: Outputs, static: int | None, shape: tuple[int, ...], dtype: str, stacked: bool = False) -> Moments:
    xp = running.XP
    # One reshape and not two: in a graph each is an operation.
    mean, variance = outputs.high + outputs.low, outputs.variance
    mean, variance = (xp.reshape(cast(ops.stop_gradient(v), dtype), shape) for v in (mean, variance))
    if static is not None and not stacked:
        return Moments(static, mean, None, variance)
    count = ops.full((), static, dtype=dtype) if static is not None else cast(outputs.count, dtype)
    return Moments(xp.reshape(ops.broadcast_to(count, ops.shape(outputs.high)), shape), mean, None, variance)


def _followed(update: Any, rule: Rule, state: State, batch: Moments) -> tuple[State, Any]:
    state, skipped = update(running.XP, rule, state, running.once(batch))
    return state, cast(skipped, "float32")


def _dtype(state: State) -> str:
    return shapes.dtype_of(state["moving_mean"])


def _with_parts(plan: Plan) -> Plan:
    return Plan(
        kept=(0, *(i + 1 for i in plan.kept)),
        reduced=tuple(i + 1 for i in plan.reduced),
        channel_shape=plan.channel_shape,
        broadcast_shape=(1, *plan.broadcast_shape),
        count=plan.count,
    )
