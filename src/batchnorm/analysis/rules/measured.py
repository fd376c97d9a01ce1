"""What is known of a layer's input once data has run through the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Measured", "Measurements"]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One layer's input on the data."""


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """All layers' inputs on the data."""

    layers: Mapping[str, Measured] = field(default_factory=dict[str, Measured])
