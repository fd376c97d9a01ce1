"""Training and inference of CPU tensors by the compiled kernels, in eager mode.

What a kernel does not cover comes back as None, and is left to the composition of torch's operations in `function` and
`functional`: the same mathematics, which torch.func, forward mode, tracing and a second derivative can follow.
"""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from batchnorm.core.equations import Moments

from . import masked
from .function import How
from .memory import ENABLED, NAMES, follows, in_eager_mode, lies_there, plain, walks
from .run import ACTIVATIONS, FLOATS_HERE, Run, begin, kept_moments
from .state import DDOF, Buffers, advance

__all__ = ["infer", "normalize", "run_for", "train"]

NOWHERE = (0, 0, 0, 0)
"""No statistics from elsewhere."""


def train(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    how: How,
    mask: Tensor | None,
    residual: Tensor | None,
    buffers: Buffers | None,
    momentum: float | None,
) -> Tensor | None:
    """As `functional.train`; None where the kernels do not take the call, and then nothing was done."""
    if how.group is not None or not _taken(x, gamma, beta, residual, how):
        return None
    if mask is not None:
        return masked.train(x, gamma, beta, how, mask, residual, buffers, momentum) if mask.is_cpu else None
    moving = None if buffers is None else follows(buffers, momentum)
    run = run_for(x, how, residual is not None, moving, None if momentum is None else 1 - momentum)
    if run is None:
        return None
    y, memory = begin(x, gamma, beta, residual, run, NOWHERE if moving is None else moving.addresses)
    if buffers is None:
        return y
    if moving is None:
        advance(buffers, kept_moments(x, memory, run.plan.count), how.epsilon, momentum)
    elif run.plan.count > 1:
        increment_version(moving.written)
        if moving.tracked == 0 and buffers.tracked is not None:
            buffers.tracked.add_(1)
    return y


def normalize(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, how: How, mask: Tensor | None = None
) -> tuple[Tensor, Moments] | None:
    """Output and batch statistics, for who keeps moving statistics himself; None where the kernels do not take it."""
    if not _taken(x, gamma, beta, None, how):
        return None
    if mask is not None:
        return masked.normalize(x, gamma, beta, how, mask) if lies_there(mask) else None
    run = run_for(x, how, False, None, None)
    if run is None:
        return None
    y, memory = begin(x, gamma, beta, None, run, NOWHERE)
    return y, kept_moments(x, memory, run.plan.count)


def infer(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, how: How, residual: Any
) -> Tensor | None:
    """As `functional.infer`; None where the kernels do not take the call."""
    if mean.requires_grad or variance.requires_grad or mean.dtype != variance.dtype or mean.dtype not in FLOATS_HERE:
        return None
    if not _taken(x, gamma, beta, residual, how):
        return None
    if not (plain(mean) and plain(variance) and mean.is_contiguous() and variance.is_contiguous()):
        return None
    run = run_for(x, how, residual is not None, None, None, mean.dtype)
    if run is None:
        return None
    return begin(x, gamma, beta, residual, run, (mean.data_ptr(), variance.data_ptr(), 0, 0))[0]


def _taken(x: Tensor, gamma: Any, beta: Any, residual: Any, how: How) -> bool:
    """Whether the kernels take such operands, as far as it does not depend on how they lie."""
    if not (ENABLED and in_eager_mode() and how.activation in ACTIVATIONS and x.dim() > 1 and x.numel()):
        return False
    if not (plain(x) and plain(gamma) and plain(beta) and plain(residual)):
        return False
    return residual is None or (residual.dtype == x.dtype and residual.stride() == x.stride())


def run_for(
    x: Tensor, how: How, adds: bool, moving: Any, decay: float | None, given: torch.dtype | None = None
) -> Run | None:
    """How to run a call; None where the kernels cannot walk its operands as they lie.

    ``moving`` is what `memory.follows` says of the statistics to update, with their ``decay``; ``given`` is the type of
    those to normalise with.
    """
    stored = given or (torch.float32 if moving is None else moving.dtype)
    guard, kept = moving is not None and moving.guard, 1.0 if moving is None or decay is None else decay
    threads, training = torch.get_num_threads(), given is None
    found = _plans(x.shape, x.stride(), x.dtype, how, adds, training, FLOATS_HERE[stored], kept, guard, threads)
    return None if found is None else Run(*found, how, training)


@functools.lru_cache(maxsize=1024)
def _plans(
    shape: Any,
    strides: Any,
    dtype: torch.dtype,
    how: How,
    adds: bool,
    training: bool,
    stored: int,
    decay: float,
    guard: bool,
    threads: int,
) -> tuple[Any, Any, bool, Any, Any] | None:
    """Strides of input and output, like which the gradient lies; whether it is small; plans for both ways."""
    from batchnorm.kernels import block as at
    from batchnorm.kernels import cpu, pool
    from batchnorm.kernels.direct import Settings, plan

    out = walks(shape, strides)
    if out is None or not cpu.supports(NAMES[dtype]):
        return None
    settings = Settings(how.epsilon, training, stored, decay, DDOF, guard)
    named, activation, threads = NAMES[dtype], ACTIVATIONS[how.activation], min(threads, cpu.threads())
    slots, lie = ((at.X, at.Y, at.RESIDUAL), (strides, out, strides)) if adds else ((at.X, at.Y), (strides, out))
    way = "training" if training else "inference"
    forward = plan(way, shape, lie, 1, named, activation, slots, threads, settings)
    slots, lie = (at.X, at.Y, at.GRAD), (strides, out, out)
    if adds and how.activation is not None:  # else the residual's gradient is the output's
        slots, lie = (*slots, at.RESIDUAL, at.RESIDUAL_GRAD), (*lie, strides, out)
    settings = Settings(how.epsilon, training)

    def back() -> Any:
        return plan("backward", shape, lie, 1, named, activation, slots, threads, settings)

    small = math.prod(shape) * dtype.itemsize < pool.BIG
    return None if forward is None else (strides, out, small, forward, functools.cache(back))
