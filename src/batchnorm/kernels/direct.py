"""The way to the kernels for callers who count microseconds: a plan made once, then one compiled call with addresses.

The same table (`dispatch.job`) as `cpu` takes, without a mask. A `Plan` holds all that does not change from call to
call, in a template of the `block`; a call of it lays the block out, runs every phase, and counts. Numba's own entry
point for the signature is called, which leaves out the half microsecond in which it looks at the arguments.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false
# ruff: noqa: ANN001, ANN202
from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from . import block as at
from . import launch
from .address import address_of
from .caching import CACHE
from .dispatch import Operation, job
from .intrinsics import get_double, get_float, get_int, put_double, put_float, put_int
from .layout import arrange

__all__ = ["FLOAT32", "FLOAT64", "MEAN", "Plan", "Settings", "plan"]

Strides = tuple[int, ...]
MEAN = 8 * at.SLOTS
"""Bytes from the beginning of a call's memory to the means; the variances follow, then the scratch."""
FLOAT32, FLOAT64 = 1, 2
FUNCTION, STEPS, NUMBER, STORED = range(at.SLOTS, at.SLOTS + 4)
"""What a template holds beyond the block: the walk, its phases, the type of statistics that are given."""


class Settings(NamedTuple):
    """What a plan is made for beside shape and type.

    ``stored`` is the type, `FLOAT32` or `FLOAT64`, of given or of moving statistics; ``ddof`` corrects the variance
    before it is averaged; ``training`` says whether the statistics are the batch's own.
    """

    epsilon: float
    training: bool = True
    stored: int = FLOAT32
    decay: float = 1.0
    ddof: int = 0
    guard: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One operation on tensors of one shape, strides and type.

    Attributes
    ----------
    channels, count : int
        Channels, and elements of each.
    words : int
        Words of 8 bytes of memory that a call needs.
    at : int
        Address of the template, to be passed first.
    run : callable
        Forward: ``run(at, memory, x, y, residual, gamma, beta, mean, variance, skipped, tracked)``, all addresses, 0
        where there is none. In training mean and variance are the moving ones, ``skipped`` counts what the guard left
        out and ``tracked`` the batches; in inference they are those to normalise with. The means and variances used are
        in ``memory``, in float64, from `MEAN` bytes on.

        Backward: ``run(at, memory, statistics, x, dx, residual, grad, residual_grad, gamma, beta, dgamma, dbeta)``;
        ``statistics`` are the means and, behind them, the variances, in float64.
    """

    channels: int
    count: int
    words: int
    at: int
    run: Callable[..., None]
    template: NDArray[np.int64]


@functools.lru_cache(maxsize=1024)
def plan(
    operation: Operation,
    shape: tuple[int, ...],
    strides: tuple[Strides, ...],
    axis: int,
    dtype: str,
    activation: str,
    slots: tuple[int, ...],
    threads: int,
    settings: Settings,
) -> Plan | None:
    """The plan for a signature: see `dispatch.job`; None where the kernels cannot walk the operands as they lie."""
    if arrange(shape, strides, axis) is None:
        return None
    # Outputs begin on a line: PyTorch allocates them here, and allocates to 64 bytes.
    one = job(operation, shape, strides, axis, dtype, activation, slots, False, True, threads)
    layout, size = one.layout, 8 * at.SLOTS
    steps, number, serial, _ = launch.steps(one.phases)
    template = np.zeros(STORED + 1, np.int64)
    template[: at.SLOTS] = one.template
    # The statistics, and on the way back the sums in float64, precede the scratch.
    scratch = size + 8 * layout.channels * (4 if operation == "backward" else 2)
    template[at.WORK : at.LANES_SUMS + 1] = scratch + np.array([0, one.by_column, one.work, one.work + one.sums])
    template[FUNCTION : STORED + 1] = one.function, steps, number, settings.stored
    template[at.TRAINING], template[at.GUARD] = settings.training, settings.guard
    template[at.MOVING_DOUBLE] = settings.stored == FLOAT64
    numbers = template.view(np.float64)
    numbers[at.EPSILON], numbers[at.DECAY] = settings.epsilon, settings.decay
    count = layout.count
    numbers[at.CORRECTION] = count / (count - settings.ddof) if count > settings.ddof else 1.0
    words = (scratch + one.scratch) // 8 + 8
    run = _runner("backward" if operation == "backward" else "training" if settings.training else "inference", serial)
    return Plan(layout.channels, count, words, address_of(template), run, template)


@functools.cache
def _runner(direction: str, serial: bool) -> Callable[..., None]:
    alone = _entry(f"{direction} alone")
    if serial:
        return alone
    launch.start()
    together = _entry(f"{direction} together")

    def run(*addresses: int) -> None:
        if launch.threads() == 1:  # after a fork, OpenMP must not be asked
            alone(*addresses)
        else:
            with launch.together():
                together(*addresses)

    return run


def _entry(name: str) -> Callable[..., None]:
    function = ENTRIES[name]
    signature = (types.int64,) * (12 if name.startswith("backward") else 11)
    function.compile(signature)
    return function.overloads[signature].entry_point


@njit(error_model="numpy")
def _lay_out(template, memory, x, y, residual, gamma, beta, statistics):
    for slot in range(at.SLOTS):
        put_int(memory, slot, get_int(template, slot))
    for slot in range(at.WORK, at.LANES_SUMS + 1):
        put_int(memory, slot, memory + get_int(template, slot))
    put_int(memory, at.X, x)
    put_int(memory, at.Y, y)
    put_int(memory, at.RESIDUAL, residual)
    put_int(memory, at.GAMMA, gamma)
    put_int(memory, at.BETA, beta)
    put_int(memory, at.MEAN, statistics)
    put_int(memory, at.VARIANCE, statistics + 8 * get_int(template, at.CHANNELS))


@njit(error_model="numpy")
def _follow(template, memory, mean, variance, skipped):
    put_int(memory, at.MOVING_MEAN, mean)
    put_int(memory, at.MOVING_VARIANCE, variance)
    put_int(memory, at.SKIPPED, skipped)


@njit(error_model="numpy")
def _count(template, tracked):
    if tracked != 0 and get_int(template, at.COUNT) > 1:
        put_int(tracked, 0, get_int(tracked, 0) + 1)


@njit(error_model="numpy")
def _copy(template, memory, mean, variance):
    own, channels = memory + MEAN, get_int(template, at.CHANNELS)
    if get_int(template, STORED) == FLOAT32:
        for c in range(channels):
            put_double(own, c, get_float(mean, c))
            put_double(own, channels + c, get_float(variance, c))
    else:
        for c in range(channels):
            put_double(own, c, get_double(mean, c))
            put_double(own, channels + c, get_double(variance, c))


@njit(error_model="numpy")
def _lay_out_backward(template, memory, statistics, x, dx, residual, grad, residual_grad, gamma, beta):
    _lay_out(template, memory, x, dx, residual, gamma, beta, statistics)
    sums, channels = memory + MEAN, get_int(template, at.CHANNELS)
    put_int(memory, at.GRAD, grad)
    put_int(memory, at.RESIDUAL_GRAD, residual_grad)
    put_int(memory, at.GAMMA_GRAD, sums)
    put_int(memory, at.BETA_GRAD, sums + 8 * channels)


@njit(error_model="numpy")
def _hand_over(template, memory, dgamma, dbeta):
    """The parameters' gradients, in the arithmetic's type."""
    sums, channels, double = memory + MEAN, get_int(template, at.CHANNELS), get_int(template, at.DOUBLE) != 0
    for out, start in ((dgamma, 0), (dbeta, channels)):
        if out == 0:
            continue
        for c in range(channels):
            value = get_double(sums, start + c)
            if double:
                put_double(out, c, value)
            else:
                put_float(out, c, np.float32(value))


@njit(cache=CACHE, nogil=True)
@launch.versioned
def _train_alone(template, memory, x, y, residual, gamma, beta, mean, variance, skipped, tracked):
    _lay_out(template, memory, x, y, residual, gamma, beta, memory + MEAN)
    _follow(template, memory, mean, variance, skipped)
    launch.serial(get_int(template, FUNCTION), memory, get_int(template, STEPS), get_int(template, NUMBER))
    _count(template, tracked)


@njit(cache=CACHE, nogil=True)
@launch.versioned
def _train_together(template, memory, x, y, residual, gamma, beta, mean, variance, skipped, tracked):
    _lay_out(template, memory, x, y, residual, gamma, beta, memory + MEAN)
    _follow(template, memory, mean, variance, skipped)
    launch.parallel(get_int(template, FUNCTION), memory, get_int(template, STEPS), get_int(template, NUMBER))
    _count(template, tracked)


@njit(cache=CACHE, nogil=True)
@launch.versioned
def _infer_alone(template, memory, x, y, residual, gamma, beta, mean, variance, skipped, tracked):
    _lay_out(template, memory, x, y, residual, gamma, beta, memory + MEAN)
    _copy(template, memory, mean, variance)
    launch.serial(get_int(template, FUNCTION), memory, get_int(template, STEPS), get_int(template, NUMBER))


@njit(cache=CACHE, nogil=True)
@launch.versioned
def _infer_together(template, memory, x, y, residual, gamma, beta, mean, variance, skipped, tracked):
    _lay_out(template, memory, x, y, residual, gamma, beta, memory + MEAN)
    _copy(template, memory, mean, variance)
    launch.parallel(get_int(template, FUNCTION), memory, get_int(template, STEPS), get_int(template, NUMBER))


@njit(cache=CACHE, nogil=True)
@launch.versioned
def _back_alone(template, memory, statistics, x, dx, residual, grad, residual_grad, gamma, beta, dgamma, dbeta):
    _lay_out_backward(template, memory, statistics, x, dx, residual, grad, residual_grad, gamma, beta)
    launch.serial(get_int(template, FUNCTION), memory, get_int(template, STEPS), get_int(template, NUMBER))
    _hand_over(template, memory, dgamma, dbeta)


@njit(cache=CACHE, nogil=True)
@launch.versioned
def _back_together(template, memory, statistics, x, dx, residual, grad, residual_grad, gamma, beta, dgamma, dbeta):
    _lay_out_backward(template, memory, statistics, x, dx, residual, grad, residual_grad, gamma, beta)
    launch.parallel(get_int(template, FUNCTION), memory, get_int(template, STEPS), get_int(template, NUMBER))
    _hand_over(template, memory, dgamma, dbeta)


ENTRIES: dict[str, Any] = {
    "training alone": _train_alone,
    "training together": _train_together,
    "inference alone": _infer_alone,
    "inference together": _infer_together,
    "backward alone": _back_alone,
    "backward together": _back_together,
}
