"""Sums over axes for namespaces that add one number after another (TensorFlow on the CPU, NumPy over leading axes).

Such a sum of n numbers is off by n roundings where they take sides. Axis by axis, and along an axis in runs, no number
goes through more than a few dozen additions a stage; the sums of the runs are few, so the stages cost little more than
the one pass over the data.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["in_runs", "runs"]

LONGEST = 64
"""Additions one after another that are let pass: a random walk of that many roundings is 4 of them."""


def in_runs(xp: Any, values: Any, axes: tuple[int, ...]) -> Any:
    """The sum over ``axes``, which stay with length 1; ``xp`` has ``shape`` and ``reshape`` besides ``sum``.

    An axis whose length is unknown, or has no divisors that would do, is summed twice: as it is, and what is left of
    it less its mean.
    """
    for axis in reversed(axes):
        values = _along(xp, values, axis)
    return values


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


def _along(xp: Any, values: Any, axis: int) -> Any:
    length = values.shape[axis]
    cut = runs(length) if isinstance(length, int) else ()
    if not cut:
        return _twice(xp, values, axis)
    if len(cut) > 1:
        before, after = xp.shape(values)[:axis], xp.shape(values)[axis + 1 :]
        values = xp.reshape(values, (*before, *cut, *after))
        for place in range(axis + len(cut) - 1, axis, -1):
            values = xp.sum(values, axis=place)
    return xp.sum(values, axis=axis, keepdims=True)


def _twice(xp: Any, values: Any, axis: int) -> Any:
    length = values.shape[axis]
    if not isinstance(length, int):  # counted, as no namespace's way to ask for it is another's
        one = values[tuple(slice(None) if i == axis else slice(0, 1) for i in range(len(values.shape)))]
        length = xp.sum(xp.where(one == one, 1.0, 1.0), axis=axis, keepdims=True)
    total = xp.sum(values, axis=axis, keepdims=True)
    return total + xp.sum(values - total / length, axis=axis, keepdims=True)
