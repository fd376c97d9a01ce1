"""The floating-point types batch normalization meets, and what each can hold."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["is_half", "unit_roundoff"]

UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


def unit_roundoff(dtype: Any) -> float:
    """Half the distance from 1 to the next number of ``dtype`` (a dtype or its name); float32's if unknown."""
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    return UNIT_ROUNDOFF.get(name, UNIT_ROUNDOFF["float32"])


def is_half(dtype: Any) -> bool:
    """Whether ``dtype`` is float16 or bfloat16."""
    return (dtype if isinstance(dtype, str) else np.dtype(dtype).name) in ("float16", "bfloat16")
