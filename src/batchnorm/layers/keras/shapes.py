"""Shapes at the layer's door: counts, masks and virtual batches, also where a length is only known at run time."""

# Keras ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from batchnorm.core.plan import Plan, mask_shape, plan
from batchnorm.errors import ArgumentError

__all__ = [
    "Parts",
    "counted",
    "dtype_of",
    "full_mask",
    "in_parts",
    "is_one_element",
    "joined",
    "layout",
    "static_shape",
]

Shape = tuple[int | None, ...]


class Parts(NamedTuple):
    """A batch cut into virtual batches: axis 0 counts them; ``samples`` is the length before padding."""

    x: Any
    mask: Any
    samples: Any
    padded: bool


def static_shape(x: Any) -> Shape:
    """The shape as far as it is known; None for a length that is not."""
    return tuple(n if isinstance(n, int) else None for n in x.shape)


def layout(shape: Shape, axis: int | tuple[int, ...], who: str) -> Plan:
    """The plan of a shape whose lengths may be unknown: only its axes and its known channel lengths mean anything."""
    return plan(tuple(1 if n is None else n for n in shape), axis, who)


def full_mask(mask: Any, x: Any, kept: tuple[int, ...], who: str) -> Any:
    """``mask`` at the rank of ``x``, True where an element counts, full on the reduced axes.

    A mask that an earlier layer passes on lies along the leading axes of ``x``, wherever the channels are; so does any
    other that cannot be read in the way of `mask_shape`. On a channel axis it has length 1 or, if it lies along that
    axis, the channels'.
    """
    mask = ops.cast(ops.convert_to_tensor(mask), "bool")
    aligned, missing = _aligned(static_shape(mask), static_shape(x), kept, who, _passed_on(mask, x))
    for i in missing:
        mask = ops.expand_dims(mask, i)
    full = _full(aligned, static_shape(x), kept)
    if aligned == full and None not in full:
        return mask
    return ops.broadcast_to(mask, _full(ops.shape(mask), ops.shape(x), kept))


def _passed_on(mask: Any, x: Any) -> bool:
    # Not by identity: a functional model computes the mask once for the input and once for the argument.
    carried = keras.src.backend.get_keras_mask(x)
    return carried is not None and static_shape(carried) == static_shape(mask)


def _full(mask: Any, x: Any, kept: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(m if i in kept else n for i, (m, n) in enumerate(zip(mask, x, strict=True)))


def _aligned(
    mask: Shape, shape: Shape, kept: tuple[int, ...], who: str, passed_on: bool
) -> tuple[Shape, tuple[int, ...]]:
    # The mask's shape at the rank of the input, and the axes of length 1 that it lacks.
    leading = (*mask, *(1,) * (len(shape) - len(mask)))
    fits = len(leading) == len(shape) and all(
        m in (1, n) or None in (m, n) for m, n in zip(leading, shape, strict=True)
    )
    if fits and passed_on:
        return leading, tuple(range(len(mask), len(shape)))
    try:
        aligned, _ = mask_shape(mask, shape, kept, who)
    except ArgumentError:
        if fits:
            return leading, tuple(range(len(mask), len(shape)))
        raise
    return aligned, () if len(mask) == len(shape) else kept


def counted(x: Any, mask: Any, axes: tuple[int, ...], dtype: str) -> tuple[int | None, Any]:
    """Elements of each channel, as an int where the shape tells, else as an array of the rank of ``x``."""
    if mask is not None:
        return None, ops.sum(ops.cast(mask, dtype), axis=axes, keepdims=True)
    lengths = [static_shape(x)[i] for i in axes]
    if None not in lengths:
        return _product(lengths, 1), None
    known = ops.shape(x)
    count = _product([ops.cast(known[i], dtype) for i in axes], 1)
    return None, ops.reshape(count, (1,) * len(x.shape))


def is_one_element(x: Any, axes: tuple[int, ...], size: int | None) -> bool:
    """Whether each channel has one element, of the batch or of the first of its parts of ``size`` samples."""
    lengths = [static_shape(x)[i] for i in axes]
    if None in lengths:
        return False
    if size is not None and 0 in axes:
        lengths[axes.index(0)] = size  # a shorter batch is filled up
    return _product(lengths, 1) == 1


def is_large(x: Any) -> bool:
    """Whether reading the array takes longer than a condition; so is one of unknown lengths."""
    lengths = static_shape(x)
    return None in lengths or _product(list(lengths), 1) > 1 << 15


def dtype_of(x: Any) -> str:
    """The name of an array's type."""
    return keras.backend.standardize_dtype(x.dtype)


def _product(values: list[Any], start: Any) -> Any:
    # Not math.prod: torch.compile cannot trace it.
    for value in values:
        start = start * value
    return start


def in_parts(x: Any, mask: Any, size: int, kept: tuple[int, ...]) -> Parts:
    """``x`` of shape (n, ...) as (parts, size, ...), the last part filled up with masked zeros; its mask alike.

    ``mask`` is a full mask or None; a batch that is not known to fill its parts gets one.
    """
    n = static_shape(x)[0]
    samples = ops.shape(x)[0] if n is None else n
    missing = -samples % size if n is not None else ops.mod(-samples, size)
    padded = n is None or missing > 0
    if padded:
        if mask is None:
            mask = ops.ones(tuple(1 if i in kept else length for i, length in enumerate(ops.shape(x))), dtype="bool")
        x, mask = (_padded(value, missing) for value in (x, mask))
    x, mask = (None if value is None else _cut(value, size) for value in (x, mask))
    return Parts(x, mask, samples, padded)


def joined(y: Any, parts: Parts) -> Any:
    """The way back from (parts, size, ...) to (n, ...)."""
    lengths = ops.shape(y)
    y = ops.reshape(y, (lengths[0] * lengths[1], *lengths[2:]))
    return y[: parts.samples] if parts.padded else y


def _padded(value: Any, missing: Any) -> Any:
    zeros = ops.zeros((missing, *ops.shape(value)[1:]), dtype=value.dtype)
    return ops.concatenate([value, zeros], axis=0)


def _cut(value: Any, size: int) -> Any:
    lengths = ops.shape(value)  # not -1 for the number of parts: a length of 0 elsewhere would leave it open
    return ops.reshape(value, (lengths[0] // size, size, *lengths[1:]))
