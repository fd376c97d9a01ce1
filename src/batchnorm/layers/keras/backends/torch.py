"""PyTorch: an autograd function with several outputs, which `keras.ops.custom_gradient` cannot have.

What the forward pass keeps is not connected to the input. A second derivative needs that connection, so the backward
pass recomputes the statistics from the input when it is itself recorded (``create_graph=True``).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import functools
from typing import Any

import keras
import torch
import torch.distributed as dist

from batchnorm.core import equations, training
from batchnorm.core.equations import Moments
from batchnorm.errors import Refused
from batchnorm.layers.keras.apply import Collective, Fixed, How, Kept, Outputs, backward, forward, statistics
from batchnorm.layers.torch import fast
from batchnorm.layers.torch.function import How as NormalizeHow
from batchnorm.layers.torch.recompute import counted_once, recomputing

COUNTED_IN_STATE = False
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
CHOOSE: Any = None
XP: Any = torch


class _Train(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: How, x: Any, gamma: Any, beta: Any, *fixed: Any) -> tuple[Any, ...]:
        outputs, kept = forward(how, x, gamma, beta, Fixed(*fixed))
        ctx.how, ctx.has_beta = how, beta is not None
        tensors = [value for value in kept if isinstance(value, torch.Tensor)]
        ctx.static_count = kept.count if isinstance(kept.count, int) else None
        ctx.kept_names = [n for n, v in zip(kept._fields, kept, strict=True) if isinstance(v, torch.Tensor)]
        ctx.save_for_backward(x, gamma, *fixed[:4], *tensors)
        ctx.mark_non_differentiable(*(value for value in outputs[1:] if value is not None))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> tuple[Any, ...]:
        x, gamma, *rest = ctx.saved_tensors
        fixed, tensors = Fixed(*rest[:4]), rest[4:]
        kept = _again(ctx, dict(zip(ctx.kept_names, tensors, strict=True)))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            kept = _connected(ctx.how, x, fixed, kept)
        dx, dgamma, dbeta = backward(ctx.how, grad, x, gamma, fixed.mask, kept)
        parameters = (None if gamma is None else dgamma, dbeta if ctx.has_beta else None)
        return None, dx, *parameters, *([None] * len(Fixed._fields))


def _again(ctx: Any, named: dict[str, Any]) -> Kept:
    if ctx.static_count is not None:
        named["count"] = ctx.static_count
    return Kept(**named)


def _connected(how: How, x: Any, fixed: Fixed, kept: Kept) -> Kept:
    if how.total is not None:
        raise Refused(
            "BatchNormalization: a second derivative through statistics that are synchronised over processes is not "
            "available. Take it with synchronized=False, or on one process with the whole batch."
        )
    batch = statistics(how, x.to(kept.high.dtype), fixed)
    return kept._replace(high=batch.high, low=batch.low, inverse=equations.inv_std(torch, batch.variance, how.epsilon))


def train(how: How, x: Any, gamma: Any, beta: Any, fixed: Fixed) -> Outputs:
    """Normalise with the batch's statistics, gradients in closed form."""
    # The layer updates its variables in place after this; what is kept for the backward pass must not change.
    mean, variance = (None if v is None else v.clone() for v in (fixed.mean, fixed.variance))
    return Outputs(*_Train.apply(how, x, gamma, beta, *fixed._replace(mean=mean, variance=variance)))


def compiled(step: Any) -> Any:
    """``step``, or the compiled kernels where they take the call."""
    return functools.partial(_by_kernels, step)


def _by_kernels(step: Any, task: Any, x: Any, mask: Any, gamma: Any, beta: Any, state: Any) -> Any:
    kept, rule = task.plan.kept, task.rule
    plain = rule.renorm is None and task.size is None and task.gather is None
    if plain and len(kept) == 1 and x.dim() > 1 and x.dtype is DTYPES.get(task.narrow) and _shared(mask, kept[0]):
        counted = None if mask is None else _channels_second(mask, kept[0])
        found = fast.normalize(_channels_second(x, kept[0]), gamma, beta, NormalizeHow(rule.epsilon), counted)
        if found is not None:
            return _followed(rule, state, kept[0], *found)
    return step(task, x, mask, gamma, beta, state)


def _shared(mask: Any, axis: int) -> bool:
    # One that lies along the channels counts other elements in each of them: the kernels know one count.
    return mask is None or mask.shape[axis] == 1


def _followed(rule: Any, state: Any, axis: int, y: Any, batch: Moments) -> tuple[Any, Any, Any]:
    dtype = state["moving_mean"].dtype
    mean, variance = (v.reshape(-1).to(dtype) for v in (batch.mean, batch.variance))
    state, skipped = training.update(torch, rule, state, once(Moments(batch.count, mean, None, variance)))
    return y if axis == 1 else y.movedim(1, axis), state, skipped.to(dtype) if skipped.any() else None


def _channels_second(x: Any, axis: int) -> Any:
    return x if axis == 1 else x.movedim(axis, 1)


def infer(
    x: Any, mean: Any, variance: Any, gamma: Any, beta: Any, axes: tuple[int, ...], epsilon: float, narrow: str
) -> Any:
    """Normalise with the statistics given, by the compiled kernels; None where they do not take it."""
    kept = [axis for axis in range(x.dim()) if axis not in axes]
    if len(kept) != 1 or x.dim() < 2 or narrow != keras.backend.standardize_dtype(x.dtype):
        return None
    given = (_flat(each) for each in (mean, variance, gamma, beta))
    y = fast.infer(x.movedim(kept[0], 1), *given, NormalizeHow(epsilon), None)
    return None if y is None else y.movedim(1, kept[0])


def _flat(values: Any) -> Any:
    return None if values is None else values.reshape(-1)


def value(variable: Any) -> Any:
    """The array of a variable: one read."""
    return variable.value


def constant(variable: Any) -> Any:
    """The array of a variable, without a gradient."""
    return variable.value.detach()


def once(batch: Any) -> Any:
    """``batch``, of which nothing is counted where a checkpoint computes the layer a second time."""
    batch = counted_once(batch)
    return batch._replace(count=torch.zeros_like(batch.high)) if recomputing() else batch


def collectives() -> tuple[Collective | None, Collective | None]:
    """Over the processes of the default group."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None, None
    return _gather, _total


def _gather(value: Any) -> Any:
    rows = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, value.contiguous())
    return torch.cat(rows)


def _total(value: Any) -> Any:
    value = value.contiguous().clone()
    dist.all_reduce(value)
    return value
