"""The way to the kernels for callers who count microseconds: addresses in, one compiled call to lay them out.

The same table (`dispatch.job`) as `cpu` takes, without a mask. A `Recipe` is made once for a signature; a call of it
takes one piece of memory (the block, mean and variance of the channels, scratch) and the addresses of its tensors.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# ruff: noqa: ANN001, ANN202
from __future__ import annotations

import functools
from dataclasses import dataclass

from numba import njit

from . import block as at
from . import launch
from .address import address_of
from .caching import CACHE
from .dispatch import Job, Operation, job
from .intrinsics import get_double, get_float, get_int, put_double, put_int
from .layout import arrange

__all__ = ["FLOAT32", "FLOAT64", "HERE", "MEAN", "NOTHING", "Recipe", "recipe"]

Strides = tuple[int, ...]
MEAN = 8 * at.SLOTS
"""Bytes from the beginning of a call's memory to the means; the variances follow, then the scratch."""
HERE, FLOAT32, FLOAT64 = range(3)
NOTHING = (0, 0, 0, 0, 0, 0.0, 1.0)
"""No moving statistics: see `Recipe.run`."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to run one operation on tensors of one shape, strides and type.

    Attributes
    ----------
    channels : int
        Channels.
    words : int
        Words of 8 bytes of a call's memory.
    count : int
        Elements of a channel.
    aligned, other : tuple
        The `Job` and the address of its template, for an output that begins on a cache line, and for any other.
    """

    channels: int
    words: int
    count: int
    aligned: tuple[Job, int]
    other: tuple[Job, int]

    def run(
        self,
        memory: int,
        addresses: tuple[int, int, int, int, int],
        parameters: tuple[int, int],
        statistics: tuple[int, int, int],
        sums: tuple[int, int],
        epsilon: float,
        moving: tuple[int, int, int, int, int, float, float] = NOTHING,
        training: bool = True,
    ) -> None:
        """Run it.

        Parameters
        ----------
        memory : int
            Address of ``words`` words.
        addresses : tuple of int
            Of x, the output, the residual, the gradient and the residual's gradient; 0 where there is none.
        parameters : tuple of int
            Of gamma and beta; 0 where there is none.
        statistics : tuple of int
            Of mean and variance; and `HERE`, where they are used as they are, in float64, or the type, `FLOAT32` or
            `FLOAT64`, from which they are copied into ``memory`` before.
        sums : tuple of int
            Of the gradients of gamma and beta.
        epsilon : float
            Added to the variance.
        moving : tuple
            Of moving mean, variance and skipped updates; whether they are float64, whether there is a guard; decay, and
            what the variance is multiplied by before it is averaged.
        training : bool
            Whether the statistics are the batch's own.
        """
        one, template = self.other if addresses[1] % 64 else self.aligned
        _fill(
            memory,
            template,
            self.channels,
            one.by_column,
            one.work,
            one.sums,
            *addresses,
            *parameters,
            *statistics,
            *sums,
            epsilon,
            *moving,
            training,
        )
        launch.run_at(one.function, one.phases, memory)


@functools.lru_cache(maxsize=1024)
def recipe(
    operation: Operation,
    shape: tuple[int, ...],
    strides: tuple[Strides, ...],
    axis: int,
    dtype: str,
    activation: str,
    slots: tuple[int, ...],
    threads: int,
) -> Recipe | None:
    """The recipe for a signature: see `dispatch.job`; None where the kernels cannot walk the operands as they lie."""
    if arrange(shape, strides, axis) is None:
        return None
    jobs = [
        job(operation, shape, strides, axis, dtype, activation, slots, False, flag, threads) for flag in (True, False)
    ]
    aligned, other = ((one, address_of(one.template)) for one in jobs)
    layout = jobs[0].layout
    words = at.SLOTS + 2 * layout.channels + max(one.scratch for one in jobs) // 8 + 8
    return Recipe(layout.channels, words, layout.count, aligned, other)


@njit(cache=CACHE, nogil=True)
@launch.versioned
def _fill(
    block,
    template,
    channels,
    by_column,
    work,
    sums,
    x,
    y,
    residual,
    grad,
    residual_grad,
    gamma,
    beta,
    mean,
    variance,
    stored,
    gamma_grad,
    beta_grad,
    epsilon,
    moving_mean,
    moving_variance,
    skipped,
    double,
    guard,
    decay,
    correction,
    training,
):
    for slot in range(at.SLOTS):
        put_int(block, slot, get_int(template, slot))
    own = block + MEAN
    scratch = own + 16 * channels
    if stored == FLOAT32:
        for c in range(channels):
            put_double(own, c, get_float(mean, c))
            put_double(own, channels + c, get_float(variance, c))
    elif stored == FLOAT64:
        for c in range(channels):
            put_double(own, c, get_double(mean, c))
            put_double(own, channels + c, get_double(variance, c))
    if stored != HERE:
        mean, variance = own, own + 8 * channels
    put_int(block, at.X, x)
    put_int(block, at.Y, y)
    put_int(block, at.RESIDUAL, residual)
    put_int(block, at.GRAD, grad)
    put_int(block, at.RESIDUAL_GRAD, residual_grad)
    put_int(block, at.GAMMA, gamma)
    put_int(block, at.BETA, beta)
    put_int(block, at.MEAN, mean)
    put_int(block, at.VARIANCE, variance)
    put_int(block, at.GAMMA_GRAD, gamma_grad)
    put_int(block, at.BETA_GRAD, beta_grad)
    put_int(block, at.TRAINING, training)
    put_double(block, at.EPSILON, epsilon)
    put_int(block, at.MOVING_MEAN, moving_mean)
    put_int(block, at.MOVING_VARIANCE, moving_variance)
    put_int(block, at.SKIPPED, skipped)
    put_int(block, at.MOVING_DOUBLE, double)
    put_int(block, at.GUARD, guard)
    put_double(block, at.DECAY, decay)
    put_double(block, at.CORRECTION, correction)
    put_int(block, at.WORK, scratch)
    put_int(block, at.BY_COLUMN, scratch + by_column)
    put_int(block, at.SUMS, scratch + work)
    put_int(block, at.LANES_SUMS, scratch + work + sums)
