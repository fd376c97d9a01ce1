"""Training and inference of CPU tensors by the compiled kernels, in eager mode.

What a kernel does not cover comes back as None, and is left to the composition of torch's operations in `function` and
`functional`: the same mathematics, which torch.func, forward mode, tracing and a second derivative can follow.
"""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from batchnorm.core.equations import Moments
from batchnorm.kernels import cpu
from batchnorm.kernels.block import SLOTS
from batchnorm.kernels.cpu import View

from .function import After, How, gradients
from .memory import ENABLED, NAMES, empty, in_eager_mode, plain, view, walks, wide_type
from .state import DDOF, Buffers, advance

__all__ = ["infer", "normalize", "train"]

ACTIVATIONS = {None: "identity", "relu": "relu", "relu6": "relu6", "leaky_relu": "leaky_relu", "silu": "silu"}
"""What the kernels call the activations that they have."""
MEAN, HERE, NOTHING = 8 * SLOTS, 0, (0, 0, 0, 0, 0, 0.0, 1.0)
STORED = {torch.float32: 1, torch.float64: 2}
"""As in `kernels.direct`, which imports Numba."""


class _Call(NamedTuple):
    """What a call is beside its tensors.

    ``memory`` holds mean and variance of the channels, in float64, ``MEAN`` bytes from its beginning; ``strides`` are
    those of the output; ``stored`` is where statistics come from that are given.
    """

    how: How
    strides: tuple[int, ...]
    memory: Tensor
    training: bool
    number: int
    mask: Any = None
    recipe: Any = None
    stored: Any = None
    moving: Any = None


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
    found = None if how.group is not None else _planned("training", x, gamma, beta, residual, how, mask)
    if found is None:
        return None
    strides, recipe = found
    flags, count = None, recipe.count
    if mask is not None:
        flags = mask[:, 0].numpy()
        count = int(np.count_nonzero(flags))
        if count == 0:
            return None
    moving = None if buffers is None else _moving(buffers, momentum, count)
    memory = torch.empty(recipe.words, dtype=torch.int64)
    y = _run(x, gamma, beta, residual, mask, _Call(how, strides, memory, True, count, flags, recipe, None, moving))
    if moving is not None and buffers is not None:
        _counted(buffers, count)
    elif buffers is not None:
        advance(buffers, _moments(x, memory, count), how.epsilon, momentum)
    return y


def normalize(x: Tensor, gamma: Tensor | None, beta: Tensor | None, how: How) -> tuple[Tensor, Moments] | None:
    """Output and batch statistics, for who keeps moving statistics himself; None where the kernels do not take it."""
    found = _planned("training", x, gamma, beta, None, how, None)
    if found is None:
        return None
    strides, recipe = found
    memory = torch.empty(recipe.words, dtype=torch.int64)
    y = _run(x, gamma, beta, None, None, _Call(how, strides, memory, True, recipe.count, None, recipe))
    return y, _moments(x, memory, recipe.count)


def infer(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, how: How, residual: Any
) -> Tensor | None:
    """As `functional.infer`; None where the kernels do not take the call."""
    if mean.requires_grad or variance.requires_grad or mean.dtype != variance.dtype or mean.dtype not in STORED:
        return None
    found = _planned("inference", x, gamma, beta, residual, how, None)
    if found is None or not (plain(mean) and plain(variance) and mean.is_contiguous() and variance.is_contiguous()):
        return None
    strides, recipe = found
    stored = mean, variance, STORED[mean.dtype]
    memory = torch.empty(recipe.words, dtype=torch.int64)
    return _run(x, gamma, beta, residual, None, _Call(how, strides, memory, False, 1, None, recipe, stored))


def _planned(
    operation: Any, x: Tensor, gamma: Any, beta: Any, residual: Any, how: How, mask: Tensor | None
) -> tuple[tuple[int, ...], Any] | None:
    """Strides of the output and the recipe, or None where the kernels do not take such operands."""
    if not (ENABLED and in_eager_mode() and how.activation in ACTIVATIONS and x.dim() > 1 and x.numel()):
        return None
    if not (plain(x) and plain(gamma) and plain(beta) and plain(residual) and (mask is None or mask.is_cpu)):
        return None
    strides = x.stride()
    if residual is not None and (residual.dtype != x.dtype or residual.stride() != strides):
        return None
    adds, masked = residual is not None, mask is not None
    return _recipe(operation, x.shape, strides, x.dtype, how.activation, adds, masked, torch.get_num_threads())


