"""An operation that takes batch normalizations in, and why one of the two cannot be merged with anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.graph import Operation
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ModelFileError

from .folding import Linear

__all__ = ["Edit", "Fold", "No", "opened", "unusable"]

FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Fold:
    """A batch normalization that goes into an operation, ``after`` or ``before`` which it stands."""

    layer: str
    into: str
    where: str
    norm: Operation


@dataclass(slots=True)
class Edit:
    """An operation that takes in one or more batch normalizations: what it is then."""

    operation: Operation
    linear: Linear
    dtype: np.dtype[Any]
    folds: list[Fold] = field(default_factory=list[Fold])

    def stored(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Its kernel and bias, rounded once to the type that the kernel had."""
        return self.linear.stored(self.dtype)


class No(Exception):
    """The reason why one candidate is none."""


def opened(target: Operation) -> Edit:
    """The operation as it is, its arrays read.

    Raises
    ------
    No
        Its weights are not its own, or no numbers that could be multiplied.
    """
    if target.shared:
        raise No(f"{target.name} is shared: its weights belong to another call or operation, too")
    if target.settings.get("wrapper"):
        raise No(f"{target.name} is inside a {target.settings['wrapper']}")
    if why := target.settings.get("unfoldable"):
        raise No(f"{target.name} {why}")
    if "kernel" not in target.weights:
        raise No(f"the kernel of {target.name} is no stored constant")
    if target.settings.get("bias_name") and "bias" not in target.weights:
        raise No(f"the bias of {target.name} is no stored constant")
    if any(target.settings.get(key, 1.0) != 1.0 for key in ("alpha", "beta")):
        raise No(f"{target.name} multiplies its product by a factor (alpha or beta)")
    try:
        kernel = target.weights["kernel"]()
        bias = target.weights["bias"]() if "bias" in target.weights else None
    except ModelFileError as error:
        raise No(f"the arrays of {target.name} cannot be read ({error})") from None
    if kernel.dtype.name not in FLOATS:
        raise No(f"the kernel of {target.name} is quantised ({kernel.dtype})")
    if bias is not None and bias.size > 1 and bias.shape[-1:] != (bias.size,):
        raise No(f"the bias of {target.name} has shape {bias.shape}, which is not one number a channel")
    try:
        return Edit(target, Linear.of(kernel, bias, target.settings, target.kind), kernel.dtype)
    except (ValueError, ZeroDivisionError):
        raise No(f"the kernel of {target.name} has shape {kernel.shape}, which does not go with its settings") from None


def unusable(record: LayerRecord, norm: Operation) -> str | None:
    """Why a batch normalization is no constant map, or none that can be taken out; None where it is one."""
    if record.mode == "batch-statistics":
        return "it normalises with the statistics of each batch, so that it is no constant map"
    if record.mode == "training" or norm.settings.get("training") is True:
        return "the graph calls it in training mode, with the batch's own statistics"
    if norm.settings.get("wrapper"):
        return f"it is inside a {norm.settings['wrapper']}"
    if norm.settings.get("inside"):
        return "it is inside a function of the graph"
    if norm.settings.get("unfused"):
        return "it is written as multiplications and additions already"
    if why := norm.settings.get("unfoldable"):
        return f"it {why}"
    if record.moving_mean is None or record.moving_variance is None:
        return "its mean or variance is not stored in the file"
    if record.epsilon is None:
        return "its epsilon is unknown; give it with --eps"
    return None
