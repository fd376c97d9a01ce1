"""The floating-point types batch normalization meets, and what each can hold."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["is_half", "smallest_normal", "unit_roundoff"]

UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}


def unit_roundoff(dtype: Any) -> float:
    """Half the distance from 1 to the next number of ``dtype`` (a dtype or its name); float32's if unknown."""
    return UNIT_ROUNDOFF.get(_name(dtype), UNIT_ROUNDOFF["float32"])


def smallest_normal(dtype: Any) -> float:
    """The smallest positive number of ``dtype`` with full precision; float32's if unknown."""
    return SMALLEST_NORMAL.get(_name(dtype), SMALLEST_NORMAL["float32"])


def is_half(dtype: Any) -> bool:
    """Whether ``dtype`` is float16 or bfloat16."""
    return _name(dtype) in ("float16", "bfloat16")


def _name(dtype: Any) -> str:
    return dtype if isinstance(dtype, str) else np.dtype(dtype).name
