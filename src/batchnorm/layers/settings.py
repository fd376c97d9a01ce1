"""The settings of the NumPy layer as attributes: those that may be set later, and those that may not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from batchnorm.core.training import Rule, Statistics
from batchnorm.errors import ArgumentError

from . import arguments

__all__ = ["Settings"]


class Settings:
    """Momentum and epsilon may be set on a layer, and are checked; what its weights depend on is fixed."""

    name: str
    rule: Rule
    _renorm_momentum: float

    @property
    def momentum(self) -> float:
        """Share of the old value that one update keeps; may be set, from the next update on."""
        return self.rule.decay

    @momentum.setter
    def momentum(self, value: float) -> None:
        self.rule = replace(self.rule, decay=arguments.share(self.name, "momentum", value))

    @property
    def epsilon(self) -> float:
        """Added to the variance inside the root; may be set."""
        return self.rule.epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self.rule = replace(self.rule, epsilon=arguments.positive(self.name, "epsilon", value))

    @property
    def renorm_momentum(self) -> float:
        """As `momentum`, of the averages that renorm corrects towards; may be set."""
        return self._renorm_momentum

    @renorm_momentum.setter
    def renorm_momentum(self, value: float) -> None:
        self._renorm_momentum = arguments.share(self.name, "renorm_momentum", value)
        if self.rule.renorm is not None:
            self.rule = replace(self.rule, renorm=replace(self.rule.renorm, decay=self._renorm_momentum))

    @property
    def statistics(self) -> Statistics:
        """How the moving statistics follow the batches; chosen at construction."""
        return self.rule.statistics

    @statistics.setter
    def statistics(self, value: Any) -> None:
        self._refuse("statistics", value)

    @property
    def ddof(self) -> int:
        """The stored variance is divided by count - ddof; chosen at construction."""
        return self.rule.ddof

    @ddof.setter
    def ddof(self, value: Any) -> None:
        self._refuse("ddof", value)

    @property
    def guard(self) -> bool:
        """Whether NaN and infinity are kept out of the moving statistics; chosen at construction."""
        return self.rule.guard

    @guard.setter
    def guard(self, value: Any) -> None:
        self._refuse("guard", value)

    @property
    def renorm(self) -> bool:
        """Whether training is batch renormalization; chosen at construction."""
        return self.rule.renorm is not None

    @renorm.setter
    def renorm(self, value: Any) -> None:
        self._refuse("renorm", value)

    def _refuse(self, name: str, value: Any) -> None:
        raise ArgumentError(
            f"{self.name}: {name} is chosen at construction, and cannot be set to {value!r}: the weights depend on it. "
            f"Make a layer with {name}={value!r} and pass it the weights."
        )
