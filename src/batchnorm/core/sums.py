"""Sums over axes for namespaces that add one number after another (TensorFlow on the CPU, NumPy over leading axes).

Such a sum of n numbers is off by n roundings where they take sides. Summed in stages, no number goes through more than
a few dozen additions in each of them; what is left after the first stage is little, so that the stages cost not much
more than the one pass over the data.
"""

from __future__ import annotations

import functools
import math
from typing import Any

__all__ = ["has_runs", "in_runs", "mean_in_runs", "runs"]

LONGEST = 64
"""Additions one after another in one of several stages: a random walk of that many roundings is 4 of them."""
FEW = 1 << 15
"""Numbers in all of which a mean is taken in runs: there operations cost, not reads."""
ALONE = 256
"""Additions one after another where there are no more of them."""


def in_runs(xp: Any, values: Any, axes: tuple[int, ...]) -> Any:
    """The sum over ``axes``, which stay with length 1; ``xp`` has ``shape`` and ``reshape`` besides the others.

    An axis whose length is unknown, or has no divisors that would do, is summed twice: as it is, and what is left of
    it less its mean.
    """
    if not axes or _is_short(_lengths(values, axes)):
        return xp.sum(values, axis=axes, keepdims=True) if axes else values
    cut = {axis: runs(length) if isinstance(length := values.shape[axis], int) else () for axis in axes}
    given, values = values, _in_pieces(xp, values, cut)
    for place, stage in enumerate(_stages(tuple(cut.items()))):
        if place:
            # Equal to what it is, which XLA does not see: it would make one long sum of two stages.
            values = xp.where(values == values, values, -values)
        values = xp.sum(values, axis=stage, keepdims=True) if stage[0] >= 0 else _twice(xp, values, ~stage[0])
    return _joined(xp, values, given, cut)


def mean_in_runs(xp: Any, values: Any, axes: tuple[int, ...]) -> Any:
    """The mean over ``axes``, of which `has_runs` is true: the means of equal runs, and of those again.

    With fewer operations than the sum: XLA does not join two stages that divide.
    """
    if _is_short(_lengths(values, axes)):
        return xp.mean(values, axis=axes, keepdims=True)
    cut = {axis: runs(values.shape[axis]) for axis in axes}
    given, values = values, _in_pieces(xp, values, cut)
    for stage in _stages(tuple(cut.items())):
        values = xp.mean(values, axis=stage, keepdims=True)
    return _joined(xp, values, given, cut)


def has_runs(values: Any, axes: tuple[int, ...], count: Any) -> bool:
    """Whether ``count`` is how many numbers lie along ``axes``, these can be cut into runs, and there are not many.

    XLA would take several stages of a mean in one loop, a channel after the other: slow where the caches end.
    """
    lengths = _lengths(values, axes)
    known = isinstance(count, int) and all(isinstance(length, int) for length in values.shape)
    return (
        known
        and math.prod(values.shape) <= FEW
        and math.prod(lengths) == count
        and (_is_short(lengths) or all(map(runs, lengths)))
    )


def _lengths(values: Any, axes: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(values.shape[axis] for axis in axes)


def _in_pieces(xp: Any, values: Any, cut: dict[int, tuple[int, ...]]) -> Any:
    if not _added(cut):
        return values
    lengths = [cut.get(axis) or (length,) for axis, length in enumerate(xp.shape(values))]
    return xp.reshape(values, tuple(length for each in lengths for length in each))


def _joined(xp: Any, values: Any, given: Any, cut: dict[int, tuple[int, ...]]) -> Any:
    if not _added(cut):
        return values
    return xp.reshape(values, tuple(1 if axis in cut else length for axis, length in enumerate(xp.shape(given))))


def _added(cut: dict[int, tuple[int, ...]]) -> int:
    return sum(max(len(each), 1) - 1 for each in cut.values())


def _is_short(lengths: tuple[Any, ...]) -> bool:
    return all(isinstance(length, int) for length in lengths) and math.prod(lengths) <= ALONE


@functools.lru_cache(maxsize=512)
def runs(length: int) -> tuple[int, ...]:
    """Lengths of at most `LONGEST` whose product is ``length``, as few as may be; nothing where there are none.

    Examples
    --------
    >>> runs(50), runs(4096), runs(131072), runs(1009)
    ((50,), (64, 64), (64, 64, 32), ())
    """
    if length <= LONGEST:
        return (length,)
    for divisor in range(LONGEST, 1, -1):
        rest = runs(length // divisor) if length % divisor == 0 else ()
        if rest:
            return (divisor, *rest)
    return ()


@functools.lru_cache(maxsize=512)
def _stages(cut: tuple[tuple[int, tuple[int, ...]], ...]) -> tuple[tuple[int, ...], ...]:
    """The axes of each stage, from the inner ones outwards; ``~axis`` of one that is summed twice."""
    shift, lengths = 0, list[tuple[int, int]]()
    for axis, each in cut:
        lengths += [(axis + shift + i, length) for i, length in enumerate(each)] or [(~(axis + shift), 0)]
        shift += max(len(each), 1) - 1
    stages: list[tuple[int, ...]] = []
    additions = 0  # of the stage at hand; 0 for one that takes no further axis
    for axis, length in reversed(lengths):
        if length and 0 < additions * length <= LONGEST:
            stages[-1] = (axis, *stages[-1])
            additions *= length
        else:
            stages.append((axis,))
            additions = length
    return tuple(stages)


def _twice(xp: Any, values: Any, axis: int) -> Any:
    length = values.shape[axis]
    if not isinstance(length, int):  # counted, as no namespace's way to ask for it is another's
        one = values[tuple(slice(None) if i == axis else slice(0, 1) for i in range(len(values.shape)))]
        length = xp.sum(0 * xp.where(xp.isfinite(one), one, 0.0) + 1, axis=axis, keepdims=True)
    total = xp.sum(values, axis=axis, keepdims=True)
    return total + xp.sum(values - total / length, axis=axis, keepdims=True)
