"""Sums and moments over the processes of a group: one gather in the forward pass, one sum in the backward pass."""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from batchnorm.core import equations
from batchnorm.core.equations import Moments

__all__ = ["active_group", "merged", "sum_over"]


def active_group(group: Any) -> Any:
    """The group to synchronise over (None is everybody), or None where there is nobody to synchronise with."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    chosen = dist.group.WORLD if group is None else group
    return chosen if dist.get_world_size(chosen) > 1 else None


def merged(batch: Moments, group: Any) -> Moments:
    """The moments of the batch that is spread over the group, each part weighted by its count.

    Every process gets the same bits: all of them merge the same parts in the same order.
    """
    shape = batch.high.shape
    count = torch.as_tensor(batch.count, dtype=batch.high.dtype, device=batch.high.device)
    here = torch.stack([count.expand(shape), batch.high, batch.low, batch.variance])
    there = here.new_empty((dist.get_world_size(group), *here.shape))
    dist.all_gather(list(there.unbind(0)), here.contiguous(), group)
    return equations.merge_all(torch, Moments(*there.unbind(1)))


def sum_over(group: Any, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Each tensor summed over the group, all in one call; they have one shape. Differentiable."""
    return tuple(_SumOver.apply(torch.stack(parts), group).unbind(0))  # type: ignore[no-untyped-call]


class _SumOver(torch.autograd.Function):
    """The sum over the group; what each process adds reaches every process, so the gradient is a sum as well."""

    @staticmethod
    def forward(values: Tensor, group: Any) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _SumOver.apply(grads[0], ctx.group), None
