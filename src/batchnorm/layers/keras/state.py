"""The layer's variables: made, updated by `core.training`, saved and loaded."""

# Keras ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUntypedClassDecorator=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from batchnorm.core import training
from batchnorm.core.training import State
from batchnorm.errors import ArgumentError
from batchnorm.layers.settings import Settings

from . import shapes
from .backends import running, value

__all__ = ["Stateful", "wide_type"]


def wide_type(dtype: str) -> str:
    """The type the arithmetic is done in: float64 for float64, float32 for all others."""
    # Not keras.backend.result_type: on JAX it answers float32 for float64 also where 64 bits are enabled.
    return "float64" if dtype == "float64" else "float32"


class Stateful(Settings, keras.layers.Layer):
    """A layer that holds gamma, beta and the state of a `Rule`; `BatchNormalization` says what they mean."""

    @property
    def _who(self) -> str:
        return f"BatchNormalization '{self.name}'"

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the variables, in Keras' order and with Keras' names."""
        self._plan = how = shapes.layout(tuple(input_shape), self.axis, self._who)
        channels = tuple(input_shape[i] for i in how.kept)
        if None in channels:
            raise ArgumentError(
                f"{self._who}: the length of the channel axis must be known; axis={self.axis} of an input of shape "
                f"{tuple(input_shape)} is not. Give the input a fixed number of channels."
            )
        self.gamma = self._parameter("gamma", channels) if self.scale else None
        self.beta = self._parameter("beta", channels) if self.center else None
        for name in training.state_names(self._rule):
            setattr(self, name, self._statistic(name, channels))
        self._count_skipped(channels)
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes={i: input_shape[i] for i in how.kept})

    def _parameter(self, name: str, channels: tuple[int | None, ...]) -> Any:
        return self.add_weight(
            shape=channels,
            name=name,
            initializer=getattr(self, f"{name}_initializer"),
            regularizer=getattr(self, f"{name}_regularizer"),
            constraint=getattr(self, f"{name}_constraint"),
            trainable=True,
            autocast=False,
        )

    def _statistic(self, name: str, channels: tuple[int | None, ...]) -> Any:
        return self.add_weight(
            shape=channels,
            name=name,
            initializer=self._initializer_of(name),
            dtype=wide_type(self.variable_dtype),
            trainable=False,
            autocast=False,
        )

    def _initializer_of(self, name: str) -> Any:
        mean, variance = (_fresh(i) for i in (self.moving_mean_initializer, self.moving_variance_initializer))
        if name.endswith("stddev"):
            return lambda shape, dtype=None: ops.sqrt(variance(shape, dtype=dtype))
        given = {"moving_mean": mean, "renorm_mean": mean, "moving_variance": variance}
        return given.get(name) or ("ones" if name == "remaining" else "zeros")

    def _count_skipped(self, channels: tuple[int | None, ...]) -> None:
        # Not by setattr: Keras would track it, and it is not part of the saved state.
        skipped = keras.Variable("zeros", shape=channels, dtype="float32", trainable=False, name="skipped_updates")
        object.__setattr__(self, "_skipped", skipped if self.guard else None)

    @property
    def skipped_updates(self) -> Any:
        """How many updates the guard skipped, per channel, since the layer was built: an array of int."""
        skipped = getattr(self, "_skipped", None)
        return None if skipped is None else ops.convert_to_numpy(skipped).astype(np.int64)

    @property
    def variables(self) -> list[Any]:
        """All state. On JAX, where state travels through compiled steps as arguments, also `skipped_updates`."""
        skipped = getattr(self, "_skipped", None)
        carried = skipped is not None and running.COUNTED_IN_STATE
        return [*super().variables, skipped] if carried else super().variables

    def _state(self) -> State:
        return {name: value(getattr(self, name)) for name in training.state_names(self._rule)}

    def _remember(self, state: State, skipped: Any) -> None:
        for name, new in state.items():
            getattr(self, name).assign(new)
        if self._skipped is not None and skipped is not None:
            self._skipped.assign_add(skipped)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the variables from arrays; those of a layer without ``remaining`` or ``updates`` will do.

        Where ``remaining`` is not given it becomes 0: the given statistics are taken to hold nothing of the initial
        value. Where ``updates`` is not given it becomes 0: the given statistics normalise until the next update,
        which begins the average anew.
        """
        weights = list(weights)
        if self._lacks_own(len(weights), len(self.weights)):
            weights.append(np.zeros(self.moving_mean.shape, "float32"))
        super().set_weights(weights)

    def load_own_variables(self, store: Any) -> None:
        """Load from a file; as in `set_weights`, one of a layer without ``remaining`` or ``updates`` will do."""
        expected = len(self._trainable_variables) + len(self._non_trainable_variables)
        if self._lacks_own(len(store.keys()), expected):
            given = {key: store[key] for key in store.keys()}
            store = {**given, str(expected - 1): np.zeros(self.moving_mean.shape, "float32")}
        super().load_own_variables(store)

    def _lacks_own(self, given: int, expected: int) -> bool:
        return self.built and self.statistics in ("debiased", "cumulative") and given == expected - 1


def _fresh(initializer: Any) -> Any:
    # An initializer with a seed gives the same numbers once only; Keras clones it for each further variable.
    if isinstance(initializer, keras.initializers.Initializer):
        return initializer.__class__.from_config(initializer.get_config())
    return initializer
