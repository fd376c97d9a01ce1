"""NumPy arrays on their way into the kernels and back: copied where they must be, checked where they are written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import ArgumentError

from . import cpu, pool
from .cpu import View, view_of

__all__ = ["Target", "checked_out", "readable", "vector"]

Array = NDArray[Any]


def readable(x: Array) -> Array:
    """``x`` itself, or a copy where the kernels could not read it: another byte order, or elements across words."""
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    if not x.flags.aligned or any(step % x.itemsize for step in x.strides):
        return np.array(x, order="C")
    return x


def vector(values: Array, dtype: str) -> Array:
    """One number a channel, adjacent, in the type of the arithmetic."""
    return np.ascontiguousarray(values.reshape(-1), cpu.wide_dtype(dtype))


def checked_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], who: str) -> Array | None:
    """``out``, if a result of this shape and type can be written into it.

    Raises
    ------
    ArgumentError
        Another shape or dtype, or an array that is read-only.
    TypeError
        No NumPy array.
    """
    if out is None:
        return None
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{who}: out must be a NumPy array; got {type(out).__name__}.")
    given: Any = out  # pyright: ignore[reportUnknownVariableType]
    if given.shape != shape or given.dtype.newbyteorder("=") != dtype.newbyteorder("="):
        raise ArgumentError(
            f"{who}: out must have the shape {shape} and dtype {dtype} of the result; got {given.shape} and "
            f"{given.dtype}."
        )
    if not given.flags.writeable:
        raise ArgumentError(f"{who}: out is read-only. Pass an array that can be written, or leave out away.")
    return given


class Target:
    """Where a result goes: ``out`` itself, or memory of our own that is copied into it at the end.

    Of our own where ``out`` overlaps what is still to be read (other than being the very same array), or lies in memory
    as the kernels do not write: the result is then as if it had been computed before anything was written.
    """

    def __init__(self, out: Array | None, x: Array, axis: int, *read: Array, mask: bool = False) -> None:
        self.out = out
        self.x = x if read or out is not None or cpu.fits(view_of(x), axis=axis, mask=mask) else np.array(x, order="C")
        self.read = [_like(self.x, one) for one in read]
        if out is not None and self._direct(out, axis, mask):
            self.array = out
            return
        self.array = _allocated(self.x)
        if not self._fits(self.array, axis, mask):
            self.x = np.array(x, order="C")
            self.read = [np.array(one, order="C") for one in read]
            self.array = _allocated(self.x)

    def _fits(self, target: Array, axis: int, mask: bool) -> bool:
        if target.strides == self.x.strides and target.flags.c_contiguous:
            return True
        views = [view_of(one) for one in (self.x, target, *self.read)]
        return cpu.fits(*views, axis=axis, mask=mask)

    def _direct(self, out: Array, axis: int, mask: bool) -> bool:
        if not out.dtype.isnative or not out.flags.aligned or any(step % out.itemsize for step in out.strides):
            return False
        if any(step == 0 and n > 1 for step, n in zip(out.strides, out.shape, strict=True)):
            return False
        overlapping = [one for one in (self.x, *self.read) if np.may_share_memory(out, one)]
        same = all(view_of(one)[:4] == view_of(out)[:4] for one in overlapping)
        return same and self._fits(out, axis, mask)

    @property
    def in_place(self) -> bool:
        """Whether writing the result overwrites x."""
        return self.array is self.out and np.may_share_memory(self.array, self.x)

    def views(self) -> tuple[View, View, list[View]]:
        """Of x, of the array to write, and of what else is read."""
        return view_of(self.x), view_of(self.array), [view_of(one) for one in self.read]

    def done(self) -> Array:
        """The result, once the array has been written."""
        if self.out is None or self.out is self.array:
            return self.array
        self.out[...] = self.array
        return self.out


def _like(x: Array, other: Array) -> Array:
    """``other`` with the strides of ``x``, copied if it has not."""
    if other.strides == x.strides:
        return other
    copied = _allocated(x)
    copied[...] = other
    return copied


def _allocated(x: Array) -> Array:
    """New memory in the order of ``x``."""
    if x.flags.c_contiguous:
        return pool.allocate(x.shape, x.dtype)
    order = sorted(range(x.ndim), key=lambda i: -abs(x.strides[i]))
    laid = pool.allocate([x.shape[i] for i in order], x.dtype)
    return laid.transpose(np.argsort(order)) if order != list(range(x.ndim)) else laid
