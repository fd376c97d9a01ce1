"""Batch normalization of Flax: the NNX layer."""

# Without complete types of its own:
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from . import Array, NormCall

__all__ = ["normalize"]


def normalize(call: NormCall) -> Array:
    """``flax.nnx.BatchNorm(use_running_average=True)``, with its variables set."""
    norm: Any = nnx.BatchNorm(
        call.mean.size,
        use_running_average=True,
        axis=call.axis,
        epsilon=call.epsilon,
        use_bias=call.beta is not None,
        use_scale=call.gamma is not None,
        dtype=call.x.dtype,
        param_dtype=call.x.dtype,
        rngs=nnx.Rngs(0),
    )
    norm.mean.set_value(jnp.asarray(call.mean))
    norm.var.set_value(jnp.asarray(call.variance))
    for variable, array in ((norm.scale, call.gamma), (norm.bias, call.beta)):
        if array is not None:
            variable.set_value(jnp.asarray(array))
    return np.asarray(norm(jnp.asarray(call.x)))
