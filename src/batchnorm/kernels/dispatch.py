"""The table: which kernel takes a call, by kind of array, element type, layout and size.

====================  ==========================================  =============================  ====================
arrays                element types                               layout                         kernel
====================  ==========================================  =============================  ====================
any address           float32, float64, bfloat16, float16         channels' elements adjacent    ``channels_first``
any address           the same                                    channels adjacent              ``channels_last``
NumPy arrays          the same, up to `TINY` elements             any                            ``tiny``
NumPy arrays          anything else; no Numba installed           any                            `core.ops`
====================  ==========================================  =============================  ====================

Under `SERIAL` bytes one thread runs it. Outputs from `PAST_CACHES` bytes on are written past the caches.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import block as at
from .layout import FEW, Layout, arrange

__all__ = ["DTYPES", "Job", "View", "job", "wide_dtype"]

DTYPES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
SERIAL = 128 * 1024
"""Bytes of the input under which one thread is faster than two."""
PAST_CACHES = 16 * 1024 * 1024
"""Bytes of the output from which it is written past the caches."""
RUN = 8192
"""Elements of adjacent short planes that are taken together."""
TOGETHER = 64
"""Channels, at most, of such a run."""
DOUBLES = 16
"""Lanes of a channel's sums, at most."""


class View(NamedTuple):
    """A tensor where it lies: address, shape, strides in elements, and the name of its element type.

    What any array library can say of its tensors; whoever passes one keeps the memory alive until the call returns.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Job:
    """All that a call needs and that does not change from call to call.

    ``template`` is the `block` without addresses; ``operands`` the slots that the tensors' addresses go into, in order;
    ``phases`` what to run, each on ``parts`` threads or on one; ``work`` and ``sums`` are bytes of scratch memory.
    """

    layout: Layout
    template: NDArray[np.int64]
    operands: tuple[int, ...]
    function: int
    phases: tuple[tuple[int, bool], ...]
    parts: int
    work: int
    sums: int


def wide_dtype(dtype: str) -> str:
    """The type of the arithmetic, and of gamma and beta."""
    return "float64" if dtype == "float64" else "float32"


@functools.lru_cache(maxsize=1024)
def job(
    operation: str,
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    axis: int,
    dtype: str,
    activation: str,
    operands: tuple[int, ...],
    mask: bool,
    threads: int,
) -> Job | None:
    """How to run one operation on operands of one shape; None where an operand must be copied first.

    Parameters
    ----------
    operation : {"training", "inference"}
        What to compute.
    shape, strides, axis
        As in `arrange`; the strides of x first, then in the order of ``operands``.
    dtype, activation, mask
        As in `intrinsics.Spec`.
    operands : tuple of int
        The slot of each operand.
    threads : int
        Threads to use at most.
    """
    layout = arrange(shape, strides, axis)
    if layout is None:
        return None
    nbytes = (
        DTYPES[dtype] * layout.channels * layout.planes * (layout.length if layout.kind == "first" else layout.repeat)
    )
    parts = 1 if nbytes < SERIAL else threads
    stream = nbytes >= PAST_CACHES and layout.length * DTYPES[dtype] >= 256
    return _build(operation, layout, dtype, activation, operands, mask, stream, parts)


def _build(
    operation: str,
    layout: Layout,
    dtype: str,
    activation: str,
    operands: tuple[int, ...],
    mask: bool,
    stream: bool,
    parts: int,
) -> Job:
    from . import launch  # Numba is imported here, and not before

    template = np.zeros(at.SLOTS, np.int64)
    together = max(1, min(TOGETHER, RUN // layout.length))
    values: dict[int, Any] = {
        at.CHANNELS: layout.channels,
        at.OUTER: layout.outer,
        at.INNER: layout.inner,
        at.LENGTH: layout.length,
        at.GROUP: layout.group,
        at.SEGMENT: layout.segment,
        at.SEGMENTS: layout.segments,
        at.UNITS: layout.units,
        at.REPEAT: layout.repeat,
        at.BLOCK_CHANNELS: together,
    }
    for slot, steps in zip(operands, layout.strides, strict=True):
        values |= {slot + 1 + i: step for i, step in enumerate(steps)}
    for slot, value in values.items():
        template[slot] = value
    wide = DTYPES[wide_dtype(dtype)]
    divided = layout.channels < FEW
    sums = layout.channels * layout.units if divided else parts * together
    function = launch.compiled(f"forward {layout.kind}", dtype, activation, at.RESIDUAL in operands, mask, stream)
    return Job(
        layout,
        template,
        operands,
        function,
        _phases(operation, layout, divided, parts),
        parts,
        3 * layout.channels * wide,
        sums * 2 * DOUBLES * 8,
    )


def _phases(operation: str, layout: Layout, divided: bool, parts: int) -> tuple[tuple[int, bool], ...]:
    if operation == "inference":
        few = layout.planes * layout.channels < 8 * parts
        return (at.PREPARING, False), (at.APPLYING if few else at.PLANES, True)
    if divided:
        return (at.SUMMING, True), (at.SETTLING, True), (at.APPLYING, True)
    return ((at.WHOLE, True),)
