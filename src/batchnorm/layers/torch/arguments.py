"""Checks of the constructor's arguments in torch's words; every message names the layer, the value, the way out."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from batchnorm.errors import ArgumentError
from batchnorm.layers import arguments

__all__ = ["check_configuration"]


def check_configuration(who: str, eps: Any, momentum: Any, statistics: Any, virtual_batch_size: Any) -> int | None:
    """Refuse settings that are out of range; the virtual batch size as an int, or None."""
    for name, value in (("eps", eps), ("momentum", 0.1 if momentum is None else momentum)):
        if not isinstance(value, Real):
            raise ArgumentError(f"{who}: {name} must be a number; got {value!r}.")
    if not 0 < eps < math.inf:
        raise ArgumentError(
            f"{who}: eps must be positive and finite; got {eps}. It keeps a channel of variance 0 finite; "
            "torch's default is 1e-5."
        )
    if momentum is not None and not 0 <= momentum <= 1:
        raise ArgumentError(
            f"{who}: momentum must be between 0 and 1, the share of the batch in an update, or None for the plain "
            f"mean over all batches; got {momentum}. Keras' momentum m is 1 - m here."
        )
    if statistics not in ("moving", "debiased", "cumulative"):
        raise ArgumentError(f"{who}: statistics must be 'moving', 'debiased' or 'cumulative'; got {statistics!r}.")
    if statistics == "debiased" and momentum is None:
        raise ArgumentError(
            f"{who}: statistics='debiased' needs a momentum; got momentum=None, the plain mean over all batches, "
            "which has no initial value in it. Pass statistics='cumulative' for that."
        )
    return arguments.positive_int_or_none(who, "virtual_batch_size", virtual_batch_size)
