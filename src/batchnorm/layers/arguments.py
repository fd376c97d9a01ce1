"""Checks of a layer's constructor arguments, with messages that name the layer, the value and the way out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from batchnorm.core.equations import Limits
from batchnorm.errors import ArgumentError

__all__ = [
    "dtype_name",
    "non_negative_int",
    "one_of",
    "positive",
    "positive_int",
    "positive_int_or_none",
    "renorm_limits",
    "share",
]


def positive(who: str, name: str, value: Any) -> float:
    """``value`` as a float above 0 and below infinity."""
    number = _number(who, name, value)
    if not 0 < number < float("inf"):
        raise ArgumentError(
            f"{who}: {name} must be positive and finite; got {value}. It keeps a channel of "
            "variance 0 finite; 1e-5 and 1e-3 are usual."
        )
    return number


def share(who: str, name: str, value: Any) -> float:
    """``value`` as a float from 0 to 1: the share of the old value that one update keeps."""
    number = _number(who, name, value)
    if not 0 <= number <= 1:
        raise ArgumentError(
            f"{who}: {name} must lie between 0 and 1, the share of the old value that one update keeps; got {value}. "
            "PyTorch's momentum m is 1 - m here."
        )
    return number


def one_of(who: str, name: str, value: Any, choices: Sequence[Any]) -> Any:
    """The one of ``choices`` that equals ``value``: a layer's config holds neither 1.0 nor True where 1 is meant."""
    if not isinstance(value, Hashable) or value not in choices:  # an array has no single truth value
        raise ArgumentError(f"{who}: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")
    return choices[choices.index(value)]


def positive_int(who: str, name: str, value: Any) -> int:
    """``value`` as an int of at least 1."""
    return _int_from(who, name, value, 1)


def positive_int_or_none(who: str, name: str, value: Any) -> int | None:
    """``value`` as an int of at least 1; None stays."""
    return None if value is None else positive_int(who, name, value)


def non_negative_int(who: str, name: str, value: Any) -> int:
    """``value`` as an int of at least 0."""
    return _int_from(who, name, value, 0)


def dtype_name(dtype: Any) -> str:
    """NumPy's name of a dtype, or what was given where NumPy knows none."""
    try:
        return "None" if dtype is None else np.dtype(dtype).name  # to NumPy, None is float64
    except TypeError:
        return str(dtype)


def renorm_limits(who: str, clipping: Any) -> Limits:
    """The limits of batch renormalization from Keras' ``renorm_clipping``; a missing one does not clip."""
    if clipping is not None and not isinstance(clipping, Mapping):
        raise ArgumentError(
            f"{who}: renorm_clipping must be a mapping such as {{'rmax': 3.0, 'dmax': 5.0}}; got {clipping!r}."
        )
    given: dict[str, Any] = dict(clipping or {})  # pyright: ignore[reportUnknownArgumentType]
    unknown = sorted(set(given) - {"rmin", "rmax", "dmax"}, key=str)
    if unknown:
        raise ArgumentError(f"{who}: renorm_clipping takes 'rmin', 'rmax' and 'dmax'; got {unknown}.")
    limits = Limits(**{name: _limit(who, name, value) for name, value in given.items()})
    if limits.rmin is not None and limits.rmax is not None and limits.rmax < limits.rmin:
        raise ArgumentError(
            f"{who}: renorm_clipping must have rmin <= rmax; got rmin={limits.rmin} and rmax={limits.rmax}."
        )
    return limits


def _limit(who: str, name: str, value: Any) -> float:
    number = _number(who, f"renorm_clipping[{name!r}]", value)
    if number != number:
        raise ArgumentError(f"{who}: renorm_clipping[{name!r}] must be a number; got {value}.")
    if number < 0 and name != "rmin":  # a ratio of standard deviations is above any rmin below 0, which Keras takes
        what = "the size of a shift" if name == "dmax" else "a ratio of standard deviations"
        raise ArgumentError(f"{who}: renorm_clipping[{name!r}] must be at least 0; got {number}. It limits {what}.")
    return number


def _int_from(who: str, name: str, value: Any, lowest: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = lowest - 1
    if number < lowest or number != value:
        raise ArgumentError(f"{who}: {name} must be an integer of at least {lowest}; got {value!r}.")
    return number


def _number(who: str, name: str, value: Any) -> float:
    try:
        if isinstance(value, str | bytes):  # float() would read it
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(f"{who}: {name} must be a number; got {value!r}.") from None
