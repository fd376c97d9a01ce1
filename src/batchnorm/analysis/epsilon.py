"""The epsilon that a file does not hold: how much it matters, and which one a pair of input and output tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.dtypes import unit_roundoff
from batchnorm.core.record import LayerRecord

from .constants import Constants, largest_change, whole_change
from .numbers import brief, digits

__all__ = ["Fitted", "fitted", "sensitivity"]

USUAL = (1e-3, 1e-5)
"""Keras' default, and that of PyTorch, ONNX and Flax."""
COMMON = (1e-3, 1e-5, 1e-4, 1.001e-5, 1e-6, 1e-8, 1e-2)
SLACK = 1e-3
"""A pair whose outputs are off by more than this share of the largest is no pair of this layer."""
SURE = 3.0
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fitted:
    """The epsilon that fits best; the pair tells it to within ``low`` and ``high``."""

    epsilon: float
    low: float
    high: float

    def sentence(self) -> str:
        """What to say of it."""
        return (
            f"The file holds no epsilon; {digits(self.epsilon)} was fitted to the input and the values expected, which "
            f"tell it to lie between {brief(max(self.low, 0.0))} and {brief(self.high)}."
        )


def sensitivity(records: Sequence[LayerRecord]) -> str | None:
    """How far an output moves where the epsilon is not the file's own; None where all of them are.

    The change is that of `largest_change`, between the two usual epsilons where none is known, and otherwise from the
    one in use to the farther of the two.
    """
    worst: tuple[float, LayerRecord, tuple[float, float]] | None = None
    for record in records:
        if record.epsilon_source == "file" or record.moving_variance is None:
            continue
        used = USUAL[0] if record.epsilon is None else record.epsilon
        other = max(USUAL, key=lambda each: abs(np.log((each + 1e-30) / (used + 1e-30))))
        a, b = (Constants.of(record, used).replace(epsilon=each) for each in (used, other))
        change = whole_change(largest_change(a, b))
        if worst is None or not change <= worst[0]:
            worst = change, record, (used, other)
    return None if worst is None else _sentence(*worst)


def _sentence(change: float, record: LayerRecord, between: tuple[float, float]) -> str:
    used, other = (np.format_float_positional(each, trim="-") for each in between)
    moved = f"an output moves by up to {brief(change)} ({record.name}, within three standard deviations)"
    if record.epsilon is None:
        return f"The epsilon is unknown: between {used} and {other} {moved}"
    source = {
        "option": "was given", "hint": "is what the names suggest", "fit": "was fitted", "sibling": "is another file's",
    }[record.epsilon_source]  # fmt: skip
    return f"The epsilon {used} {source}: were it {other}, {moved.replace('moves', 'would move')}"


def fitted(record: LayerRecord, x: Array, y: Array) -> Fitted | None:
    """The epsilon with which a layer makes ``y`` of ``x``.

    From each element ``epsilon = (gamma*(x - moving_mean)/(y - beta))**2 - moving_variance``; the mean of these,
    weighted by what the rounding of ``y`` to float32 leaves unsure of each.

    Parameters
    ----------
    record : LayerRecord
        With moving statistics.
    x, y : array of shape (channels, n)
        Inputs and outputs by channel.

    Returns
    -------
    Fitted or None
        None where no epsilon makes ``y`` of ``x``, or any of the usual ones does: then the pair does not tell it.
        An epsilon in common use that is as likely as the best one is taken for it.
    """
    known = Constants.of(record, 0.0)
    gamma, beta, mean, variance = (each[:, None] for each in (known.gamma, known.beta, known.moving_mean,
                                                              known.moving_variance))  # fmt: skip
    with np.errstate(all="ignore"):
        reach = gamma * (x - mean)
        ratio = reach / (y - beta)  # the standard deviation with epsilon inside
        estimates = ratio**2 - variance
        rounding = 4 * unit_roundoff("float32") * (np.abs(y) + np.abs(beta)) + 1e-12
        sigma = 2 * ratio**2 * rounding / np.abs(y - beta)
    usable = np.isfinite(estimates) & np.isfinite(sigma) & (sigma > 0) & (ratio > 0)
    if not usable.any():
        return None
    weight = 1 / sigma[usable] ** 2
    best = float(np.sum(weight * estimates[usable]) / np.sum(weight))
    unsure = SURE * float(1 / np.sqrt(np.sum(weight)))
    return _checked(known, x, y, best, unsure)


def _checked(known: Constants, x: Array, y: Array, best: float, unsure: float) -> Fitted | None:
    low, high = best - unsure, best + unsure
    likely = [each for each in COMMON if low <= each <= high]
    told = not all(each in likely for each in USUAL)
    chosen = min(likely, key=lambda each: abs(each - best)) if likely else float(f"{best:.3g}")
    if not told or not 0 <= chosen < 1:
        return None
    got = known.replace(epsilon=chosen).output(x.T).T
    off = float(np.max(np.abs(got - y)))
    return Fitted(chosen, low, high) if off <= SLACK * float(np.max(np.abs(y))) else None
