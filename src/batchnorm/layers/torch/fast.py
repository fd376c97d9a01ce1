"""Training and inference of CPU tensors by the compiled kernels, in eager mode.

What a kernel does not cover comes back as None, and is left to the composition of torch's operations in `function` and
`functional`: the same mathematics, which torch.func, forward mode, tracing and a second derivative can follow.
"""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from batchnorm.core.equations import Moments
from batchnorm.kernels import cpu

from .function import After, How, gradients
from .memory import ENABLED, empty, in_eager_mode, plain, view, walks, wide_type
from .state import DDOF, Buffers, advance

__all__ = ["infer", "train"]

ACTIVATIONS = {None: "identity", "relu": "relu", "relu6": "relu6", "leaky_relu": "leaky_relu", "silu": "silu"}
"""What the kernels call the activations that they have."""
WIDE = (torch.float32, torch.float64)


class _Call(NamedTuple):
    """What a call is beside its tensors; ``mean`` and ``variance`` are float64, one number a channel."""

    how: How
    mean: Tensor
    variance: Tensor
    strides: tuple[int, ...]
    training: bool
    mask: Any = None
    count: int = 1
    moving: cpu.Moving | None = None


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
    strides = _taken(x, gamma, beta, residual, how, mask)
    if strides is None or how.group is not None:
        return None
    flags, count = None, x.numel() // x.shape[1]
    if mask is not None:
        flags = mask[:, 0].numpy()
        count = int(np.count_nonzero(flags))
        if count == 0:
            return None
    statistics = torch.empty((2, x.shape[1]), dtype=torch.float64)
    mean, variance = statistics[0], statistics[1]
    moving = None if buffers is None else _moving(buffers, momentum)
    y = _run(x, gamma, beta, residual, mask, _Call(how, mean, variance, strides, True, flags, count, moving))
    if moving is not None:
        _counted(buffers, count)
    elif buffers is not None:
        advance(buffers, _moments(x, mean, variance, count), how.epsilon, momentum)
    return y


def infer(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, how: How, residual: Any
) -> Tensor | None:
    """As `functional.infer`; None where the kernels do not take the call."""
    strides = _taken(x, gamma, beta, residual, how, None)
    if strides is None or not (plain(mean) and plain(variance)) or mean.requires_grad or variance.requires_grad:
        return None
    return _run(x, gamma, beta, residual, None, _Call(how, mean.double(), variance.double(), strides, False))


def _taken(x: Tensor, gamma: Any, beta: Any, residual: Any, how: How, mask: Tensor | None) -> Any:
    """Strides of the output, or None where the kernels do not take such operands."""
    if not (ENABLED and in_eager_mode() and how.activation in ACTIVATIONS and x.dim() > 1 and x.numel()):
        return None
    if not (plain(x) and plain(gamma) and plain(beta) and plain(residual) and (mask is None or mask.is_cpu)):
        return None
    strides = x.stride()
    if residual is not None and (residual.dtype != x.dtype or residual.stride() != strides):
        return None
    return walks(x.shape, strides, mask=mask is not None)


def _moving(buffers: Buffers, momentum: float | None) -> cpu.Moving | None:
    """The buffers for a kernel that updates them itself: a moving average in memory of its own. None where not."""
    mean, variance, _, skipped, remaining = buffers
    if momentum is None or remaining is not None or mean.dtype not in WIDE or mean.dtype != variance.dtype:
        return None
    if not (plain(mean) and plain(variance) and mean.is_contiguous() and variance.is_contiguous()):
        return None
    guard = skipped is not None
    return cpu.Moving(view(mean), view(variance), 1 - momentum, DDOF, guard, view(skipped) if guard else None)


def _counted(buffers: Buffers, count: int) -> None:
    # The kernel wrote by address: autograd is told as if it had been copy_().
    if count > 1:
        if buffers.tracked is not None:
            buffers.tracked.add_(1)
        written = (buffers.mean, buffers.variance, buffers.skipped)
        increment_version([each for each in written if each is not None and not each.is_inference()])


