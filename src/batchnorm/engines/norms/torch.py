"""Batch normalization of PyTorch: ``torch.nn.functional.batch_norm``."""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import torch
from torch.nn import functional

from . import Array, NormCall
from .layout import second, second_back

__all__ = ["normalize"]


def normalize(call: NormCall) -> Array:
    """``F.batch_norm(training=False)``, the channels moved to axis 1, where it wants them."""
    x = torch.from_numpy(second(call))
    mean, variance = torch.from_numpy(call.mean), torch.from_numpy(call.variance)
    weight, bias = (None if array is None else torch.from_numpy(array) for array in (call.gamma, call.beta))
    with torch.inference_mode():
        y = functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=call.epsilon)
    return second_back(y.numpy(), call)
