"""What a comparison of two models holds: pairs of layers, and the constants in which they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .pairing import By

__all__ = ["Comparison", "Difference", "LayerPair", "What"]

What = Literal[
    "epsilon",
    "decay",
    "momentum-convention",
    "ddof",
    "gamma",
    "beta",
    "moving_mean",
    "moving_variance",
    "swapped gamma/beta",
    "swapped mean/variance",
    "axis",
    "mode",
    "dtype",
]


@dataclass(frozen=True, slots=True)
class Difference:
    """One constant that is not the same in both.

    Attributes
    ----------
    what : str
        The constant, or what was done to it.
    a, b : number, str, list or None
        Its value on either side; of an array, at `channel`. None is absent (gamma 1, beta 0) or unknown.
    max_output_change : float or None
        The maximum of ``abs(y_b(x) - y_a(x))``, where y_a is the layer of the first model in inference, y_b the same
        layer with this one constant taken from the second, and x runs, for each channel, from 3 standard deviations
        below its moving mean to 3 above, both of the first model. 0 for a constant that inference does not use; None
        where it cannot be known. For an axis the maximum also runs over which channel's constants meet which channel's
        values; for a mode it is the change on a batch that is constant, where training gives beta.
    channel : int or None
        Where an array's change is largest.
    channels : int or None
        In how many channels an array differs.
    detail : str
        In a sentence, what more is known of it.
    """

    what: What
    a: Any
    b: Any
    max_output_change: float | None
    channel: int | None = None
    channels: int | None = None
    detail: str = ""

    @property
    def changes_output(self) -> bool:
        """Whether the output is known to move (a NaN is a change)."""
        return self.max_output_change is not None and self.max_output_change != 0


@dataclass(frozen=True, slots=True)
class LayerPair:
    """A layer of one model and the same layer of another.

    ``max_output_change`` is that of all constants together; None where either epsilon is unknown and nothing differs.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    max_output_change: float | None
    paired_by: By


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every pair of layers, in the order of the first model, and the layers without a partner."""

    pairs: tuple[LayerPair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