def _moments(x: Tensor, mean: Tensor, variance: Tensor, count: int) -> Moments:
    dtype, shape = wide_type(x.dtype), (1, -1) + (1,) * (x.dim() - 2)
    high = mean.to(dtype)
    low = (mean - high).to(dtype)
    return Moments(count, *(each.reshape(shape) for each in (high, low, variance.to(dtype))))


def _run(x: Tensor, gamma: Any, beta: Any, residual: Any, mask: Any, call: _Call) -> Tensor:
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, gamma, beta, residual)):
        return _Fast.apply(x, gamma, beta, residual, mask, call)  # type: ignore[no-untyped-call]
    return _forward(x, gamma, beta, residual, call)


def _forward(x: Tensor, gamma: Any, beta: Any, residual: Any, call: _Call) -> Tensor:
    y = empty(x.shape, call.strides, x.dtype)
    keep, given = _options(x, gamma, beta, residual, call)
    operands = view(x), view(y), view(call.mean), view(call.variance)
    if call.training:
        cpu.forward(*operands, **given, mask=call.mask, moving=call.moving)
    else:
        cpu.inference(*operands, **given)
    del keep
    return y


def _options(x: Tensor, gamma: Any, beta: Any, residual: Any, call: _Call) -> tuple[Any, dict[str, Any]]:
    dtype = wide_type(x.dtype)
    wide = [None if each is None else each.detach().to(dtype).contiguous() for each in (gamma, beta)]
    g, b, r = (None if each is None else view(each) for each in (*wide, residual))
    how = call.how
    given = {"gamma": g, "beta": b, "residual": r, "activation": ACTIVATIONS[how.activation]}
    return wide, {**given, "axis": 1, "epsilon": how.epsilon}


class _Fast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Any, beta: Any, residual: Any, mask: Any, call: _Call) -> Tensor:
        ctx.call = call._replace(moving=None)
        ctx.added = None if residual is None else residual.dtype
        ctx.beta_dtype = None if beta is None else beta.dtype
        kept = (None, None) if call.how.activation is None else (beta, residual)
        ctx.save_for_backward(x, gamma, *kept, mask)
        return _forward(x, gamma, beta, residual, call)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, gamma, beta, residual, mask = ctx.saved_tensors
        call: _Call = ctx.call
        after = After(ctx.needs_input_grad[0], ctx.beta_dtype, ctx.added)
        if torch.is_grad_enabled() or not (in_eager_mode() and plain(grads[0])):
            batch = _moments(x, call.mean, call.variance, call.count)
            found = gradients(grads[0], x, gamma, beta, residual, mask, batch, call.how, after, training=call.training)
        else:
            found = _backward(grads[0], x, gamma, beta, residual, call, after)
        return *found, None, None


def _backward(
    grad: Tensor, x: Tensor, gamma: Any, beta: Any, residual: Any, call: _Call, after: After
) -> tuple[Any, Any, Any, Any]:
    if grad.stride() != call.strides:
        grad = empty(x.shape, call.strides, x.dtype).copy_(grad)
    activated = call.how.activation is not None
    dx = empty(x.shape, call.strides, x.dtype)
    added = empty(x.shape, call.strides, x.dtype) if activated and residual is not None else None
    sums = torch.empty((2, x.shape[1]), dtype=torch.float64)
    keep, given = _options(x, gamma, beta, residual, call)
    cpu.backward(
        view(grad), view(x), view(dx), view(call.mean), view(call.variance), view(sums[0]), view(sums[1]),
        residual_out=None if added is None else view(added), mask=call.mask, training=call.training, **given,
    )  # fmt: skip
    del keep
    dgamma = None if gamma is None else sums[0].to(gamma.dtype)
    dbeta = None if after.beta is None else sums[1].to(after.beta)
    return dx, dgamma, dbeta, None if after.residual is None else added if activated else grad
