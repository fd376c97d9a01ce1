"""What the values a user expected would be: which statistics, gamma, beta, divisor and epsilon give them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core import equations
from batchnorm.errors import ArgumentError

__all__ = ["Reading", "Readings", "Statistics", "read"]

FITS = 0.01
"""A reading fits when it is off by at most 1 % of the largest expected value."""
SAME = 1e-3
"""Readings closer than this (of the same size) are one reading under two names; the simpler name is kept."""
COMMON_EPSILONS = (1e-3, 1e-5, 1e-4, 1e-6, 1e-8, 1e-12, 0.0)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to normalise, in words, what it gives, and whether that is what was expected."""

    reading: str
    y: tuple[float, ...]
    fits: bool


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Statistics that could have been meant: a mean and a variance for every element."""

    words: str
    mean: Array
    variance: Array
    count: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """What the readings are made of; every array has one entry for each expected value."""

    x: Array
    gamma: Array | None
    beta: Array | None
    epsilon: float | None
    sources: tuple[Statistics, ...]


def read(expect: Any, given: Readings) -> tuple[Reading, ...]:
    """Every reading that fits, the simplest of equal ones, and the plain ones that do not.

    Parameters
    ----------
    expect : array_like
        One expected value for each of ``given.x``.
    given : Readings
        The inputs and constants.

    Raises
    ------
    ArgumentError
        Another number of expected values than of inputs.
    """
    wanted = np.asarray(expect, np.float64).ravel()
    if wanted.size != given.x.size:
        raise ArgumentError(
            f"explain: --expect must hold one value for each of the {given.x.size} outputs shown; got {wanted.size}."
        )
    kept: list[tuple[Reading, bool]] = []
    for words, y, plain in _candidates(given):
        reading = Reading(words, tuple(float(v) for v in y), _close(y, wanted, FITS))
        if (plain or reading.fits) and not any(_close(y, np.array(r.y), SAME) for r, _ in kept):
            kept.append((reading, plain))
    return tuple(sorted((r for r, _ in kept), key=lambda r: not r.fits))


def _candidates(given: Readings) -> Iterator[tuple[str, Array, bool]]:
    # Plain readings first: of two that agree, the first is kept.
    own = 1e-3 if given.epsilon is None else given.epsilon
    for epsilon in (own, *(e for e in COMMON_EPSILONS if e != own)):
        suffix = "" if epsilon == own else f", epsilon {epsilon:g}"
        for source in given.sources:
            for ddof, divisor in _divisors(source):
                for words, gamma, beta in _parameters(given):
                    with np.errstate(all="ignore"):
                        y = equations.normalized(np, given.x, source.mean, divisor, gamma, beta, epsilon)
                    plain = not suffix and not ddof and words in ("", _bare_words(given))
                    yield source.words + words + ddof + suffix, y, plain


def _divisors(source: Statistics) -> Iterator[tuple[str, Array]]:
    yield "", source.variance
    if source.count is not None and source.count > 1:
        yield ", variance divided by count - 1", equations.sample_variance(np, source.variance, source.count, 1)


def _parameters(given: Readings) -> Iterator[tuple[str, Array | None, Array | None]]:
    yield "", given.gamma, given.beta
    if given.gamma is not None and given.beta is not None:
        yield " without gamma and beta", None, None
    if given.gamma is not None:
        yield " without gamma", None, given.beta
    if given.beta is not None:
        yield " without beta", given.gamma, None


def _bare_words(given: Readings) -> str:
    if given.gamma is not None and given.beta is not None:
        return " without gamma and beta"
    return " without gamma" if given.gamma is not None else " without beta"


def _close(y: Array, wanted: Array, share: float) -> bool:
    size = float(np.max(np.abs(wanted), initial=0.0, where=np.isfinite(wanted))) or 1.0
    with np.errstate(invalid="ignore"):
        near = np.abs(y - wanted) <= share * size
    return bool(np.all(near | (y == wanted) | (np.isnan(y) & np.isnan(wanted))))
