"""Which constant explains the scale and shift that a converter left of a layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from batchnorm.core.equations import inv_std
from batchnorm.core.record import LayerRecord

from .constants import ROLES, Constants, largest_change, whole_change
from .difference import Difference, What
from .folded import SLACK, effective, is_merged, same_map, scale_and_shift

__all__ = ["explained", "mirrored"]

Array = NDArray[np.float64]
COMMON_EPSILONS = (1e-3, 1e-5, 1e-4, 1.001e-5, 1e-6, 1e-8, 1e-2, 0.1)
BFLOAT16: tuple[str, Any] = ("bfloat16", ml_dtypes.bfloat16)
CROSSED: tuple[tuple[str, str, What], ...] = (
    ("gamma", "beta", "swapped gamma/beta"),
    ("moving_mean", "moving_variance", "swapped mean/variance"),
)
MOST_COUNT = 100_000
"""Above it the ratio n/(n - 1) cannot be told from the rounding of a folded scale."""


@dataclass(frozen=True, slots=True)
class Guess:
    """One constant of the unfolded layer that is another: what the folded one would then hold."""

    what: What
    a: Any
    b: Any
    constants: Constants
    detail: str = ""


def explained(a: LayerRecord, left: Constants, b: LayerRecord) -> list[Difference]:
    """What the folded layer ``b`` differs in from ``a``, whose constants are ``left``.

    A scale and a shift are two numbers where a layer has five. A single constant that accounts for both in every
    channel is named; two of a kind that the file cannot tell apart (gamma and the variance, beta and the mean) are said
    to be so.
    """
    if is_merged(b):
        return []
    change = largest_change(left, Constants.of(effective(b), 0.0))
    if a.epsilon is not None and same_map(left, b):
        return []
    channel = int(np.argmax(np.nan_to_num(change, nan=np.inf)))
    for guess in _guesses(a, left, b, channel):
        if same_map(guess.constants, b):
            moved = None if a.epsilon is None and guess.what == "epsilon" else whole_change(change)
            return [Difference(guess.what, guess.a, guess.b, moved, channel, None, guess.detail)]
    return _unexplained(left, b)


def _guesses(a: LayerRecord, left: Constants, b: LayerRecord, channel: int) -> Iterator[Guess]:
    right = Constants.of(effective(b), 0.0)
    with np.errstate(all="ignore"):
        ratio = left.gamma / right.gamma
        implied = ratio * ratio  # variance + epsilon, if gamma is the same
    yield from _epsilons(a, left, implied)
    yield from _divisors(left, implied)
    yield from _crossed(left, channel)
    yield from _rounded(a, left)
    yield from _single(left, right, b.moving_mean is not None, channel)


def _epsilons(a: LayerRecord, left: Constants, implied: Array) -> Iterator[Guess]:
    most_sensitive = int(np.argmin(np.where(np.isfinite(implied), left.moving_variance, np.inf)))
    fitted = float(implied[most_sensitive] - left.moving_variance[most_sensitive])
    for epsilon in (*COMMON_EPSILONS, float(f"{fitted:.3g}"), fitted):
        if epsilon >= 0 and epsilon != a.epsilon:
            detail = "the scale and shift that the folded layer holds are those of this epsilon"
            yield Guess("epsilon", a.epsilon, epsilon, left.replace(epsilon=epsilon), detail)


def _divisors(left: Constants, implied: Array) -> Iterator[Guess]:
    with np.errstate(all="ignore"):
        ratio = (implied - left.epsilon) / left.moving_variance
        middle = float(np.median(ratio[np.isfinite(ratio)])) if np.any(np.isfinite(ratio)) else 1.0
        larger = max(middle, 1 / middle) if middle > 0 else 1.0
    n = round(larger / (larger - 1)) if larger > 1 else 0
    if not 2 <= n <= MOST_COUNT:
        return
    factor = n / (n - 1) if middle > 1 else (n - 1) / n
    sides = (0, 1) if middle > 1 else (1, 0)
    whose = "first" if middle > 1 else "second"
    detail = f"every variance is {n}/{n - 1} of the {whose} model's: divisor count - 1"
    yield Guess("ddof", *sides, left.replace(moving_variance=left.moving_variance * factor), detail)


def _crossed(left: Constants, channel: int) -> Iterator[Guess]:
    for first, second, what in CROSSED:
        p, q = getattr(left, first), getattr(left, second)
        pair = [float(p[channel]), float(q[channel])]
        detail = f"the second model's {second} is the first's {first}, and the other way round"
        yield Guess(what, pair, pair[::-1], left.replace(**{first: q, second: p}), detail)


def _rounded(a: LayerRecord, left: Constants) -> Iterator[Guess]:
    for name, dtype in (("float16", np.float16), BFLOAT16):
        with np.errstate(all="ignore"):
            arrays = {role: getattr(left, role).astype(dtype).astype(np.float64) for role in ROLES}
        detail = f"the second model's constants went through {name} before they were folded"
        yield Guess("dtype", a.dtype, name, left.replace(**arrays), detail)


def _single(left: Constants, right: Constants, has_mean: bool, channel: int) -> Iterator[Guess]:
    """One array that is another: as far as a scale and a shift can tell which."""
    with np.errstate(all="ignore"):
        inverse = inv_std(np, left.moving_variance, left.epsilon)
    scale, shift = scale_and_shift(left)
    _, shifted = scale_and_shift(right)
    with np.errstate(all="ignore"):
        beta = left.beta + (shifted - shift) if not has_mean else right.beta
        gamma = np.where(right.gamma == scale, left.gamma, right.gamma / inverse)
    told = "" if has_mean else "or moving_mean, which a folded layer holds as one number with beta"
    values: list[tuple[What, Array, str]] = [
        ("beta", beta, told),
        ("gamma", gamma, "or moving_variance, which a folded layer holds as one number with gamma"),
    ]
    if has_mean:
        values.insert(1, ("moving_mean", right.moving_mean, ""))
    for role, array, detail in values:
        numbers = (float(getattr(left, role)[channel]), float(array[channel]))
        yield Guess(role, *numbers, left.replace(**{role: array}), detail)


def _unexplained(left: Constants, b: LayerRecord) -> list[Difference]:
    """No single constant accounts for scale and shift: the gamma and beta that would, beside these statistics."""
    scale, shift = scale_and_shift(Constants.of(effective(b), 0.0))
    with np.errstate(all="ignore"):
        gamma = scale / inv_std(np, left.moving_variance, left.epsilon)
        values: list[tuple[What, Array]] = [("gamma", gamma), ("beta", shift + left.moving_mean * scale)]
    detail = "no single constant accounts for scale and shift; shown is what would, with the other model's statistics"
    found: list[Difference] = []
    for role, array in values:
        own = getattr(left, role)
        change = largest_change(left, left.replace(**{role: array}))
        channel = int(np.argmax(np.nan_to_num(change, nan=np.inf)))
        differs = int(np.sum(~(np.abs(array - own) <= SLACK * (np.abs(array) + np.abs(own)))))
        pair = float(own[channel]), float(array[channel])
        found.append(Difference(role, *pair, whole_change(change), channel, differs, detail))
    return found


def mirrored(differences: list[Difference]) -> list[Difference]:
    """The same with the models exchanged."""
    return [
        Difference(d.what, d.b, d.a, d.max_output_change, d.channel, d.channels, _mirrored_text(d.detail))
        for d in differences
    ]


def _mirrored_text(text: str) -> str:
    return re.sub(r"\b(first|second)\b", lambda word: "second" if word[0] == "first" else "first", text)
