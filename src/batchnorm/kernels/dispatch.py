"""The table: which kernel takes a call, by kind of array, element type, layout and size.

====================  ==========================================  =============================  ====================
arrays                element types                               layout                         kernel
====================  ==========================================  =============================  ====================
any address           float32, float64, bfloat16, float16         channels' elements adjacent    ``channels_first``
any address           the same                                    channels adjacent              ``channels_last``
any address           the same                                    the same, `FEW_ROWS`, no mask  ``few_rows``
NumPy arrays          the same, up to `TINY` elements             any                            ``tiny``
NumPy arrays          anything else; no Numba installed           any                            `core.ops`
====================  ==========================================  =============================  ====================

PyTorch's CPU tensors are "any address" at every size in eager mode; while torch.compile is at work, in training and
from `layers.torch.compiled.LEAST` elements on.

Under `SERIAL` bytes one thread runs it. Outputs from `PAST_CACHES` bytes on are written past the caches.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import block as at
from .layout import Layout, arrange

__all__ = ["DTYPES", "Job", "Operation", "View", "job", "wide_dtype"]

DTYPES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
SERIAL = 128 * 1024
"""Bytes of the input under which one thread is faster than two."""
PAST_CACHES = 16 * 1024 * 1024
"""Bytes of the output from which it is written past the caches."""
FEW_ROWS = 2048
"""Vectors of channels, at most, of a matrix that is done whole, on one thread."""
FEW = 16
"""Fewer channels than this are divided among the threads by units."""
RUN = 4096
"""Elements of adjacent short planes that are taken together."""
TOGETHER = 64
"""Channels of short planes, at most, that are taken together."""
LINE = 64
"""Bytes of a cache line: what is written past the caches is written in whole lines."""
LONG_ROW = 1024
"""Bytes of a row from which on two lines in part cost less than writing all of it through the caches: at memory size .7
to .8 of its time with 1024 bytes, but 1.1 with 512 and 1.4 with 256."""
LANES = 16
Operation = Literal["training", "inference", "backward", "moments"]


class View(NamedTuple):
    """A tensor where it lies: address, shape, strides in elements, and the name of its element type.

    What any array library can say of its tensors. ``owner`` keeps the memory alive as long as the view is.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    owner: Any = None


@dataclass(frozen=True, slots=True)
class Job:
    """All that a call needs and that does not change from call to call.

    Attributes
    ----------
    layout : Layout
        The loops.
    template : array
        The `block`, without addresses.
    operands : tuple of int
        The slots that the tensors' addresses go into, in order.
    function : int
        Address of the walk.
    phases : tuple of (phase, threads)
        What to run, in order.
    by_column, work, sums, scratch : int
        Where the coefficients by column begin; bytes of memory for all coefficients, for sums, and for everything.
    """

    layout: Layout
    template: NDArray[np.int64]
    operands: tuple[int, ...]
    function: int
    phases: tuple[tuple[int, int], ...]
    by_column: int
    work: int
    sums: int
    scratch: int


def wide_dtype(dtype: str) -> str:
    """The type of the arithmetic, and of gamma and beta."""
    return "float64" if dtype == "float64" else "float32"


