"""Numbers as a person reads them: the digits that matter, and no others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["brief", "count", "digits", "listed", "percent", "shown"]


def shown(values: Any) -> NDArray[np.float64]:
    """The float64 nearest to the shortest decimal that round-trips each value's own type.

    float32 0.80644524 is 0.80644524097...; a person reads and retypes 0.80644524. Explanations compute with what they
    print, so that the printed arithmetic gives the printed result to the last bit. It moves a value by at most half a
    unit in the last place of its own type.
    """
    array = np.asarray(values)
    if array.dtype == np.float64 or array.dtype.kind in "iub":
        return array.astype(np.float64)
    shortest = _shortest if array.dtype.name == "bfloat16" else str
    return np.array([float(shortest(v)) for v in array.ravel()], np.float64).reshape(array.shape)


def _shortest(value: Any) -> str:
    # str() of an ml_dtypes number has six digits whether or not they are needed: 0.253906 for 0.254.
    texts = (f"{float(value):.{significant}g}" for significant in range(1, 10))
    return next((text for text in texts if type(value)(float(text)) == value), str(value))


def digits(value: float) -> str:
    """All digits of a float64, no ``.0``: ``0.80644524``, ``1``, ``1e-36``, ``9.1e+15``, ``nan``."""
    value = float(value)
    if 1e15 <= abs(value) < 1e16:
        return np.format_float_scientific(value, trim="-")  # as an integer, Python would reckon it more exactly
    text = repr(value)
    return text[:-2] if text.endswith(".0") else text


def brief(value: float, significant: int = 4) -> str:
    """To four significant digits: ``0.6155``, ``14.46``, ``1.2e-36``."""
    return f"{value:.{significant}g}"


def percent(share: float) -> str:
    """``90.4 %``; never a rounded 100 or 0."""
    if 0.9995 < share < 1:
        return "over 99.9 %"
    if share < 0.0005:
        return "under 0.1 %"
    return f"{100 * share:.3g} %"


def listed(values: Iterable[float], most: int = 6) -> str:
    """``-0.8063, 0.8063`` to four digits, with ``...`` where there are more than ``most``."""
    texts = [brief(v) for v in values]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def count(number: int, noun: str) -> str:
    """``1 channel``, ``3 channels``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
