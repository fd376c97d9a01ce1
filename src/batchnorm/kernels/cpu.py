"""The compiled kernels' door: batch normalization of tensors given as addresses, on the processor's cores.

`forward`, `backward` and `inference` take a `View` of every tensor and write into memory that they are given, so any
array library can call them. Each computes the equations of `core.equations` and is held to `core.reference` by tests.
They need Numba (the extra ``fast``); `available` says whether it is there. Numba is imported at the first call.
"""

from __future__ import annotations

import functools
import importlib.util
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import block as at
from .address import address_of
from .dispatch import DTYPES, Job, Operation, View, job, wide_dtype
from .layout import arrange

__all__ = [
    "DTYPES",
    "Moving",
    "View",
    "available",
    "backward",
    "fits",
    "forward",
    "inference",
    "moments",
    "set_threads",
    "supports",
    "threads",
    "view_of",
    "wide_dtype",
]


_NAMES = {np.dtype(name).char: name for name in ("float32", "float64", "float16")}
# A third of the time that items of an array take.
_put_four: Any = struct.Struct("=4q").pack_into
_put_real: Any = struct.Struct("=d").pack_into
_new: Any = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@functools.cache
def _launch() -> Any:
    # At the first call: Numba is imported there. A statement in every call would take half a microsecond.
    from . import launch

    return launch


class Moving(NamedTuple):
    """Moving statistics to be updated with the batch's: `training.update` with ``statistics="moving"``.

    ``mean`` and ``variance`` are float32 or float64 of one number a channel, adjacent; ``skipped``, int64, counts the
    updates the guard left out, None does not.
    """

    mean: View
    variance: View
    decay: float
    ddof: int = 0
    guard: bool = True
    skipped: View | None = None


@functools.cache
def available() -> bool:
    """Whether Numba is installed. It is not imported to find out."""
    return importlib.util.find_spec("numba") is not None


@functools.cache
def supports(dtype: str) -> bool:
    """Whether the kernels take elements of this type here. float16 needs a processor that converts it."""
    if dtype != "float16" or not available():
        return dtype in DTYPES and available()
    from . import intrinsics

    return intrinsics.has_float16()


def threads() -> int:
    """Threads that a large call is divided among."""
    return _launch().threads()


def set_threads(count: int) -> int:
    """Use so many threads from now on; returns the number before. No bit of any result depends on it."""
    return _launch().set_threads(count)


