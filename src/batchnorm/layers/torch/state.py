"""The running statistics of a layer: torch's buffers seen as a state of `core.training`, advanced in place.

In ``"debiased"`` mode the buffers hold the average with its initial value already taken out, so that whatever reads
them (inference, `torch.nn.utils.fusion`, an exporter, another framework) reads the right statistics; ``remaining``
tells how much the initial value would have weighed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.core import equations, training
from batchnorm.core.equations import Moments
from batchnorm.core.training import Rule, State

from .function import cast
from .recompute import counted_once

__all__ = ["DDOF", "Buffers", "advance"]

DDOF = 1  # torch stores the variance with divisor count - 1, and normalises with divisor count
INITIAL = (("moving_mean", 0.0), ("moving_variance", 1.0))


class Buffers(NamedTuple):
    """What an update writes to; every tensor but ``tracked`` has one number a channel.

    ``tracked`` counts batches, ``skipped`` the updates that the guard left out (None without a guard), ``remaining`` is
    the product of the decays (None but in debiased mode).
    """

    mean: Tensor
    variance: Tensor
    tracked: Tensor | None = None
    skipped: Tensor | None = None
    remaining: Tensor | None = None


def advance(buffers: Buffers, batch: Moments, epsilon: float, momentum: float | None) -> None:
    """One update of the buffers, in place; a momentum of None is the plain mean over all batches."""
    dtype = torch.promote_types(batch.high.dtype, buffers.mean.dtype)
    if torch.compiler.is_compiling() and not isinstance(batch.count, Tensor):
        # With a dynamic batch size the count is a symbol, and only a tensor can hold it.
        batch = batch._replace(count=torch.full((1,), batch.count, dtype=dtype, device=batch.high.device))
    batch = counted_once(batch)
    flat = Moments(*(cast(each.reshape(-1), dtype) if isinstance(each, Tensor) else each for each in batch))
    state: State = {"moving_mean": cast(buffers.mean, dtype), "moving_variance": cast(buffers.variance, dtype)}
    decay: Any = 1 - momentum if momentum is not None else _cumulative_decay(buffers, dtype)
    guard = buffers.skipped is not None
    if buffers.remaining is None:
        rule = _rule(epsilon, decay, "moving", guard)
        new, skipped = training.update(torch, rule, state, flat)
    else:
        rule = _rule(epsilon, decay, "debiased", guard)
        new, skipped = _advance_debiased(rule, state, flat, cast(buffers.remaining, dtype))
    _write(buffers, new, skipped, flat.count)


def _advance_debiased(rule: Rule, state: State, batch: Moments, remaining: Tensor) -> tuple[State, Any]:
    biased = {name: equations.decayed(initial, state[name], remaining) for name, initial in INITIAL}
    new, skipped = training.update(torch, rule, {**biased, "remaining": remaining}, batch)
    mean, variance = training.inference_statistics(torch, rule, new)
    return {"moving_mean": mean, "moving_variance": variance, "remaining": new["remaining"]}, skipped


def _cumulative_decay(buffers: Buffers, dtype: torch.dtype) -> Any:
    if buffers.tracked is None:
        return 1.0
    # Channel by channel: what the guard left out does not weigh.
    updates = buffers.tracked if buffers.skipped is None else (buffers.tracked - buffers.skipped).clamp(min=0)
    return updates.to(dtype) / (updates + 1)


def _rule(epsilon: float, decay: Any, statistics: Any, guard: bool) -> Rule:
    return Rule(epsilon=epsilon, decay=decay, ddof=DDOF, statistics=statistics, guard=guard)


def _write(buffers: Buffers, new: State, skipped: Tensor, count: Any) -> None:
    tracked = buffers.tracked
    counted = None
    if tracked is not None:
        counted = (count > 1).any().to(tracked.dtype) if isinstance(count, Tensor) else int(count > 1)
    values = (new["moving_mean"], new["moving_variance"], counted, skipped, new.get("remaining"))
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        _Store.apply(*buffers, *values)  # type: ignore[no-untyped-call]
        return
    _store(*buffers, *values)


def _store(mean: Tensor, variance: Tensor, tracked: Any, skips: Any, remaining: Any, *values: Any) -> None:
    new_mean, new_variance, counted, skipped, new_remaining = values
    mean.copy_(new_mean)
    variance.copy_(new_variance)
    if tracked is not None:
        tracked.add_(counted)
    if skips is not None:
        skips.add_(skipped)
    if remaining is not None:
        remaining.copy_(new_remaining)


class _Store(torch.autograd.Function):
    """`_store` below the transforms of torch.func, which refuse to write to a tensor they have not been given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors: Any) -> Tensor:
        try:
            _store(*tensors)
        except RuntimeError as error:
            raise RuntimeError(
                "batch_norm: vmap got a batched input while running_mean and running_var, which are updated in place, "
                "are not batched. Give each model its own buffers (torch.func.stack_module_state), or none "
                "(torch.func.replace_all_batch_norm_modules_, track_running_stats=False)."
            ) from error
        return tensors[0].new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None,) * 10
