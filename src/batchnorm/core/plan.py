"""Shapes: which axes are kept, which are reduced, and what a mask must look like. Pure, cached, without data."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from batchnorm.errors import ArgumentError

__all__ = ["Plan", "mask_shape", "plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one shape is normalised.

    Attributes
    ----------
    kept, reduced : tuple of int
        The channel axes in rising order and all others; not negative.
    channel_shape : tuple of int
        Lengths of the kept axes: the shape of gamma, beta and the statistics.
    broadcast_shape : tuple of int
        ``channel_shape`` with 1 on the reduced axes.
    count : int
        Elements of each channel.
    """

    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    channel_shape: tuple[int, ...]
    broadcast_shape: tuple[int, ...]
    count: int


@functools.lru_cache(maxsize=512)
def plan(shape: tuple[int, ...], axis: int | tuple[int, ...], who: str = "batch_norm") -> Plan:
    """The plan of an input of ``shape`` whose channels lie on ``axis``.

    Raises
    ------
    ArgumentError
        An axis outside the shape, named twice, or none at all.
    """
    rank = len(shape)
    wanted = (axis,) if isinstance(axis, int) else axis
    for one in wanted:
        if not -rank <= one < rank:
            raise ArgumentError(
                f"{who}: axis must be between {-rank} and {rank - 1} for an input of shape {shape}; got {one}. "
                "Pass the axis that holds the channels."
                if rank
                else f"{who}: the input must have at least one axis, the channels; got a single number."
            )
    kept = tuple(sorted({one % rank for one in wanted}))
    if len(kept) != len(wanted) or not kept:
        raise ArgumentError(f"{who}: axis must name each channel axis once; got {axis} for an input of shape {shape}.")
    reduced = tuple(i for i in range(rank) if i not in kept)
    return Plan(
        kept=kept,
        reduced=reduced,
        channel_shape=tuple(shape[i] for i in kept),
        broadcast_shape=tuple(shape[i] if i in kept else 1 for i in range(rank)),
        count=math.prod(shape[i] for i in reduced),
    )


def mask_shape(
    mask: tuple[Any, ...], shape: tuple[Any, ...], kept: tuple[int, ...], who: str = "batch_norm"
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """How a mask lies over an input: its shape at the input's rank, and the shape it is broadcast to.

    A mask of the input's rank has length 1 on the channel axes; any other has the input's axes less the channel axes.
    On each of the others it has the input's length, or 1. A length of None is not known yet and fits any.

    Raises
    ------
    ArgumentError
        The mask does not broadcast.
    """
    full = tuple(1 if i in kept else n for i, n in enumerate(shape))
    aligned = mask
    if len(mask) != len(shape):
        lengths = iter(mask)
        aligned = tuple(1 if i in kept else next(lengths, -1) for i in range(len(shape)))
    fits = len(mask) in (len(shape), len(shape) - len(kept))
    if not fits or any(None not in (m, n) and m not in (1, n) for m, n in zip(aligned, full, strict=True)):
        without = tuple(n for i, n in enumerate(shape) if i not in kept)
        raise ArgumentError(
            f"{who}: mask must have the shape {without} (the input's, less its channel axes) or broadcast to {full}, "
            f"for an input of shape {shape} with channels on axis {kept[0] if len(kept) == 1 else kept}; got {mask}."
        )
    return aligned, full
