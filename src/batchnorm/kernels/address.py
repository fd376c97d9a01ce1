"""Where an array's memory begins, without the microsecond that ``array.ctypes.data`` takes.

A NumPy array is a Python object followed by the pointer to its data: NumPy's C interface promises it to every extension
module (``PyArrayObject_fields``). Where that is not found to be so, or the interpreter is not CPython, NumPy is asked.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["address_of"]

_HEAD = object.__basicsize__
_pointer_at = ctypes.c_void_p.from_address


def _read(array: NDArray[Any]) -> int:
    return _pointer_at(id(array) + _HEAD).value or 0


def _asked(array: NDArray[Any]) -> int:
    return array.ctypes.data


def _reads_right() -> bool:
    if sys.implementation.name != "cpython" or _HEAD != 2 * ctypes.sizeof(ctypes.c_void_p):
        return False
    probes = [np.zeros(3), np.zeros((4, 5), np.int8)[1:, ::2], np.zeros(9, np.float32)[3:].reshape(2, 3).T]
    return all(_read(one) == one.ctypes.data for one in probes)


address_of = _read if _reads_right() else _asked
