"""The one differentiable operation: normalise, scale, add, activate, with the gradient in closed form.

The batch statistics come in as constants and their derivative is part of the closed form, so forward keeps nothing but
its own inputs. Where a derivative is to be differentiated again (``create_graph``, torch.func, forward mode) the
statistics are rebuilt as differentiable functions of ``x`` (`equations.moments_around`) and the same closed form is
evaluated on them: the second derivative is then autograd's.
"""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchnorm.core import equations, training
from batchnorm.core.equations import Moments

from .activations import ACTIVATIONS
from .collective import sum_over

__all__ = ["REDUCED", "After", "How", "cast", "gradients", "normalize", "per_channel", "transformed_while_compiling"]

REDUCED = tuple((0, *range(2, rank)) for rank in range(8))
"""The axes that are summed over, by the rank of the input: all but axis 1."""


class How(NamedTuple):
    """What is neither data nor parameter: epsilon, the activation's name, and the group of a synchronised batch."""

    epsilon: float
    activation: str | None = None
    group: Any = None


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``; the same tensor where it is already (``to`` would leave its mark in an exported graph)."""
    return x if x.dtype == dtype else x.to(dtype)


def per_channel(values: Any, like: Tensor) -> Any:
    """A vector of one number a channel, in the type and at the rank of ``like``; None stays None."""
    if values is None:
        return None
    return cast(values, like.dtype).reshape((1, -1) + (1,) * (like.dim() - 2))


class After(NamedTuple):
    """What a backward pass is asked for: the gradient of x, and those of beta and the residual in these types."""

    x: bool
    beta: torch.dtype | None
    residual: torch.dtype | None


def gradients(
    grad: Tensor,
    x: Tensor,
    gamma: Any,
    beta: Any,
    residual: Any,
    mask: Any,
    batch: Moments,
    how: How,
    after: After,
    *,
    training: bool = True,
) -> tuple[Any, Any, Any, Any]:
    """Gradients of x, gamma, beta and the residual; without ``training`` the statistics are constants.

    Where they are to be differentiated again the statistics are rebuilt from ``x``.
    """
    axes = REDUCED[x.dim()]
    wide, upstream = cast(x, batch.high.dtype), cast(grad, batch.high.dtype)
    if training and (torch.is_grad_enabled() or _forward_mode()):
        batch = _differentiable(wide, batch, axes, mask, how)
    inverse = equations.inv_std(torch, batch.variance, how.epsilon)
    x_hat = equations.standardize(wide, batch.high, batch.low, inverse)
    if how.activation is not None:
        upstream = upstream * ACTIVATIONS[how.activation].slope(_before_activation(x_hat, gamma, beta, residual))
    sums = equations.parameter_gradients(torch, upstream, x_hat, axes, mask)
    dx = None
    if after.x:
        scale = inverse if gamma is None else inverse * per_channel(gamma, wide)
        whole: Any = sums if how.group is None else sum_over(how.group, sums)
        count = _divisor(batch.count)
        dx = (
            equations.input_gradient(torch, upstream, x_hat, scale, whole, count, mask)
            if training
            else upstream * scale
        )
        dx = cast(dx, x.dtype)
    dgamma = None if gamma is None else cast(sums[1].reshape(-1), gamma.dtype)
    dbeta = None if after.beta is None else cast(sums[0].reshape(-1), after.beta)
    return dx, dgamma, dbeta, None if after.residual is None else cast(upstream, after.residual)


class Normalize(torch.autograd.Function):
    """``activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual)`` with the batch's statistics.

    Inputs: x, gamma, beta, residual, mask (at the rank of x), count (of the whole batch), high, low, variance (length 1
    on the reduced axes, in the type of the arithmetic), and what is in
    `How`, one by one: torch.func takes a tuple apart.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        count: Any,
        high: Tensor,
        low: Tensor,
        variance: Tensor,
        epsilon: float,
        activation: str | None,
        group: Any,
    ) -> Tensor:
        """The output, in the dtype of ``x``."""
        scale = equations.inv_std(torch, variance, epsilon)
        if gamma is not None:
            scale = scale * per_channel(gamma, high)
        # Scaled once, by gamma * inv_std: each step here is a pass over the data.
        scaled = equations.standardize(cast(x, high.dtype), high, low, scale)
        z = _before_activation(scaled, None, beta, residual)
        return cast(z if activation is None else ACTIVATIONS[activation].apply(z), x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs: those that only the activation needs, only where there is one."""
        x, gamma, beta, residual, mask, count, high, low, variance = inputs[:9]
        ctx.how, ctx.count = How(*inputs[9:]), None if isinstance(count, Tensor) else count
        ctx.added = None if residual is None else residual.dtype
        ctx.beta_dtype = None if beta is None else beta.dtype
        if ctx.how.activation is None:
            beta = residual = None
        ctx.save_for_backward(x, gamma, beta, residual, mask, count if ctx.count is None else None, high, low, variance)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Gradients of x, gamma, beta and the residual."""
        x, gamma, beta, residual, mask, count, high, low, variance = ctx.saved_tensors
        batch = Moments(ctx.count if count is None else count, high, low, variance)
        after = After(ctx.needs_input_grad[0], ctx.beta_dtype, ctx.added)
        return *gradients(grads[0], x, gamma, beta, residual, mask, batch, ctx.how, after), *(None,) * 8


# torch asks for this signature at every call, and working it out takes longer than the arithmetic of a small layer.
vars(Normalize.forward)["__signature__"] = inspect.signature(Normalize.forward)


def normalize(x: Tensor, gamma: Any, beta: Any, residual: Any, mask: Any, batch: Moments, how: How) -> Tensor:
    """`Normalize`, or the same in plain operations where forward mode follows them.

    A custom operation's own forward mode is wrong when nested (torch 2.13: jacfwd of jacfwd of x**3 gives 0), and its
    gradient is where torch.compile traces a transform of torch.func.
    """
    if residual is x:
        residual = x.view_as(x)  # torch.compile takes no tensor twice
    if not (_forward_mode() or transformed_while_compiling()):
        return Normalize.apply(x, gamma, beta, residual, mask, *batch, *how)  # type: ignore[no-untyped-call]
    wide = cast(x, batch.high.dtype)
    again = _differentiable(wide, batch, REDUCED[x.dim()], mask, how)
    inverse = equations.inv_std(torch, again.variance, how.epsilon)
    z = _before_activation(equations.standardize(wide, again.high, again.low, inverse), gamma, beta, residual)
    return cast(z if how.activation is None else ACTIVATIONS[how.activation].apply(z), x.dtype)


def transformed_while_compiling() -> bool:
    """Whether torch.compile traces the inside of `torch.func.grad`, `vmap` or their like."""
    return torch.compiler.is_compiling() and _inside_a_transform()


@torch.compiler.assume_constant_result
def _inside_a_transform() -> bool:
    # torch.compile enters the transforms that it traces, and traces anew where there are others.
    return torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


def _forward_mode() -> bool:
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]


def _before_activation(x_hat: Tensor, gamma: Any, beta: Any, residual: Any) -> Tensor:
    z = equations.affine(x_hat, per_channel(gamma, x_hat), per_channel(beta, x_hat))
    return z if residual is None else z + cast(residual, z.dtype)


def _divisor(count: Any) -> Any:
    return count.clamp(min=1) if isinstance(count, Tensor) else count


def _differentiable(wide: Tensor, batch: Moments, axes: tuple[int, ...], mask: Any, how: How) -> Moments:
    def total(part: Tensor) -> Tensor:
        return sum_over(how.group, (part,))[0]

    again = equations.moments_around(
        torch, wide, batch.high, axes, _divisor(batch.count), mask, total=how.group and total
    )
    if not isinstance(batch.count, Tensor):
        return again
    # Where nothing was counted the statistics were not this batch's: they stay the constants they are.
    return training.or_moving(torch, again._replace(count=batch.count), batch.high, batch.variance)