@functools.lru_cache(maxsize=1024)
def _recipe(
    operation: Any,
    shape: Any,
    strides: Any,
    dtype: torch.dtype,
    activation: str | None,
    adds: bool,
    masked: bool,
    threads: int,
) -> tuple[tuple[int, ...], Any] | None:
    """What `_planned` looks up; for the way back, whose gradient lies like the output."""
    from batchnorm.kernels import block as at
    from batchnorm.kernels.direct import recipe

    out = walks(shape, strides, mask=masked)
    if out is None:
        return None
    if operation == "backward":
        slots, lie = (at.X, at.Y, at.GRAD), (strides, out, out)
        if adds:
            slots, lie = (*slots, at.RESIDUAL, at.RESIDUAL_GRAD), (*lie, strides, out)
    else:
        slots, lie = ((at.X, at.Y, at.RESIDUAL), (strides, out, strides)) if adds else ((at.X, at.Y), (strides, out))
    found = recipe(operation, shape, lie, 1, NAMES[dtype], ACTIVATIONS[activation], slots, min(threads, cpu.threads()))
    return None if found is None else (out, found)


def _moving(buffers: Buffers, momentum: float | None, count: int) -> tuple[Any, ...] | None:
    """The buffers for a kernel that updates them itself: a moving average in memory of its own. None where not."""
    mean, variance, _, skipped, remaining = buffers
    if momentum is None or remaining is not None or mean.dtype not in STORED or mean.dtype != variance.dtype:
        return None
    if not (plain(mean) and plain(variance) and mean.is_contiguous() and variance.is_contiguous()):
        return None
    counts = 0 if skipped is None else skipped.data_ptr()
    correction = count / (count - DDOF) if count > DDOF else 1.0
    double, guard = mean.dtype is torch.float64, skipped is not None
    return mean.data_ptr(), variance.data_ptr(), counts, double, guard, 1 - momentum, correction


def _counted(buffers: Buffers, count: int) -> None:
    if count > 1:
        if buffers.tracked is not None:
            buffers.tracked.add_(1)
        # The kernel wrote by address: autograd is told as if it had been copy_().
        written = (buffers.mean, buffers.variance, buffers.skipped)
        increment_version([each for each in written if each is not None and not each.is_inference()])


def _moments(x: Tensor, memory: Tensor, count: int) -> Moments:
    dtype, shape = wide_type(x.dtype), (1, -1) + (1,) * (x.dim() - 2)
    start = MEAN // 8
    both = memory[start : start + 2 * x.shape[1]].view(torch.float64).view(2, -1)
    mean, variance = both[0], both[1]
    high = mean.to(dtype)
    low = (mean - high).to(dtype)
    return Moments(count, *(each.reshape(shape) for each in (high, low, variance.to(dtype))))


