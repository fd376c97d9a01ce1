"""The activations that a layer can apply in the same operation, each with its derivative.

Both are differentiable torch operations of the pre-activation ``z``, so that double backward needs nothing more. The
derivative is written out, rather than recorded, because the backward pass recomputes ``z`` from the layer's input: only
the inputs are kept for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its customary name

from batchnorm.errors import ArgumentError

__all__ = ["ACTIVATIONS", "Activation", "activation"]


class Activation(NamedTuple):
    """``apply(z)`` and its derivative ``slope(z)``."""

    apply: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _relu_slope(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


def _relu6_slope(z: Tensor) -> Tensor:
    return ((z > 0) & (z < 6)).to(z.dtype)


def _leaky_slope(z: Tensor) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), 0.01)  # of two numbers it would be a float32 0.01, also for float64


def _silu_slope(z: Tensor) -> Tensor:
    share = torch.sigmoid(z)
    return share * (1 + z * (1 - share))


def _gelu_slope(z: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density


def _hardswish_slope(z: Tensor) -> Tensor:
    inside = z / 3 + 0.5
    return torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, inside))


def _tanh_slope(z: Tensor) -> Tensor:
    value = torch.tanh(z)
    return 1 - value * value


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(F.relu, _relu_slope),
    "relu6": Activation(F.relu6, _relu6_slope),
    "leaky_relu": Activation(F.leaky_relu, _leaky_slope),
    "silu": Activation(F.silu, _silu_slope),
    "gelu": Activation(F.gelu, _gelu_slope),
    "hardswish": Activation(F.hardswish, _hardswish_slope),
    "tanh": Activation(torch.tanh, _tanh_slope),
}


def activation(name: str | None, who: str) -> str | None:
    """``name``, checked.

    Raises
    ------
    ArgumentError
        No activation of that name.
    """
    if name is None or name in ACTIVATIONS:
        return name
    known = ", ".join(sorted(ACTIVATIONS))
    raise ArgumentError(
        f"{who}: activation must be None or one of {known}; got {name!r}. Apply any other activation to the output."
    )
