"""One output as arithmetic that can be read, checked and pasted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from batchnorm.core import reference
from batchnorm.core.record import LayerRecord

from .numbers import digits, shown

__all__ = ["Constants", "constants_of"]


@dataclass(frozen=True, slots=True)
class Constants:
    """The numbers of one channel, as they are printed (see `numbers.shown`); None is absent or unknown."""

    mean: float
    variance: float
    epsilon: float | None
    gamma: float | None = None
    beta: float | None = None

    @property
    def inv_std(self) -> float | None:
        """``1 / sqrt(variance + epsilon)``."""
        y = self._map(1.0, mean=0.0, gamma=None, beta=None)
        return y

    @property
    def scale(self) -> float | None:
        """``gamma * inv_std``: what a step of 1 in x moves y."""
        return self._map(1.0, mean=0.0, beta=None)

    @property
    def shift(self) -> float | None:
        """``beta - mean * scale``: y at x = 0."""
        return self._map(0.0)

    def output(self, x: float) -> float | None:
        """``gamma*(x - mean)/sqrt(variance + epsilon) + beta`` in float64; None without an epsilon."""
        return self._map(x)

    def formula(self, x: float) -> str:
        """The same as text; evaluates to `output` with ``sqrt`` (and ``epsilon`` where it is unknown) defined."""
        epsilon = "epsilon" if self.epsilon is None else digits(self.epsilon)
        factor = "" if self.gamma is None else f"{digits(self.gamma)}*"
        addend = "" if self.beta is None else _signed(self.beta)
        centered = f"({digits(x)}{_signed(-self.mean)})"
        return f"{factor}{centered}/sqrt({digits(self.variance)} + {epsilon}){addend}"

    def with_statistics(self, mean: float, variance: float) -> Constants:
        """The same gamma, beta and epsilon around other statistics."""
        return replace(self, mean=mean, variance=variance)

    def _map(self, x: float, **changes: float | None) -> float | None:
        use = replace(self, **changes)
        if use.epsilon is None:
            return None
        gamma, beta = (None if v is None else [v] for v in (use.gamma, use.beta))
        with np.errstate(all="ignore"):  # an overflow shows in the output
            y = reference.inference([[x]], [use.mean], [use.variance], gamma, beta, epsilon=use.epsilon)
        return float(y[0, 0])


def constants_of(record: LayerRecord, channel: int) -> Constants:
    """The stored numbers of one channel."""

    def at(values: object) -> float | None:
        return None if values is None else float(shown(values[channel]))  # type: ignore[index]

    mean, variance = at(record.moving_mean), at(record.moving_variance)
    return Constants(
        mean=0.0 if mean is None else mean,
        variance=1.0 if variance is None else variance,
        epsilon=record.epsilon,
        gamma=at(record.gamma),
        beta=at(record.beta),
    )


def _signed(value: float) -> str:
    # "- -0.5" reads as a misprint: the sign goes into the operator.
    return f" - {digits(-value)}" if value < 0 or digits(value) == "-0" else f" + {digits(value)}"
