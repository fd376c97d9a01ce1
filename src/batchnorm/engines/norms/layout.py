"""Where an engine wants the channels: on axis 1, or parameters that broadcast."""

from __future__ import annotations

import numpy as np

from batchnorm.core.plan import plan

from . import Array, NormCall

__all__ = ["broadcast", "second", "second_back"]


def broadcast(array: Array | None, call: NormCall) -> Array | None:
    """A parameter of shape ``(channels,)`` with the rank of ``x``; None stays None."""
    return None if array is None else array.reshape(plan(call.x.shape, call.axis).broadcast_shape)


def second(call: NormCall) -> Array:
    """``x`` with its channels on axis 1, contiguous."""
    return np.ascontiguousarray(np.moveaxis(call.x, call.axis, 1))


def second_back(y: Array, call: NormCall) -> Array:
    """An output as `second` laid its input out, back in the layout of ``x``."""
    return np.moveaxis(y, 1, call.axis)
