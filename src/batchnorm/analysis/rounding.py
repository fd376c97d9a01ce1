"""Whether two arrays are the same numbers, or the same numbers rounded to another type."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from batchnorm.core.dtypes import unit_roundoff

__all__ = ["SAME", "common_divisor", "rounded", "same"]

Array = NDArray[np.float64]
TYPES: tuple[tuple[str, Any], ...] = (
    ("float32", np.float32),
    ("float16", np.float16),
    ("bfloat16", ml_dtypes.bfloat16),
)
SAME = "same"
LAST_DIGIT = 2 * unit_roundoff("float32")
DIVISOR_SLACK = 4 * unit_roundoff("float32")
"""Each stored variance was rounded once, their ratio once more; one for the average of two of them."""
LARGEST_COUNT = 1 / (4 * DIVISOR_SLACK)


def same(a: Array, b: Array) -> bool:
    """Whether every number is the other to the bit; NaN is NaN."""
    return bool(np.array_equal(a, b, equal_nan=True))


def rounded(a: Array, b: Array) -> tuple[str, str] | None:
    """What lies between two arrays, if it is nothing but rounding.

    Returns
    -------
    tuple of str, or None
        ``("same", "")`` where they are equal; ``("float16", "b")`` where ``b`` is ``a`` through float16, and so for the
        other types and sides; ``("float32", "")`` where they differ by a unit in float32's last place. None where they
        differ by more.
    """
    if same(a, b):
        return SAME, ""
    for name, dtype in TYPES:
        if same(_through(a, dtype), b):
            return name, "b"
        if same(a, _through(b, dtype)):
            return name, "a"
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= LAST_DIGIT * np.maximum(np.abs(a), np.abs(b))
    return ("float32", "") if bool(np.all(near | (a == b) | (np.isnan(a) & np.isnan(b)))) else None


def common_divisor(a: Array, b: Array) -> int | None:
    """The n for which every ``b / a`` is one ``n / (n - 1)``; None where there is none.

    Variances that are 0 in both, channels that never varied, are left out. An n above a million, whose ratio float32
    cannot tell from rounding, is none.
    """
    counted = (a != 0) | (b != 0)
    a, b = a[counted], b[counted]
    if not a.size or not bool(np.all((a > 0) & (b > a) & np.isfinite(b))):
        return None
    ratio = b / a
    middle = float(np.median(ratio))
    n = round(middle / (middle - 1))
    if not 2 <= n <= LARGEST_COUNT:
        return None
    # One channel alone hardly says anything for a large n: the fractions n/(n - 1) lie too close together.
    if a.size == 1 and n * n * DIVISOR_SLACK > 0.1:
        return None
    return n if bool(np.all(np.abs(ratio - n / (n - 1)) <= DIVISOR_SLACK * ratio)) else None


def _through(values: Array, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        return values.astype(dtype).astype(np.float64)
