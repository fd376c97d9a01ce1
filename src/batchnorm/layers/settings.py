"""A layer's settings as attributes: those that may be set later, and those that may not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from batchnorm.core.training import Rule, Statistics
from batchnorm.errors import ArgumentError

from . import arguments

__all__ = ["Settings"]


class Settings:
    """Momentum and epsilon may be set on a layer, and are checked; what its weights depend on is fixed."""

    _rule: Rule
    _renorm_momentum: float
    _renorm_clipping: Mapping[str, float] | None

    @property
    def _who(self) -> str:
        """Whose the arguments are, in messages."""
        raise NotImplementedError

    @property
    def momentum(self) -> float:
        """Share of the old value that one update keeps; may be set, from the next update on."""
        return self._rule.decay

    @momentum.setter
    def momentum(self, value: float) -> None:
        self._rule = replace(self._rule, decay=arguments.share(self._who, "momentum", value))

    @property
    def epsilon(self) -> float:
        """Added to the variance inside the root; may be set."""
        return self._rule.epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._rule = replace(self._rule, epsilon=arguments.positive(self._who, "epsilon", value))

    @property
    def renorm_momentum(self) -> float:
        """As `momentum`, of the averages that renorm corrects towards; may be set."""
        return self._renorm_momentum

    @renorm_momentum.setter
    def renorm_momentum(self, value: float) -> None:
        self._renorm_momentum = arguments.share(self._who, "renorm_momentum", value)
        if self._rule.renorm is not None:
            self._rule = replace(self._rule, renorm=replace(self._rule.renorm, decay=self._renorm_momentum))

    @property
    def renorm_clipping(self) -> dict[str, float] | None:
        """The limits of renorm, a copy of what was given; may be set."""
        return None if self._renorm_clipping is None else dict(self._renorm_clipping)

    @renorm_clipping.setter
    def renorm_clipping(self, value: Mapping[str, float] | None) -> None:
        limits = arguments.renorm_limits(self._who, value)
        self._renorm_clipping = None if value is None else dict(value)
        if self._rule.renorm is not None:
            self._rule = replace(self._rule, renorm=replace(self._rule.renorm, limits=limits))

    @property
    def statistics(self) -> Statistics:
        """How the moving statistics follow the batches; chosen at construction."""
        return self._rule.statistics

    @statistics.setter
    def statistics(self, value: Any) -> None:
        self._refuse("statistics", value)

    @property
    def ddof(self) -> int:
        """The stored variance is divided by count - ddof; chosen at construction."""
        return self._rule.ddof

    @ddof.setter
    def ddof(self, value: Any) -> None:
        self._refuse("ddof", value)

    @property
    def guard(self) -> bool:
        """Whether NaN and infinity are kept out of the moving statistics; chosen at construction."""
        return self._rule.guard

    @guard.setter
    def guard(self, value: Any) -> None:
        self._refuse("guard", value)

    @property
    def renorm(self) -> bool:
        """Whether training is batch renormalization; chosen at construction."""
        return self._rule.renorm is not None

    @renorm.setter
    def renorm(self, value: Any) -> None:
        self._refuse("renorm", value)

    def _refuse(self, name: str, value: Any) -> None:
        raise ArgumentError(
            f"{self._who}: {name} is chosen at construction, and cannot be set to {value!r}: the weights depend on "
            f"it. Make a layer with {name}={value!r} and pass it the weights."
        )
