"""One call of a kernel and its way back, as autograd sees them."""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchnorm.core.equations import Moments
from batchnorm.kernels.address import address_of
from batchnorm.kernels.block import SLOTS

from .function import After, How, cast, gradients
from .memory import STRIDED, empty, in_eager_mode, lies_as, lies_there, wide_type

__all__ = [
    "ACTIVATIONS",
    "FLOATS_HERE",
    "MEAN",
    "SPARE",
    "Room",
    "Run",
    "backward",
    "begin",
    "forward",
    "kept_moments",
    "places_of",
    "room",
    "start",
    "wide",
]

ACTIVATIONS = {None: "identity", "relu": "relu", "relu6": "relu6", "leaky_relu": "leaky_relu", "silu": "silu"}
"""What the kernels call the activations that they have."""
FLOATS_HERE = {torch.float32: 1, torch.float64: 2}
"""Types of statistics, as in `kernels.direct`, which imports Numba."""
Addresses = tuple[int, int, int, int]
Places = tuple[int, int, int, int, int, int]
Room = tuple[Any, int]
"""A call's memory, and where it begins."""
MEAN = SLOTS
"""Words of a call's memory before the means; the variances follow."""
SPARE = 1 << 13
"""Words of memory, at most, that are kept for the next call."""
_recording = torch.is_grad_enabled
_like = torch.empty_like


@dataclass(slots=True, eq=False)
class Run:
    """What a call is beside its tensors.

    ``strides`` are those of the input, ``out`` of the output, which is torch's own memory if it is ``small``; ``plan``
    is a `direct.Plan`, ``back`` makes the one for the way back. ``exact`` is set where gamma and beta are known to lie
    as the kernels need them; ``ready`` is then the plan for the way back, once it was needed, and ``spare`` memory for
    it that is in nobody's hands.
    """

    strides: tuple[int, ...]
    out: tuple[int, ...]
    small: bool
    plan: Any
    back: Callable[[], Any]
    how: How
    training: bool
    exact: bool = False
    ready: Any = None
    spare: list[Room] = field(default_factory=list["Room"])


def begin(x: Tensor, gamma: Any, beta: Any, residual: Any, run: Run, statistics: Addresses) -> tuple[Tensor, Any]:
    """The output, recorded where something needs a gradient; and the memory, which holds mean and variance.

    ``statistics`` are addresses: mean, variance, skipped updates, counted batches.
    """
    made, dtype = room(run.plan.words), wide_type(x.dtype)
    g, b = wide(gamma, dtype), wide(beta, dtype)  # which live until the kernel is done
    return start(x, gamma, beta, residual, run, made, places_of(g, b, statistics)), made[0]


def room(words: int) -> Room:
    """So many words of 8 bytes."""
    memory = np.empty(words)
    return memory, address_of(memory)


