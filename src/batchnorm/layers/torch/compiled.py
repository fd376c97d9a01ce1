"""The kernels while torch.compile is at work: custom operators, which a compiled graph calls as they are.

``batchnorm::normalize`` is the training forward pass, ``batchnorm::normalize_backward`` its gradient. The code that
torch.compile makes of the composition in `functional` is slower where memory is the limit, but is fused with what
stands around it, and an operator costs its call. So small inputs stay with the composition (`LEAST`), and so does
inference, which is one pass over the data either way. Exported graphs hold torch's operators, never these.

A second derivative is taken through the composition.
"""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchnorm.core import equations
from batchnorm.core.equations import Moments
from batchnorm.kernels.address import address_of

from . import fast
from .activations import ACTIVATIONS as COMPOSED
from .fast import NOWHERE, run_for
from .function import REDUCED, After, How, gradients, per_channel, transformed_while_compiling
from .memory import ENABLED, FLOATS, plain, wide_type
from .run import ACTIVATIONS, MEAN, backward, forward, places_of, wide

__all__ = ["normalize", "takes"]

LEAST = 2**20
"""Elements of an input from which the operator is faster than what torch.compile makes of the composition."""
_library = torch.library.Library("batchnorm", "FRAGMENT")
_library.define(
    "normalize(Tensor x, Tensor? gamma, Tensor? beta, Tensor? residual, float epsilon, str? activation) "
    "-> (Tensor y, Tensor statistics)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "normalize_backward(Tensor grad, Tensor x, Tensor? gamma, Tensor? beta, Tensor? residual, Tensor statistics, "
    "float epsilon, str? activation) -> (Tensor dx, Tensor dgamma, Tensor dbeta, Tensor dresidual)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def takes(x: Tensor, how: How, mask: Any) -> bool:
    """Whether a call that is being compiled goes to the operator."""
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and ENABLED
        and mask is None
        and how.group is None
        and how.activation in ACTIVATIONS
        and x.device.type == "cpu"
        and x.dtype in FLOATS
        and x.numel() >= LEAST
        and not transformed_while_compiling()
    )


def normalize(x: Tensor, gamma: Any, beta: Any, residual: Any, how: How) -> tuple[Tensor, Moments]:
    """Output and the batch's statistics."""
    y, statistics = torch.ops.batchnorm.normalize(x, gamma, beta, residual, how.epsilon, how.activation)
    return y, _moments(x, statistics.detach())


def _moments(x: Tensor, statistics: Tensor) -> Moments:
    dtype, shape = wide_type(x.dtype), (1, -1) + (1,) * (x.dim() - 2)
    mean, variance = statistics[0], statistics[1]
    high = mean.to(dtype)
    low = (mean - high).to(dtype)
    return Moments(x.numel() // x.shape[1], *(each.reshape(shape) for each in (high, low, variance.to(dtype))))


@torch.library.impl(_library, "normalize", "CPU")
def _normalize(
    x: Tensor, gamma: Any, beta: Any, residual: Any, epsilon: float, activation: str | None
) -> tuple[Tensor, Tensor]:
    how = How(epsilon, activation)
    run = _run(x, gamma, beta, residual, how)
    if run is None:
        return _composed(x, gamma, beta, residual, how)
    memory, dtype = np.empty(run.plan.words), wide_type(x.dtype)
    g, b = wide(gamma, dtype), wide(beta, dtype)  # which live until the kernel is done
    y = forward(x, residual, run, address_of(memory), places_of(g, b, NOWHERE))
    return y, torch.from_numpy(memory[MEAN : MEAN + 2 * x.shape[1]].reshape(2, -1))


def _run(x: Tensor, gamma: Any, beta: Any, residual: Any, how: How) -> Any:
    """How the kernels run it; None where they do not take such operands."""
    if not (fast.ENABLED and x.numel() and all(map(plain, (x, gamma, beta, residual)))):
        return None
    if residual is not None and residual.stride() != x.stride():
        return None
    return run_for(x, how, residual is not None, None, None)


def _composed(x: Tensor, gamma: Any, beta: Any, residual: Any, how: How) -> tuple[Tensor, Tensor]:
    wide = x.to(wide_type(x.dtype))
    batch = equations.moments(torch, wide, REDUCED[x.dim()], max(1, x.numel() // x.shape[1]))
    g, b = per_channel(gamma, wide), per_channel(beta, wide)
    inverse = equations.inv_std(torch, batch.variance, how.epsilon)
    z = equations.affine(equations.standardize(wide, batch.high, batch.low, inverse), g, b)
    z = z if residual is None else z + residual
    z = z if how.activation is None else COMPOSED[how.activation].apply(z)
    mean = batch.high.double() + batch.low.double()
    return torch.empty_like(x).copy_(z), torch.stack((mean.reshape(-1), batch.variance.double().reshape(-1)))


@torch.library.register_fake("batchnorm::normalize", lib=_library)
def _(x: Tensor, gamma: Any, beta: Any, residual: Any, epsilon: float, activation: str | None) -> Any:
    return torch.empty_like(x), x.new_empty((2, x.shape[1]), dtype=torch.float64)


@torch.library.impl(_library, "normalize_backward", "CPU")
def _normalize_backward(
    grad: Tensor,
    x: Tensor,
    gamma: Any,
    beta: Any,
    residual: Any,
    statistics: Tensor,
    epsilon: float,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    how, passed = How(epsilon, activation), residual
    if activation is None:  # then the residual's gradient is the output's
        residual = None
    run = _run(x, gamma, beta, residual, how) if plain(grad) else None
    of_gamma, of_beta = (None if each is None else each.dtype for each in (gamma, beta))
    if run is None:
        batch = _moments(x, statistics)
        after = After(True, of_beta, None if residual is None else residual.dtype)
        found = gradients(grad, x, gamma, beta, residual, None, batch, how, after)
    else:
        wanted = of_gamma, of_beta, residual is not None
        found = backward(run, statistics.contiguous().data_ptr(), grad, x, gamma, beta, residual, wanted)
    dx, dgamma, dbeta, added = found
    if passed is not None and residual is None:
        added = torch.empty_like(x).copy_(grad)
    dgamma, dbeta, added = (x.new_empty(0) if each is None else each for each in (dgamma, dbeta, added))
    return _like(dx, x), dgamma, dbeta, added


def _like(values: Tensor, x: Tensor) -> Tensor:
    made = torch.empty_like(x)
    return values if values.stride() == made.stride() else made.copy_(values)


@torch.library.register_fake("batchnorm::normalize_backward", lib=_library)
def _(
    grad: Tensor,
    x: Tensor,
    gamma: Any,
    beta: Any,
    residual: Any,
    statistics: Tensor,
    epsilon: float,
    activation: str | None,
) -> Any:
    dgamma, dbeta = (x.new_empty(0) if each is None else torch.empty_like(each) for each in (gamma, beta))
    return torch.empty_like(x), dgamma, dbeta, x.new_empty(0) if residual is None else torch.empty_like(x)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, gamma, beta, residual, ctx.epsilon, ctx.activation = inputs
    ctx.added = None if residual is None else residual.dtype
    # Without an activation the residual's gradient is the output's.
    ctx.save_for_backward(x, gamma, beta, None if ctx.activation is None else residual, output[1])


def _gradient(ctx: Any, grad: Tensor, _statistics: Any) -> Any:
    x, gamma, beta, residual, statistics = ctx.saved_tensors
    how = How(ctx.epsilon, ctx.activation)
    if torch.is_grad_enabled():
        after = After(True, None if beta is None else beta.dtype, ctx.added)
        found = gradients(grad, x, gamma, beta, residual, None, _moments(x, statistics.detach()), how, after)
        return *found, None, None
    found = torch.ops.batchnorm.normalize_backward(
        grad, x, gamma, beta, residual, statistics, ctx.epsilon, ctx.activation
    )
    dx, dgamma, dbeta, added = found
    if residual is None:
        added = None if ctx.added is None else grad
    return dx, None if gamma is None else dgamma, None if beta is None else dbeta, added, None, None


torch.library.register_autograd("batchnorm::normalize", _gradient, setup_context=_keep, lib=_library)
