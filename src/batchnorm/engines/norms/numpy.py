"""Batch normalization of this package: the float64 reference, and the operation on NumPy arrays."""

from __future__ import annotations

from batchnorm.core import ops
from batchnorm.core import reference as slow

from . import Array, NormCall

__all__ = ["normalize", "reference"]


def reference(call: NormCall) -> Array:
    """`batchnorm.core.reference.inference`, in float64 whatever the type of ``x``."""
    return slow.inference(call.x, call.mean, call.variance, call.gamma, call.beta, epsilon=call.epsilon, axis=call.axis)


def normalize(call: NormCall) -> Array:
    """`batchnorm.normalize`."""
    return ops.normalize(call.x, call.mean, call.variance, call.gamma, call.beta, epsilon=call.epsilon, axis=call.axis)