def start(x: Tensor, gamma: Any, beta: Any, residual: Any, run: Run, memory: Room, places: Places) -> Tensor:
    """As `begin`, with everything at hand: ``places`` are the addresses of gamma and beta as the kernel reads them."""
    if _recording() and (
        x.requires_grad
        or (gamma is not None and gamma.requires_grad)
        or (beta is not None and beta.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        return apply(x, gamma, beta, residual, (run, memory, places))
    return forward(x, residual, run, memory[1], places)


def places_of(gamma: Any, beta: Any, statistics: Addresses) -> Places:
    """Where a kernel reads gamma and beta, and the statistics behind them."""
    return 0 if gamma is None else gamma.data_ptr(), 0 if beta is None else beta.data_ptr(), *statistics


def kept_moments(x: Tensor, memory: Any, count: int) -> Moments:
    """The batch's statistics out of a call's memory, which may be used again."""
    dtype, shape = wide_type(x.dtype), (1, -1) + (1,) * (x.dim() - 2)
    both = torch.from_numpy(memory[MEAN : MEAN + 2 * x.shape[1]].reshape(2, -1).copy())
    mean, variance = both[0], both[1]
    high = mean.to(dtype)
    low = (mean - high).to(dtype)
    return Moments(count, *(each.reshape(shape) for each in (high, low, variance.to(dtype))))


def wide(values: Any, dtype: torch.dtype) -> Any:
    """Gamma or beta as the kernels read them."""
    if values is None or (values.dtype is dtype and values.is_contiguous()):
        return values
    return values.detach().to(dtype).contiguous()


def forward(x: Tensor, residual: Any, run: Run, memory: int, places: Places) -> Tensor:
    """The output, by the kernel; ``memory`` is the address of its memory."""
    y, plan = _like(x) if run.small else empty(x, run.out), run.plan
    added = 0 if residual is None else residual.data_ptr()
    plan.run(plan.at, memory, x.data_ptr(), y.data_ptr(), added, *places)
    return y


class Fast(torch.autograd.Function):
    """`forward` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Any, beta: Any, residual: Any, call: tuple[Run, Room, Places]) -> Tensor:
        """The output; one argument for all that is no tensor, as each costs autograd its time."""
        run, memory, places = call
        ctx.kept = run, memory, x.data_ptr(), places, None if beta is None else beta.dtype
        if run.how.activation is None:  # then the residual's gradient is the output's, and beta has no part in any
            ctx.save_for_backward(x, gamma)
        else:
            ctx.save_for_backward(x, gamma, beta, residual)
        return forward(x, residual, run, memory[1], places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """By the kernel, or by operations where they are to be followed."""
        saved: Any = ctx.saved_tensors
        run, memory, x_at, places, of_beta = ctx.kept
        beta = residual = None
        if len(saved) == 2:
            x, gamma = saved
        else:
            x, gamma, beta, residual = saved
        grad, needed = grads[0], ctx.needs_input_grad
        if _recording() or not in_eager_mode() or not _suits(grad, x, gamma, beta, residual, run, x_at, places):
            after = After(needed[0], of_beta, x.dtype if needed[3] else None)
            batch = kept_moments(x, memory[0], run.plan.count)
            found = gradients(grad, x, gamma, beta, residual, None, batch, run.how, after, training=run.training)
        else:
            of_gamma = None if gamma is None or not needed[1] else gamma.dtype
            wanted = of_gamma, of_beta if needed[2] else None, needed[3]
            exact = run.exact and _still_there(gamma, places[0]) and _still_there(beta, places[1])
            found = backward(run, memory[1] + 8 * MEAN, grad, x, gamma, beta, residual, wanted, exact=exact)
        return *found, None


def _suits(grad: Any, x: Tensor, gamma: Any, beta: Any, residual: Any, run: Run, x_at: int, places: Places) -> bool:
    """Whether the kernel may read these: as `lies_there` says, which what is still at its address has passed before."""
    try:
        return (
            type(grad) is Tensor
            and grad.is_cpu
            and grad.layout is STRIDED
            and not grad.is_neg()
            and (x.data_ptr() == x_at or lies_there(x))
            and x.stride() == run.strides
            and x.dtype is grad.dtype
            and x.nbytes == grad.nbytes
            and (gamma is None or gamma.data_ptr() == places[0] or lies_there(gamma))
            and (beta is None or lies_there(beta))
            and (residual is None or lies_as(residual, run.strides, grad))
            and grad.data_ptr() != 0
        )
    except RuntimeError:
        return False


def _still_there(parameter: Any, address: int) -> bool:
    """Whether it is the one that the kernel read: hooks on saved tensors may bring back another type or a view."""
    return parameter is None or parameter.data_ptr() == address


# torch's own between the engine and `backward` asks at every call what the class defines.
Fast._backward_cls.apply = Fast.backward  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
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
    *,
    exact: bool = False,
) -> tuple[Any, Any, Any, Any]:
    """Gradients of x, gamma, beta and the residual, by the kernel.

    ``statistics`` is where the means are; ``wanted`` holds the types of gamma's and beta's gradients, None for none,
    and whether the residual's is wanted; ``exact`` says that gamma and beta lie as the kernels need them.
    """
    if grad.stride() != run.out:
        grad = empty(x, run.out).copy_(grad)
    plan, small, spare = run.ready, run.small, run.spare
    if plan is None:
        plan = run.ready = run.back()
    try:
        scratch = spare.pop()
    except IndexError:
        scratch = room(plan.words)
    of_gamma, of_beta, of_residual = wanted
    dx = _like(x) if small else empty(x, run.out)
    added = None if residual is None else empty(x, run.out)
    g, b = gamma, beta
    if not exact:
        dtype = wide_type(x.dtype)
        g, b = wide(gamma, dtype), wide(beta, dtype)
    dgamma = _like(g) if of_gamma else None
    dbeta = None if of_beta is None else _like(g) if g is not None else _vector(x, plan.channels)
    plan.run(
        plan.at,
        scratch[1],
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
    if plan.words <= SPARE:
        spare.append(scratch)
    if not exact:
        dgamma = None if dgamma is None else cast(dgamma, of_gamma)
        dbeta = None if of_beta is None or dbeta is None else cast(dbeta, of_beta)
    return dx, dgamma, dbeta, (grad if added is None else added) if of_residual else None


def _vector(x: Tensor, channels: int) -> Tensor:
    return torch.empty(channels, dtype=wide_type(x.dtype), device="cpu")
