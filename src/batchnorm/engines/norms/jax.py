"""Batch normalization of JAX: ``jax.nn.standardize`` with the statistics given, then gamma and beta."""

# pyright: reportMissingImports=false, reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from typing import Any

import jax
import numpy as np

from . import Array, NormCall
from .layout import broadcast

__all__ = ["normalize"]


def normalize(call: NormCall) -> Array:
    """``jax.nn.standardize(x, mean=, variance=, epsilon=) * gamma + beta``, compiled."""
    arrays = [broadcast(array, call) for array in (call.mean, call.variance, call.gamma, call.beta)]
    return np.asarray(_compiled(call.x, *arrays, call.epsilon))


@jax.jit
def _compiled(x: Any, mean: Any, variance: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    # jax.numpy has no batch normalization of its own; this is its nearest operation.
    y: Any = jax.nn.standardize(x, axis=(), mean=mean, variance=variance, epsilon=epsilon)
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta
