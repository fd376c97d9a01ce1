"""Checks of the constructor's arguments in torch's words; every message names the layer, the value, the way out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from batchnorm.errors import ArgumentError
from batchnorm.layers import arguments

__all__ = ["CHECKS", "check_configuration"]


def _eps(who: str, name: str, value: Any) -> Any:
    if not 0 < _number(who, name, value) < math.inf:
        raise ArgumentError(
            f"{who}: {name} must be positive and finite; got {value}. It keeps a channel of variance 0 finite; "
            "torch's default is 1e-5."
        )
    return value


def _momentum(who: str, name: str, value: Any) -> Any:
    if value is not None and not 0 <= _number(who, name, value) <= 1:
        raise ArgumentError(
            f"{who}: {name} must be between 0 and 1, the share of the batch in an update, or None for the plain "
            f"mean over all batches; got {value}. Keras' momentum m is 1 - m here."
        )
    return value


def _statistics(who: str, name: str, value: Any) -> Any:
    if not isinstance(value, str) or value not in ("moving", "debiased", "cumulative"):
        raise ArgumentError(f"{who}: {name} must be 'moving', 'debiased' or 'cumulative'; got {value!r}.")
    return value


def _number(who: str, name: str, value: Any) -> float:
    if not isinstance(value, Real):
        raise ArgumentError(f"{who}: {name} must be a number; got {value!r}.")
    try:
        return float(value)
    except OverflowError:
        return math.inf


CHECKS: Mapping[str, Callable[[str, str, Any], Any]] = {
    "num_features": arguments.non_negative_int,
    "eps": _eps,
    "momentum": _momentum,
    "statistics": _statistics,
    "virtual_batch_size": arguments.positive_int_or_none,
}
"""By attribute: what the constructor and whoever sets one later go through."""


def check_configuration(who: str, eps: Any, momentum: Any, statistics: Any, virtual_batch_size: Any) -> int | None:
    """Refuse settings that are out of range; the virtual batch size as an int, or None."""
    for name, value in (("eps", eps), ("momentum", momentum), ("statistics", statistics)):
        CHECKS[name](who, name, value)
    if statistics == "debiased" and momentum is None:
        raise ArgumentError(
            f"{who}: statistics='debiased' needs a momentum; got momentum=None, the plain mean over all batches, "
            "which has no initial value in it. Pass statistics='cumulative' for that."
        )
    return arguments.positive_int_or_none(who, "virtual_batch_size", virtual_batch_size)
