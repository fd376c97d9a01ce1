"""Training and inference on tensors, without state, and the functional with the signature of `F.batch_norm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.core import equations, training
from batchnorm.core.equations import Moments
from batchnorm.core.plan import mask_shape
from batchnorm.errors import ArgumentError

from . import compiled, fast
from .activations import ACTIVATIONS
from .collective import merged
from .function import REDUCED, How, cast, normalize, per_channel
from .state import Buffers, advance

__all__ = ["ChannelMismatch", "aligned_mask", "batch_norm", "check_input", "check_spread", "infer", "train"]


class ChannelMismatch(ArgumentError, RuntimeError):
    """A tensor's length is not the number of channels; torch raises RuntimeError here, so this is one too."""


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalization with the signature and the semantics of `torch.nn.functional.batch_norm`.

    ``y = weight * (x - mean) / sqrt(variance + eps) + bias``, with the batch's statistics in training and the running
    ones otherwise.

    Parameters
    ----------
    input : Tensor
        Floating point, channels on axis 1.
    running_mean, running_var : Tensor or None
        One number a channel. In training they are updated in place:
        ``running = (1 - momentum) * running + momentum * batch``, the variance with divisor count - 1.
    weight, bias : Tensor, optional
        One number a channel; None is 1 and 0.
    training : bool
        Normalise with the batch's statistics and update the running ones.
    momentum : float
        Share of the batch in an update; not checked, as in torch.
    eps : float
        Added to the variance inside the root; positive in training, not negative otherwise.

    Returns
    -------
    Tensor
        The dtype and memory format of ``input``. Computed in float32 (float64 for float64).

    Raises
    ------
    ArgumentError
        One element per channel in training; an eps out of range; a tensor of another length than the channels (also a
        RuntimeError, as torch's is); no running statistics out of training.
    TypeError
        An input that is complex or not floating point.

    Notes
    -----
    Differs from `F.batch_norm` in three points. The variance is a corrected two-pass around the first element, so a
    constant channel gives exactly ``bias`` (torch: 109 off at x = 3.1e7). Inference subtracts the mean first (torch:
    off by 6.8e-3 at mean 1e6). An empty batch leaves the running statistics alone.

    Examples
    --------
    >>> x = torch.tensor([[1.0], [5.0]])
    >>> batch_norm(x, None, None, training=True, eps=1e-3).ravel()
    tensor([-0.9999,  0.9999])
    """
    who = "batch_norm"
    _check_functional(who, input, running_mean, running_var, weight, bias, training, eps)
    if not training:
        if running_mean is None or running_var is None:
            raise ArgumentError(
                f"{who}: running_mean and running_var must be given where training is False; got None. "
                "Pass training=True to normalise with the batch's own statistics."
            )
        return input.clone() if input.dim() < 2 else infer(input, running_mean, running_var, weight, bias, eps)
    if input.numel() == 0:
        return untouched(input, weight, bias)
    buffers = None if running_mean is None or running_var is None else Buffers(running_mean, running_var)
    return train(input, weight, bias, How(eps), buffers=buffers, momentum=momentum)


def infer(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    epsilon: float,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Normalise with the statistics given: by a compiled kernel, or plain differentiable operations."""
    done = fast.infer(x, mean, variance, gamma, beta, How(epsilon, activation), residual)
    if done is not None:
        return done
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        z = _standard_operator(x, mean, variance, gamma, beta, epsilon)
    else:
        wide = _widened(x)
        m, v, g, b = (per_channel(each, wide) for each in (mean, variance, gamma, beta))
        z = equations.normalized(torch, wide, m, v, g, b, epsilon)
    if residual is not None:
        z = z + cast(residual, z.dtype)
    return cast(z if activation is None else ACTIVATIONS[activation].apply(z), x.dtype)


def _standard_operator(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> Tensor:
    # An exported graph is for other readers: they know, fold and accelerate the one standard operator.
    gamma, beta = (None if each is None else cast(each, mean.dtype) for each in (gamma, beta))
    return torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)


def train(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    how: How,
    *,
    mask: Tensor | None = None,
    fallback: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
    buffers: Buffers | None = None,
    momentum: float | None = None,
) -> Tensor:
    """Normalise with the batch's own statistics, and let the buffers follow them, if there are any.

    ``mask`` is at the rank of ``x`` (`aligned_mask`); ``fallback`` is the mean and the variance to take where nothing
    is counted, 0 and 1 if None.
    """
    done = fast.train(x, gamma, beta, how, mask, residual, buffers, momentum)
    if done is not None:
        return done
    if compiled.takes(x, how, mask):
        y, batch = compiled.normalize(x, gamma, beta, residual, how)
        if buffers is not None:
            advance(buffers, batch, how.epsilon, momentum)
        return y
    batch = _statistics(x, how, mask)
    used = batch
    if mask is not None or how.group is not None:
        mean, variance = (per_channel(each, batch.high) for each in fallback) if fallback else (0.0, 1.0)
        used = training.or_moving(torch, batch, mean, variance)
    y = normalize(x, gamma, beta, residual, mask, used, how)
    if buffers is not None:
        advance(buffers, batch, how.epsilon, momentum)
    return y


def _statistics(x: Tensor, how: How, mask: Tensor | None) -> Moments:
    # Constants here: their part in the gradient is in the closed form.
    wide = _widened(x.detach())
    axes = REDUCED[x.dim()]
    if mask is None:
        count: Any = wide.numel() // wide.shape[1]
        batch = equations.moments(torch, wide, axes, count or 1)
    else:
        count = mask.sum(dim=axes, keepdim=True).to(wide.dtype)
        batch = equations.moments(torch, wide, axes, count.clamp(min=1), mask)
    batch = batch._replace(count=count)
    return batch if how.group is None else merged(batch, how.group)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def untouched(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, residual: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """The output for an input without elements: empty, and with zeros as gradients."""
    if x.dim() < 2:
        return x.clone()
    nothing = x.new_zeros(x.shape[1], dtype=_widened(x).dtype)
    return infer(x, nothing, nothing + 1, gamma, beta, 1.0, residual, activation)


def aligned_mask(mask: Tensor, x: Tensor, who: str) -> Tensor:
    """``mask`` at the rank of ``x``: length 1 on the channels, full length on the other axes.

    Raises
    ------
    TypeError
        A mask that is not boolean.
    ArgumentError
        A mask that does not broadcast.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:  # pyright: ignore[reportUnnecessaryIsInstance]
        got = f"dtype {mask.dtype}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{who}: mask must be a boolean tensor, True where an element counts; got {got}.")
    aligned, full = mask_shape(tuple(mask.shape), tuple(x.shape), (1,), who)
    return mask.reshape(aligned).expand(full)


def check_input(x: Any, who: str) -> None:
    """Floating point, or a TypeError that says so."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{who}: the input must be a tensor; got {type(x).__name__}. Pass torch.as_tensor(x).")
    if not x.dtype.is_floating_point:
        way_out = "Normalise the real and the imaginary part as channels." if x.dtype.is_complex else "Call .float()."
        raise TypeError(f"{who}: the input must hold real floating-point numbers; got dtype {x.dtype}. {way_out}")


def check_spread(x: Tensor, who: str) -> None:
    """More than one element per channel, or torch's error: one element has no variance."""
    if x.numel() == x.shape[1]:
        raise ArgumentError(
            f"{who}: Expected more than 1 value per channel when training, got input size {x.shape}. "
            "Use a larger batch (drop_last=True in the loader), or call eval() or freeze()."
        )


def check_length(who: str, name: str, values: Tensor | None, channels: int) -> None:
    """One number a channel."""
    if values is not None and values.numel() != channels:
        raise ChannelMismatch(f"{who}: {name} should contain {channels} elements, one a channel; got {values.numel()}.")


def _check_functional(
    who: str,
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    training: bool,
    epsilon: float,
) -> None:
    check_input(x, who)
    if not epsilon >= 0 or (training and epsilon == 0):
        bound = "positive in training" if training else "at least 0"
        raise ArgumentError(f"{who}: eps must be {bound}; got {epsilon}. torch's default is 1e-5.")
    if x.dim() < 2:
        if x.numel():
            raise ArgumentError(f"{who}: the input must have at least 2 axes, (N, C, ...); got {tuple(x.shape)}.")
        return
    for name, values in (("running_mean", mean), ("running_var", variance), ("weight", gamma), ("bias", beta)):
        check_length(who, name, values, x.shape[1])
    if training and x.numel():
        check_spread(x, who)