def view_of(array: NDArray[Any]) -> View:
    """A NumPy array as a `View`.

    Its strides must be whole elements and its byte order the machine's: what `np.ascontiguousarray` gives of any other.
    """
    size, kind = array.itemsize, array.dtype
    strides = tuple([step // size for step in array.strides])
    return _new(View, (address_of(array), array.shape, strides, _NAMES.get(kind.char) or kind.name, array))


def fits(x: View, *others: View, axis: int, mask: bool = False) -> bool:
    """Whether the kernels can walk these operands as they lie; where not, pass contiguous copies."""
    return arrange(x.shape, (x.strides, *(one.strides for one in others)), axis, mask) is not None


def forward(
    x: View,
    out: View,
    mean: View,
    variance: View,
    *,
    axis: int,
    epsilon: float,
    gamma: View | None = None,
    beta: View | None = None,
    residual: View | None = None,
    activation: str = "identity",
    mask: NDArray[np.bool_] | None = None,
    moving: Moving | None = None,
    most: int | None = None,
) -> int:
    """Training: ``out = activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual)``.

    Parameters
    ----------
    x, out, residual : View
        Of one shape and element type; no axis is empty. ``out`` may be ``x`` itself and must not overlap otherwise.
    mean, variance : View
        float64, one number a channel: the batch's statistics are written there.
    axis : int
        Where the channels are; not negative.
    epsilon : float
        Added to the variance.
    gamma, beta : View, optional
        One number a channel, adjacent; float64 where x is, else float32.
    activation : {"identity", "relu", "relu6", "leaky_relu", "silu"}
        Applied last.
    mask : array of bool, optional
        True where an element counts: the shape of x without its channel axis.
    moving : Moving, optional
        Moving statistics to update.
    most : int, optional
        Threads to use at most, where the caller's own library was given fewer; no bit depends on it.

    Returns
    -------
    int
        Counted elements of each channel. With 0 nothing was written.
    """
    operands, slots = _operands(x, out, residual)
    one = _job("training", operands, slots, axis, activation, mask is not None, most)
    block = one.template.copy()
    flags, count = _count(one, block, mask)
    if count:
        _statistics(block, mean, variance, gamma, beta, epsilon)
        if moving is not None:
            _follow(block, moving, count)
        _run(one, block, operands)
    del flags
    return count


def moments(
    x: View,
    mean: View,
    variance: View,
    *,
    axis: int,
    mask: NDArray[np.bool_] | None = None,
    most: int | None = None,
) -> int:
    """The statistics of `forward` alone: ``mean`` and ``variance`` are written; returns the counted elements."""
    one = _job("moments", (x,), (at.X,), axis, "identity", mask is not None, most)
    block = one.template.copy()
    flags, count = _count(one, block, mask)
    if count:
        _statistics(block, mean, variance, None, None, 1.0)
        _run(one, block, (x,))
    del flags
    return count


def inference(
    x: View,
    out: View,
    mean: View,
    variance: View,
    *,
    axis: int,
    epsilon: float,
    gamma: View | None = None,
    beta: View | None = None,
    residual: View | None = None,
    activation: str = "identity",
) -> None:
    """As `forward` with the statistics given: ``mean`` and ``variance`` are read."""
    operands, slots = _operands(x, out, residual)
    one = _job("inference", operands, slots, axis, activation, False)
    block = one.template.copy()
    _statistics(block, mean, variance, gamma, beta, epsilon)
    _run(one, block, operands)


def backward(
    grad: View,
    x: View,
    out: View,
    mean: View,
    variance: View,
    gamma_grad: View,
    beta_grad: View,
    *,
    axis: int,
    epsilon: float,
    gamma: View | None = None,
    beta: View | None = None,
    residual: View | None = None,
    residual_out: View | None = None,
    activation: str = "identity",
    mask: NDArray[np.bool_] | None = None,
    training: bool = True,
) -> None:
    """The way back: ``out = gamma*inv_std*(g - (sum(g) + x_hat*sum(g*x_hat))/count)``.

    ``g`` is the gradient before the activation.

    Parameters
    ----------
    grad : View
        Gradient of the loss with respect to the output.
    x, gamma, beta, residual, activation, mask, axis, epsilon
        What `forward` was given; beta and the residual only matter to an activation.
    out : View
        The gradient of x is written there; it may be ``grad`` itself.
    mean, variance : View
        What `forward` wrote, or `inference` was given.
    gamma_grad, beta_grad : View
        float64, one number a channel: ``sum(g * x_hat)`` and ``sum(g)`` are written there.
    residual_out : View, optional
        The gradient of the residual is written there: ``g``. It must be given where there are both a residual and an
        activation; without an activation it is ``grad``, and nothing is written.
    training : bool
        Whether the statistics were the batch's own; else they are constants: ``out = gamma*inv_std*g``.
    """
    if activation == "identity":
        residual = None
    operands, slots = (x, out, grad), (at.X, at.Y, at.GRAD)
    if residual is not None:
        assert residual_out is not None, "the residual's gradient needs a place"
        operands, slots = (*operands, residual, residual_out), (*slots, at.RESIDUAL, at.RESIDUAL_GRAD)
    one = _job("backward", operands, slots, axis, activation, mask is not None)
    block = one.template.copy()
    flags, _ = _count(one, block, mask)
    _statistics(block, mean, variance, gamma, beta, epsilon)
    block[at.GAMMA_GRAD], block[at.BETA_GRAD] = gamma_grad.address, beta_grad.address
    block[at.TRAINING] = training
    _run(one, block, operands)
    del flags


def _operands(x: View, out: View, residual: View | None) -> tuple[tuple[View, ...], tuple[int, ...]]:
    if residual is None:
        return (x, out), (at.X, at.Y)
    return (x, out, residual), (at.X, at.Y, at.RESIDUAL)


def _job(
    operation: Operation,
    operands: tuple[View, ...],
    slots: tuple[int, ...],
    axis: int,
    activation: str,
    mask: bool,
    most: int | None = None,
) -> Job:
    x, strides = operands[0], tuple([one.strides for one in operands])
    aligned = len(operands) > 1 and operands[1].address % 64 == 0
    parts = threads() if most is None else min(most, threads())
    return job(operation, x.shape, strides, axis, x.dtype, activation, slots, mask, aligned, parts)


def _count(one: Job, block: NDArray[np.int64], mask: NDArray[np.bool_] | None) -> tuple[Any, int]:
    """The mask laid out as the loops go, kept alive by the caller; and the counted elements of a channel."""
    layout = one.layout
    if mask is None:
        return None, layout.count
    channels = next(i for i in range(len(layout.order) + 1) if i not in layout.order)
    flat = np.ascontiguousarray(mask.transpose([axis - (axis > channels) for axis in layout.order])).reshape(-1)
    count = int(np.count_nonzero(flat))
    if count:
        run = layout.length if layout.kind == "first" else layout.repeat
        block[at.FIRST_PLANE], block[at.FIRST_INDEX] = divmod(int(flat.argmax()), run)
    block[at.MASK], block[at.COUNT] = flat.ctypes.data, max(1, count)
    return flat, count


def _statistics(
    block: NDArray[np.int64], mean: View, variance: View, gamma: View | None, beta: View | None, epsilon: float
) -> None:
    given = 0 if gamma is None else gamma[0], 0 if beta is None else beta[0]
    _put_four(block, 8 * at.GAMMA, *given, mean[0], variance[0])
    _put_real(block, 8 * at.EPSILON, epsilon)


def _follow(block: NDArray[np.int64], moving: Moving, count: int) -> None:
    block[at.MOVING_MEAN], block[at.MOVING_VARIANCE] = moving.mean.address, moving.variance.address
    block[at.MOVING_DOUBLE] = moving.mean.dtype == "float64"
    block[at.GUARD] = moving.guard
    block[at.SKIPPED] = 0 if moving.skipped is None else moving.skipped.address
    numbers = block.view(np.float64)
    numbers[at.DECAY] = moving.decay
    numbers[at.CORRECTION] = count / (count - moving.ddof) if count > moving.ddof else 1.0


def _run(one: Job, block: NDArray[np.int64], operands: tuple[View, ...]) -> None:
    for slot, operand in zip(one.operands, operands, strict=True):
        block[slot] = operand[0]
    scratch = np.empty(one.scratch // 8 + 8, np.float64)
    address = address_of(scratch)
    sums = address + one.work
    _put_four(block, 8 * at.WORK, address, address + one.by_column, sums, sums + one.sums)
    _launch().run(one.function, one.phases, block)
