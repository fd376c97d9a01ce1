"""Batch normalization of Keras 3, on the backend this process has: its layer, and its backend function."""

# Without complete types of its own:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportMissingImports=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import Any

import keras
import numpy as np

from . import Array, NormCall

__all__ = ["layer", "operation"]


def layer(call: NormCall) -> Array:
    """``keras.layers.BatchNormalization(training=False)``, with the weights set."""
    norm: Any = keras.layers.BatchNormalization(
        axis=call.axis,
        epsilon=call.epsilon,
        center=call.beta is not None,
        scale=call.gamma is not None,
        dtype=call.x.dtype.name,
    )
    norm.build(call.x.shape)
    given = (call.gamma, call.beta, call.mean, call.variance)
    norm.set_weights([array for array in given if array is not None])
    return np.asarray(keras.ops.convert_to_numpy(norm(keras.ops.convert_to_tensor(call.x), training=False)))


def operation(call: NormCall) -> Array:
    """``keras.ops.batch_normalization``."""
    tensor: Any = keras.ops.convert_to_tensor
    mean, variance = tensor(call.mean), tensor(call.variance)
    offset, scale = (None if array is None else tensor(array) for array in (call.beta, call.gamma))
    y: Any = keras.ops.batch_normalization(
        tensor(call.x), mean, variance, call.axis, offset=offset, scale=scale, epsilon=call.epsilon
    )
    return np.asarray(keras.ops.convert_to_numpy(y))
