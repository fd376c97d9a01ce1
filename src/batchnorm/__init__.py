"""Batch normalization you can understand, trust, repair and run fast.

``import batchnorm as bn`` imports NumPy and nothing heavier; every name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchnorm import testing
    from batchnorm.api.checking import check
    from batchnorm.api.comparing import diff
    from batchnorm.api.explaining import explain, explain_arrays
    from batchnorm.api.folding import fold
    from batchnorm.api.freezing import freeze, unfreeze
    from batchnorm.api.loading import list_layers, load
    from batchnorm.api.recalibrating import recalibrate
    from batchnorm.api.rulebook import rules
    from batchnorm.api.verifying import verify
    from batchnorm.core.accumulator import Accumulator, merge_moments
    from batchnorm.errors import (
        ArgumentError,
        BatchnormError,
        MissingExtra,
        ModelFileError,
        NoBatchNorm,
        Refused,
        UnknownLayer,
    )
    from batchnorm.kernels.on_arrays import batch_norm, batch_norm_grad, moments, normalize
    from batchnorm.layers.fitting import SGD
    from batchnorm.layers.numpy import BatchNormalization

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Accumulator",
    "ArgumentError",
    "BatchNormalization",
    "BatchnormError",
    "MissingExtra",
    "ModelFileError",
    "NoBatchNorm",
    "Refused",
    "UnknownLayer",
    "__version__",
    "batch_norm",
    "batch_norm_grad",
    "check",
    "diff",
    "explain",
    "explain_arrays",
    "fold",
    "freeze",
    "list_layers",
    "load",
    "merge_moments",
    "moments",
    "normalize",
    "recalibrate",
    "rules",
    "testing",
    "unfreeze",
    "verify",
]

HOMES = {
    "api.checking": ("check",),
    "api.comparing": ("diff",),
    "api.explaining": ("explain", "explain_arrays"),
    "api.folding": ("fold",),
    "api.freezing": ("freeze", "unfreeze"),
    "api.loading": ("list_layers", "load"),
    "api.recalibrating": ("recalibrate",),
    "api.rulebook": ("rules",),
    "api.verifying": ("verify",),
    "core.accumulator": ("Accumulator", "merge_moments"),
    "errors": (
        "ArgumentError",
        "BatchnormError",
        "MissingExtra",
        "ModelFileError",
        "NoBatchNorm",
        "Refused",
        "UnknownLayer",
    ),
    "kernels.on_arrays": ("batch_norm", "batch_norm_grad", "moments", "normalize"),
    "layers.fitting": ("SGD",),
    "layers.numpy": ("BatchNormalization",),
}
_HOME = {name: module for module, names in HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "testing":
        return import_module("batchnorm.testing")
    if name not in _HOME:
        raise AttributeError(f"module 'batchnorm' has no attribute {name!r}")
    value = getattr(import_module(f"batchnorm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
