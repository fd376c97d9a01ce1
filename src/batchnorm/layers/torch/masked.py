"""Training under a mask by the compiled kernels: through `kernels.cpu`, whose view of a mask they share with NumPy."""

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
from batchnorm.kernels.cpu import View

from .function import After, How, gradients
from .memory import empty, follows, in_eager_mode, lies_as, plain, view, walks, wide_type
from .run import ACTIVATIONS, wide
from .state import DDOF, Buffers, advance

__all__ = ["normalize", "train"]


class _Call(NamedTuple):
    """What a call is beside its tensors; ``statistics`` are mean and variance, in float64.

    ``strides`` are those of the input, ``out`` of the output.
    """

    how: How
    strides: tuple[int, ...]
    out: tuple[int, ...]
    mask: Any
    counted: int
    statistics: Tensor
    moving: Any


def train(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    how: How,
    mask: Tensor,
    residual: Tensor | None,
    buffers: Buffers | None,
    momentum: float | None,
) -> Tensor | None:
    """As `fast.train`, for operands that the kernels take."""
    moving = None if buffers is None else follows(buffers, momentum)
    followed = None if moving is None or momentum is None else _followed(moving, x.shape[1], 1 - momentum)
    call = _call(x, how, mask, followed)
    if call is None:
        return None
    y: Tensor = _Masked.apply(x, gamma, beta, residual, mask, call)  # type: ignore[no-untyped-call]
    if buffers is None:
        return y
    if moving is None:
        advance(buffers, _moments(x, call), how.epsilon, momentum)
    elif call.counted > 1:
        increment_version(moving.written)
        if buffers.tracked is not None:
            buffers.tracked.add_(1)
    return y


def normalize(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, how: How, mask: Tensor
) -> tuple[Tensor, Moments] | None:
    """As `fast.normalize`, for operands that the kernels take."""
    call = _call(x, how, mask, None)
    if call is None:
        return None
    y: Tensor = _Masked.apply(x, gamma, beta, None, mask, call)  # type: ignore[no-untyped-call]
    return y, _moments(x, call)


def _call(x: Tensor, how: How, mask: Tensor, moving: Any) -> _Call | None:
    """None where the kernels cannot walk x as it lies, and where nothing is counted."""
    out = walks(x.shape, x.stride(), mask=True)
    if out is None:
        return None
    flags = mask[:, 0].numpy()
    count = int(np.count_nonzero(flags))
    statistics = torch.empty((2, x.shape[1]), dtype=torch.float64, device="cpu")
    return _Call(how, x.stride(), out, flags, count, statistics, moving) if count else None


def _followed(moving: Any, channels: int, decay: float) -> cpu.Moving:
    mean, variance, skipped, _ = moving.addresses
    name = "float64" if moving.dtype is torch.float64 else "float32"
    m, v = (View(each, (channels,), (1,), name) for each in (mean, variance))
    return cpu.Moving(m, v, decay, DDOF, moving.guard, View(skipped, (channels,), (1,), "int64") if skipped else None)


def _moments(x: Tensor, call: _Call) -> Moments:
    dtype, shape = wide_type(x.dtype), (1, -1) + (1,) * (x.dim() - 2)
    mean, variance = call.statistics[0], call.statistics[1]
    high = mean.to(dtype)
    low = (mean - high).to(dtype)
    return Moments(call.counted, *(each.reshape(shape) for each in (high, low, variance.to(dtype))))


def _given(x: Tensor, gamma: Any, beta: Any, residual: Any, call: _Call) -> dict[str, Any]:
    dtype = wide_type(x.dtype)
    named = {"gamma": wide(gamma, dtype), "beta": wide(beta, dtype), "residual": residual}
    given: dict[str, Any] = {name: None if each is None else view(each) for name, each in named.items()}
    how = {"axis": 1, "epsilon": call.how.epsilon, "activation": ACTIVATIONS[call.how.activation], "mask": call.mask}
    return given | how


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Any, beta: Any, residual: Any, mask: Any, call: _Call) -> Tensor:
        ctx.call = call
        ctx.added = None if residual is None else residual.dtype
        # Without an activation the residual's gradient is the output's.
        ctx.save_for_backward(x, gamma, beta, None if call.how.activation is None else residual, mask)
        y = empty(x, call.out)
        statistics = view(call.statistics[0]), view(call.statistics[1])
        # What `wide` makes of gamma and beta lives until the call is over.
        dtype = wide_type(x.dtype)
        gamma, beta = wide(gamma, dtype), wide(beta, dtype)
        cpu.forward(view(x), view(y), *statistics, **_given(x, gamma, beta, residual, call), moving=call.moving)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, gamma, beta, residual, mask = ctx.saved_tensors
        call: _Call = ctx.call
        after = After(ctx.needs_input_grad[0], None if beta is None else beta.dtype, ctx.added)
        grad = grads[0]
        saved = (x,) if residual is None else (x, residual)
        suits = in_eager_mode() and plain(grad) and all(lies_as(each, call.strides, grad) for each in saved)
        if torch.is_grad_enabled() or not suits:
            found = gradients(grad, x, gamma, beta, residual, mask, _moments(x, call), call.how, after)
        else:
            found = _backward(grad, x, gamma, beta, residual, call, after)
        return *found, None, None


def _backward(
    grad: Tensor, x: Tensor, gamma: Any, beta: Any, residual: Any, call: _Call, after: After
) -> tuple[Any, Any, Any, Any]:
    if grad.stride() != call.out:
        grad = empty(x, call.out).copy_(grad)
    dx, added = empty(x, call.out), None if residual is None else empty(x, call.out)
    sums = torch.empty((2, x.shape[1]), dtype=torch.float64, device="cpu")
    dtype = wide_type(x.dtype)
    g, b = wide(gamma, dtype), wide(beta, dtype)
    given = _given(x, g, b, residual, call) | {"residual_out": None if added is None else view(added)}
    places = (*call.statistics, *sums)
    cpu.backward(view(grad), view(x), view(dx), *map(view, places), **given)
    dgamma = None if gamma is None else sums[0].to(gamma.dtype)
    dbeta = None if after.beta is None else sums[1].to(after.beta)
    return dx, dgamma, dbeta, None if after.residual is None else grad if added is None else added
