"""Batch normalization of TensorFlow: ``tf.nn.batch_normalization``."""

# Without complete types of its own:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportMissingImports=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import Any

import tensorflow as tf

from . import Array, NormCall
from .layout import broadcast

__all__ = ["normalize"]


def normalize(call: NormCall) -> Array:
    """``tf.nn.batch_normalization``, its parameters shaped to broadcast over ``x``."""
    mean, variance, offset, scale = (
        broadcast(array, call) for array in (call.mean, call.variance, call.beta, call.gamma)
    )
    norm: Any = tf.nn.batch_normalization
    return norm(tf.constant(call.x), mean, variance, offset, scale, call.epsilon).numpy()
