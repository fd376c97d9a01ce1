"""At the door of every NumPy entry point: what an array may be, and how it is widened for the arithmetic."""

from __future__ import annotations

import operator
from typing import Any, Final, Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.errors import ArgumentError

from .plan import Plan, mask_shape, plan

__all__ = ["QUIET", "as_axis", "as_float", "full_mask", "parameter", "prepare", "result_dtype"]

Array = NDArray[Any]
Axis = int | tuple[int, ...]


class _Quiet(TypedDict):
    over: Literal["ignore"]
    invalid: Literal["ignore"]


QUIET: Final[_Quiet] = {"over": "ignore", "invalid": "ignore"}
"""For ``np.errstate``: an infinity or a NaN that was put in shows in the output; NumPy need not say it again."""


def as_float(x: ArrayLike, who: str) -> Array:
    """``x`` as a floating-point array; integers and booleans become float64.

    Raises
    ------
    TypeError
        Complex numbers (their variance is not defined here), strings, objects.
    """
    array = np.asarray(x)
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        return array
    way_out = " Pass real and imaginary parts as channels." if array.dtype.kind == "c" else ""
    raise TypeError(f"{who}: the input must hold real numbers; got dtype {array.dtype}.{way_out}")


def as_axis(axis: Any, who: str) -> Axis:
    """``axis`` as an int or a tuple of ints; NumPy integers, lists and arrays are taken.

    Raises
    ------
    ArgumentError
        It is neither an integer nor a sequence of integers, or names no axis or one twice.
    """
    try:
        chosen = operator.index(axis) if np.ndim(axis) == 0 else tuple(operator.index(one) for one in axis)
    except TypeError:
        raise ArgumentError(f"{who}: axis must be an integer or a sequence of integers; got {axis!r}.") from None
    if isinstance(chosen, tuple) and not 0 < len(chosen) == len(set(chosen)):
        raise ArgumentError(f"{who}: axis must name each channel axis once; got {axis!r}.")
    return chosen


def result_dtype(x: ArrayLike) -> np.dtype[Any]:
    """The dtype of what is computed from ``x``: its own; float64 for integers and booleans."""
    dtype = np.asarray(x).dtype
    return np.dtype(np.float64) if dtype.kind in "iub" else dtype


def prepare(x: ArrayLike, axis: Axis, mask: ArrayLike | None, who: str) -> tuple[Array, Plan, Array | None]:
    """``x`` in float64 (or wider if it is), how it is normalised, and its mask at the rank of ``x``.

    Raises
    ------
    ArgumentError
        An axis outside the input, a mask that does not broadcast.
    TypeError
        Complex or non-numeric input, a mask that is not boolean.
    """
    array = as_float(x, who)
    how = plan(array.shape, as_axis(axis, who), who)
    wide = array.astype(np.promote_types(np.float64, array.dtype) if array.dtype.kind == "f" else np.float64)
    return wide, how, None if mask is None else full_mask(mask, array.shape, how, who)


def parameter(how: Plan, who: str, name: str, value: ArrayLike) -> Array:
    """A per-channel array in float64, shaped so that it broadcasts over the input.

    Raises
    ------
    ArgumentError
        Its shape is not that of the channel axes.
    """
    array = as_float(value, who).astype(np.float64)
    if array.shape not in (how.channel_shape, how.broadcast_shape):
        raise ArgumentError(
            f"{who}: {name} must have the shape {how.channel_shape} of the channel axes; got {array.shape}."
        )
    return array.reshape(how.broadcast_shape)


def full_mask(mask: ArrayLike, shape: tuple[int, ...], how: Plan, who: str) -> Array:
    """A mask at the rank of the input, full on the reduced axes and of length 1 on the kept ones.

    Raises
    ------
    ArgumentError
        It does not broadcast.
    TypeError
        It is not boolean.
    """
    given = np.asarray(mask)
    if given.dtype != np.bool_:
        raise TypeError(f"{who}: mask must be boolean, True where an element counts; got dtype {given.dtype}.")
    aligned, full = mask_shape(given.shape, shape, how.kept, who)
    return np.broadcast_to(given.reshape(aligned), full)