def _run(x: Tensor, gamma: Any, beta: Any, residual: Any, mask: Any, call: _Call) -> Tensor:
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (gamma is not None and gamma.requires_grad)
        or (beta is not None and beta.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        return _Fast.apply(x, gamma, beta, residual, mask, call)  # type: ignore[no-untyped-call]
    return _forward(x, gamma, beta, residual, call)


def _wide(values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if values is None or (values.dtype is dtype and values.is_contiguous()):
        return values
    return values.detach().to(dtype).contiguous()


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _forward(x: Tensor, gamma: Any, beta: Any, residual: Any, call: _Call) -> Tensor:
    how, strides, memory, training, _, mask, recipe, stored, moving = call
    y = empty(x.shape, strides, x.dtype)
    dtype = wide_type(x.dtype)
    g, b = _wide(gamma, dtype), _wide(beta, dtype)
    if mask is not None:
        cpu.forward(
            view(x), view(y), *_views(call), **_given(call, g, b, residual), mask=mask, moving=_followed(x, call)
        )
        return y
    base = memory.data_ptr()
    if stored is None:
        statistics = base + MEAN, base + MEAN + 8 * recipe.channels, HERE
    else:
        statistics = stored[0].data_ptr(), stored[1].data_ptr(), stored[2]
    addresses = x.data_ptr(), y.data_ptr(), _at(residual), 0, 0
    recipe.run(base, addresses, (_at(g), _at(b)), statistics, (0, 0), how.epsilon, moving or NOTHING, training)
    return y


def _views(call: _Call) -> tuple[View, View]:
    """Mean and variance."""
    first = call.memory.data_ptr() + MEAN
    channels = call.recipe.channels
    return tuple(View(first + 8 * channels * i, (channels,), (1,), "float64") for i in (0, 1))  # type: ignore[return-value]


def _given(call: _Call, gamma: Any, beta: Any, residual: Any) -> dict[str, Any]:
    named = {"gamma": gamma, "beta": beta, "residual": residual}
    given: dict[str, Any] = {name: None if each is None else view(each) for name, each in named.items()}
    return {**given, "axis": 1, "epsilon": call.how.epsilon, "activation": ACTIVATIONS[call.how.activation]}


def _followed(x: Tensor, call: _Call) -> cpu.Moving | None:
    if call.moving is None:
        return None
    mean, variance, skipped, double, guard, decay, _ = call.moving
    m, v = (View(each, (x.shape[1],), (1,), "float64" if double else "float32") for each in (mean, variance))
    return cpu.Moving(m, v, decay, DDOF, guard, View(skipped, (x.shape[1],), (1,), "int64") if guard else None)


class _Fast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Any, beta: Any, residual: Any, mask: Any, call: _Call) -> Tensor:
        ctx.call = call
        ctx.added = None if residual is None else residual.dtype
        # Without an activation the residual's gradient is the output's.
        ctx.save_for_backward(x, gamma, beta, None if call.how.activation is None else residual, mask)
        return _forward(x, gamma, beta, residual, call)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, gamma, beta, residual, mask = ctx.saved_tensors
        call: _Call = ctx.call
        after = After(ctx.needs_input_grad[0], None if beta is None else beta.dtype, ctx.added)
        grad = grads[0]
        if torch.is_grad_enabled() or not (in_eager_mode() and plain(grad) and plain(x)):
            batch = _moments(x, call.memory, call.number)
            how, training = call.how, call.training
            found = gradients(grad, x, gamma, beta, residual, mask, batch, how, after, training=training)
        else:
            found = _backward(grad, x, gamma, beta, residual, call, after)
        return *found, None, None


def _backward(
    grad: Tensor, x: Tensor, gamma: Any, beta: Any, residual: Any, call: _Call, after: After
) -> tuple[Any, Any, Any, Any]:
    if grad.stride() != call.strides:
        grad = empty(x.shape, call.strides, x.dtype).copy_(grad)
    activation, dtype, masked = call.how.activation, wide_type(x.dtype), call.mask is not None
    dx = empty(x.shape, call.strides, x.dtype)
    added = None if residual is None else empty(x.shape, call.strides, x.dtype)
    sums = torch.empty((2, x.shape[1]), dtype=torch.float64)
    dgamma, dbeta = sums[0], sums[1]
    g, b = _wide(gamma, dtype), _wide(beta, dtype)
    adds, threads = residual is not None, torch.get_num_threads()
    found = _recipe("backward", x.shape, x.stride(), x.dtype, activation, adds, masked, threads)
    assert found is not None, "what went forward goes back"
    if masked:
        there = None if added is None else view(added)
        given: dict[str, Any] = {
            **_given(call, g, b, residual),
            "residual_out": there,
            "mask": call.mask,
            "training": call.training,
        }
        cpu.backward(view(grad), view(x), view(dx), *_views(call), view(dgamma), view(dbeta), **given)
    else:
        memory, first = torch.empty(found[1].words, dtype=torch.int64), call.memory.data_ptr() + MEAN
        addresses = x.data_ptr(), dx.data_ptr(), _at(residual), grad.data_ptr(), _at(added)
        statistics = first, first + 8 * x.shape[1], HERE
        places = dgamma.data_ptr(), dbeta.data_ptr()
        epsilon, training = call.how.epsilon, call.training
        found[1].run(memory.data_ptr(), addresses, (_at(g), _at(b)), statistics, places, epsilon, training=training)
    return (
        dx,
        None if gamma is None else dgamma.to(gamma.dtype),
        None if after.beta is None else dbeta.to(after.beta),
        None if after.residual is None else grad if added is None else added,
    )
