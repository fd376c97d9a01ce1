"""One call of a kernel and its way back, as autograd sees them."""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchnorm.core.equations import Moments
from batchnorm.kernels.address import address_of
from batchnorm.kernels.block import SLOTS

from .function import After, How, gradients
from .memory import empty, in_eager_mode, lies_there, wide_type

__all__ = ["ACTIVATIONS", "FLOATS_HERE", "MEAN", "Run", "backward", "forward", "kept_moments", "start", "wide"]

ACTIVATIONS = {None: "identity", "relu": "relu", "relu6": "relu6", "leaky_relu": "leaky_relu", "silu": "silu"}
"""What the kernels call the activations that they have."""
FLOATS_HERE = {torch.float32: 1, torch.float64: 2}
"""Types of statistics, as in `kernels.direct`, which imports Numba."""
Addresses = tuple[int, int, int, int]
MEAN = SLOTS
"""Words of a call's memory before the means; the variances follow."""


@dataclass(slots=True, eq=False)
class Run:
    """What a call is beside its tensors.

    ``strides`` are those of the input, ``out`` of the output; ``plan`` is a `direct.Plan`, ``back`` makes the one for
    the way back. ``exact`` is set where gamma and beta are known to lie as the kernels need them.
    """

    strides: tuple[int, ...]
    out: tuple[int, ...]
    plan: Any
    back: Callable[[], Any]
    how: How
    training: bool
    exact: bool = False


def start(x: Tensor, gamma: Any, beta: Any, residual: Any, run: Run, statistics: Addresses) -> tuple[Tensor, Any]:
    """The output, recorded where something needs a gradient; and the memory, which holds mean and variance.

    ``statistics`` are addresses: mean, variance, skipped updates, counted batches.
    """
    memory = np.empty(run.plan.words)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (gamma is not None and gamma.requires_grad)
        or (beta is not None and beta.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        return apply(x, gamma, beta, residual, run, memory, statistics), memory
    return forward(x, gamma, beta, residual, run, memory, statistics), memory


def kept_moments(x: Tensor, memory: Any, count: int) -> Moments:
    """The batch's statistics out of a call's memory."""
    dtype, shape = wide_type(x.dtype), (1, -1) + (1,) * (x.dim() - 2)
    both = torch.from_numpy(memory[MEAN : MEAN + 2 * x.shape[1]].reshape(2, -1))
    mean, variance = both[0], both[1]
    high = mean.to(dtype)
    low = (mean - high).to(dtype)
    return Moments(count, *(each.reshape(shape) for each in (high, low, variance.to(dtype))))


def wide(values: Any, dtype: torch.dtype) -> Any:
    """Gamma or beta as the kernels read them."""
    if values is None or (values.dtype is dtype and values.is_contiguous()):
        return values
    return values.detach().to(dtype).contiguous()


def forward(x: Tensor, gamma: Any, beta: Any, residual: Any, run: Run, memory: Any, statistics: Addresses) -> Tensor:
    """The output, by the kernel."""
    plan = run.plan
    y = empty(x, run.out)
    if not run.exact:
        dtype = wide_type(x.dtype)
        gamma, beta = wide(gamma, dtype), wide(beta, dtype)
    plan.run(
        plan.at,
        address_of(memory),
        x.data_ptr(),
        y.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        0 if gamma is None else gamma.data_ptr(),
        0 if beta is None else beta.data_ptr(),
        *statistics,
    )
    return y


class Fast(torch.autograd.Function):
    """`forward` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Any, beta: Any, residual: Any, run: Run, memory: Any, statistics: Addresses
    ) -> Tensor:
        """The output."""
        ctx.kept = run, memory, None if beta is None else beta.dtype
        if run.how.activation is None:  # then the residual's gradient is the output's, and beta has no part in any
            ctx.save_for_backward(x, gamma)
        else:
            ctx.save_for_backward(x, gamma, beta, residual)
        return forward(x, gamma, beta, residual, run, memory, statistics)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """By the kernel, or by operations where they are to be followed."""
        saved: Any = ctx.saved_tensors
        run, memory, of_beta = ctx.kept
        x, gamma, beta, residual = saved if len(saved) == 4 else (*saved, None, None)
        grad = grads[0]
        if torch.is_grad_enabled() or not (
            in_eager_mode()
            and type(grad) is Tensor
            and lies_there(grad)
            and _as_before(x, grad, run)
            and (gamma is None or lies_there(gamma))
            and (beta is None or lies_there(beta))
            and (residual is None or _as_before(residual, grad, run))
        ):
            needed = ctx.needs_input_grad
            after = After(needed[0], of_beta, x.dtype if needed[3] else None)
            batch = kept_moments(x, memory, run.plan.count)
            found = gradients(grad, x, gamma, beta, residual, None, batch, run.how, after, training=run.training)
        else:
            _, needs_gamma, needs_beta, needs_residual, *_ = ctx.needs_input_grad
            of_gamma = None if gamma is None or not needs_gamma else gamma.dtype
            wanted = of_gamma, of_beta if needs_beta else None, needs_residual
            found = backward(run, address_of(memory) + 8 * MEAN, grad, x, gamma, beta, residual, wanted)
        return *found, None, None, None


def _as_before(saved: Tensor, grad: Tensor, run: Run) -> bool:
    """Whether what was saved lies as it did: hooks on saved tensors may bring it back in another type or order."""
    return saved.stride() == run.strides and saved.nbytes == grad.nbytes and lies_there(saved)


apply: Any = super(torch.autograd.Function, Fast).apply  # pyright: ignore[reportAttributeAccessIssue]
"""`Fast.apply`, less the two microseconds in which it asks what `in_eager_mode` and `plain` have asked already."""


def backward(
    run: Run,
    statistics: int,
    grad: Tensor,
    x: Tensor,
    gamma: Any,
    beta: Any,
    residual: Any,
    wanted: tuple[Any, Any, bool],
) -> tuple[Any, Any, Any, Any]:
    """Gradients of x, gamma, beta and the residual, by the kernel.

    ``statistics`` is where the means are; ``wanted`` holds the types of gamma's and beta's gradients, None for none,
    and whether the residual's is wanted.
    """
    if grad.stride() != run.out:
        grad = empty(x, run.out).copy_(grad)
    plan = run.back()
    scratch = np.empty(plan.words)
    of_gamma, of_beta, of_residual = wanted
    dx = empty(x, run.out)
    added = None if residual is None else empty(x, run.out)
    dtype = wide_type(x.dtype)
    g, b = wide(gamma, dtype), wide(beta, dtype)
    dgamma = torch.empty_like(g) if of_gamma else None
    dbeta = torch.empty(plan.channels, dtype=dtype, device="cpu") if of_beta else None
    plan.run(
        plan.at,
        address_of(scratch),
        statistics,
        x.data_ptr(),
        dx.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        grad.data_ptr(),
        0 if added is None else added.data_ptr(),
        0 if g is None else g.data_ptr(),
        0 if b is None else b.data_ptr(),
        0 if dgamma is None else dgamma.data_ptr(),
        0 if dbeta is None else dbeta.data_ptr(),
    )
    if dgamma is not None and of_gamma is not dtype:
        dgamma = dgamma.to(of_gamma)
    if dbeta is not None and of_beta is not dtype:
        dbeta = dbeta.to(of_beta)
    return dx, dgamma, dbeta, (grad if added is None else added) if of_residual else None
