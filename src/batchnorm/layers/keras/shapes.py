"""Shapes at the layer's door: counts, masks and virtual batches, also where a length is only known at run time."""

# Keras ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from batchnorm.core.plan import Plan, mask_shape, plan

__all__ = ["Parts", "counted", "full_mask", "in_parts", "joined", "layout", "static_shape"]

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
    """``mask`` at the rank of ``x``, True where an element counts, 1 on the channel axes and full on the others."""
    aligned, full = mask_shape(static_shape(mask), static_shape(x), kept, who)
    mask = ops.cast(mask, "bool")
    if len(mask.shape) != len(aligned):
        for i in kept:
            mask = ops.expand_dims(mask, i)
    if aligned == full and None not in full:
        return mask
    lengths = ops.shape(x)
    return ops.broadcast_to(mask, tuple(1 if i in kept else n for i, n in enumerate(lengths)))


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
    y = ops.reshape(y, (-1, *ops.shape(y)[2:]))
    return y[: parts.samples] if parts.padded else y


def _padded(value: Any, missing: Any) -> Any:
    zeros = ops.zeros((missing, *ops.shape(value)[1:]), dtype=value.dtype)
    return ops.concatenate([value, zeros], axis=0)


def _cut(value: Any, size: int) -> Any:
    return ops.reshape(value, (-1, size, *ops.shape(value)[1:]))