@functools.lru_cache(maxsize=1024)
def job(
    operation: Operation,
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    axis: int,
    dtype: str,
    activation: str,
    operands: tuple[int, ...],
    mask: bool,
    aligned: bool,
    threads: int,
) -> Job:
    """How to run one operation on operands of one shape.

    Parameters
    ----------
    operation : {"training", "inference", "backward", "moments"}
        What to compute.
    shape, strides, axis
        As in `arrange`; the strides of x first, then in the order of ``operands``.
    dtype, activation, mask
        As in `intrinsics.Spec`.
    operands : tuple of int
        The slot of each operand; that of the output second.
    aligned : bool
        Whether the output begins on a cache line.
    threads : int
        Threads to use at most.
    """
    from . import launch  # Numba is imported here, and not before

    layout = arrange(shape, strides, axis, mask)
    assert layout is not None, "an operand that fits() refuses"
    size, wide = DTYPES[dtype], DTYPES[wide_dtype(dtype)]
    nbytes = size * layout.channels * layout.count
    if _is_small(operation, layout, mask):
        return _job_of_few_rows(operation, layout, dtype, activation, operands)
    parts = 1 if nbytes < SERIAL else threads
    stream = operation != "moments" and nbytes >= PAST_CACHES and _has_lines(layout, size, aligned)
    direction = "backward" if operation == "backward" else "forward"
    name, residual = f"{direction} {layout.kind}", at.RESIDUAL in operands
    apply = launch.leaf(f"{name} apply", dtype, activation, residual, mask and direction == "backward", stream)
    add = 0
    if direction == "backward":
        add = launch.leaf(f"{name} add", dtype, activation, residual, mask, False)
    elif operation != "inference":
        add = launch.leaf(f"{name} add", dtype, "identity", False, mask, False)
    pitch, columns = _round(layout.channels), _round(layout.length)
    together = max(1, min(TOGETHER, RUN // layout.length))
    if layout.kind == "first":
        phases = _phases_first(operation, layout, parts)
        places = parts * 2 * together if phases[0][0] == at.WHOLE else layout.channels * layout.units
        work, sums, own = at.ROWS * pitch * wide, places * 2 * LANES * 8, 0
    else:
        phases = _phases_last(operation, layout, parts)
        work, sums, own = at.ROWS * pitch * wide, layout.units * 2 * columns * 8, parts * 2 * columns * 8
    by_column = 0 if layout.kind == "first" or layout.length == layout.channels else at.ROWS * columns * wide
    template = _template(layout, operands, size, pitch, columns, together)
    template[at.ADD], template[at.APPLY], template[at.BACKWARD] = add, apply, direction == "backward"
    if nbytes >= PAST_CACHES and not mask and phases[0][0] == at.WHOLE:
        template[at.BOTH] = launch.leaf(f"{name} both", dtype, activation, residual, False, stream)
    template[at.DOUBLE], template[at.ELEMENT] = wide == 8, at.ELEMENTS.index(dtype)
    offset, work = work if by_column else 0, work + by_column
    return Job(layout, template, operands, launch.walk(layout.kind), phases, offset, work, sums, work + sums + own)


def _is_small(operation: Operation, layout: Layout, mask: bool) -> bool:
    """Whether it is a matrix of few rows, evenly spaced, as `few_rows` takes it."""
    if mask or operation == "moments" or layout.kind != "last" or layout.repeat != 1 or layout.outer != 1:
        return False
    return layout.count * -(-layout.channels // LANES) <= FEW_ROWS


def _job_of_few_rows(
    operation: Operation, layout: Layout, dtype: str, activation: str, operands: tuple[int, ...]
) -> Job:
    from . import launch

    wide, pitch = DTYPES[wide_dtype(dtype)], _round(layout.channels)
    template = _template(layout, operands, DTYPES[dtype], pitch, pitch, 1)
    template[at.BACKWARD] = operation == "backward"
    template[at.DOUBLE], template[at.ELEMENT] = wide == 8, at.ELEMENTS.index(dtype)
    function = launch.whole(operation, dtype, activation, at.RESIDUAL in operands)
    work = at.ROWS * pitch * wide
    return Job(layout, template, operands, function, ((at.WHOLE, 1),), 0, work, 0, work)


def _round(count: int) -> int:
    return -(-count // LANES) * LANES


def _has_lines(layout: Layout, size: int, aligned: bool) -> bool:
    """Whether most lines of an output can be written whole, past the caches: long runs, or rows of whole lines."""
    nbytes = layout.length * size
    if layout.kind == "first":
        return nbytes >= 4 * LINE
    return (aligned or nbytes >= LONG_ROW) and all(step * size % LINE == 0 for step in layout.strides[1][:2])


def _template(
    layout: Layout, operands: tuple[int, ...], size: int, pitch: int, columns: int, together: int
) -> NDArray[np.int64]:
    template = np.zeros(at.SLOTS, np.int64)
    values: dict[int, int] = {
        at.CHANNELS: layout.channels,
        at.OUTER: layout.outer,
        at.INNER: layout.inner,
        at.LENGTH: layout.length,
        at.REPEAT: layout.repeat,
        at.TAIL: layout.tail,
        at.GROUP: layout.group,
        at.SEGMENT: layout.segment,
        at.SEGMENTS: layout.segments,
        at.UNITS: layout.units,
        at.TOGETHER: together,
        at.PITCH: pitch,
        at.COLUMNS: columns,
        at.COUNT: layout.count,
    }
    for slot, steps in zip(operands, layout.strides, strict=True):
        values |= {slot + 1 + i: step for i, step in enumerate(steps)}
    for slot, value in values.items():
        template[slot] = value
    return template


def _phases_first(operation: str, layout: Layout, parts: int) -> tuple[tuple[int, int], ...]:
    if operation == "inference":
        few = layout.planes * layout.channels < 8 * parts
        return (at.PREPARING, 1), (at.APPLYING if few else at.PLANES, parts)
    if operation == "moments":
        return (at.SUMMING, parts), (at.SETTLING, parts)
    if layout.channels < FEW:
        return (at.SUMMING, parts), (at.SETTLING, parts), (at.APPLYING, parts)
    return ((at.WHOLE, parts),)


def _phases_last(operation: str, layout: Layout, parts: int) -> tuple[tuple[int, int], ...]:
    settling = parts if layout.length == layout.channels else 1  # else one column belongs to several threads' channels
    if operation == "inference":
        return (at.PREPARING, 1), (at.APPLYING, parts)
    if operation == "moments":
        return (at.BEGINNING, 1), (at.SUMMING, parts), (at.SETTLING, settling)
    if operation == "backward":
        return (at.BEGINNING, 1), (at.SUMMING, parts), (at.SETTLING, settling), (at.APPLYING, parts)
    return (at.BEGINNING, 1), (at.SUMMING, parts), (at.SETTLING, settling), (at.PREPARING, 1), (at.APPLYING, parts)
