"""What the NumPy layer is made of: its settings, its weights, and how both are saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.core.arrays import as_axis, as_float
from batchnorm.core.plan import Plan, plan
from batchnorm.core.training import Renorm, Rule, State, Statistics, inference_statistics, state_names
from batchnorm.errors import ArgumentError

from . import arguments
from .settings import Settings

__all__ = ["Weighted"]

Array = NDArray[Any]
STATISTICS = ("moving", "debiased", "cumulative")
DTYPES = ("float32", "float64")
HISTORY = ("remaining", "updates")
"""State that says how the statistics came about; weights from another layer come without."""


class Weighted(Settings):
    """Settings and weights of a batch normalization layer; `batchnorm.BatchNormalization` documents the arguments."""

    @property
    def _who(self) -> str:
        return self.name

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        *,
        statistics: Statistics = "moving",
        ddof: int = 0,
        guard: bool = True,
        virtual_batch_size: int | None = None,
        renorm: bool = False,
        renorm_clipping: Mapping[str, float] | None = None,
        renorm_momentum: float = 0.99,
        name: str = "batch_normalization",
        trainable: bool = True,
        dtype: Any = "float32",
    ) -> None:
        self.name, self.trainable = str(name), bool(trainable)
        self.axis = as_axis(axis, self.name)
        self.center, self.scale = bool(center), bool(scale)
        self.virtual_batch_size = virtual_batch_size
        self._renorm_momentum = arguments.share(self.name, "renorm_momentum", renorm_momentum)
        limits = arguments.renorm_limits(self.name, renorm_clipping)
        self._renorm_clipping = None if renorm_clipping is None else dict(renorm_clipping)
        self._rule = Rule(
            epsilon=arguments.positive(self.name, "epsilon", epsilon),
            decay=arguments.share(self.name, "momentum", momentum),
            ddof=arguments.one_of(self.name, "ddof", ddof, (0, 1)),
            statistics=arguments.one_of(self.name, "statistics", statistics, STATISTICS),
            guard=bool(guard),
            renorm=Renorm(limits, self._renorm_momentum) if renorm else None,
        )
        self.dtype = np.dtype(arguments.one_of(self.name, "dtype", arguments.dtype_name(dtype), DTYPES))
        self.gamma: Array | None = None
        self.beta: Array | None = None
        self.updates: int | None = 0
        self.skipped_updates: Array | None = None
        self._state: State = {}

    @property
    def virtual_batch_size(self) -> int | None:
        """Samples in each part of a batch, None for the batch as a whole; may be set."""
        return self._virtual_batch_size

    @virtual_batch_size.setter
    def virtual_batch_size(self, value: int | None) -> None:
        self._virtual_batch_size = arguments.positive_int_or_none(self.name, "virtual_batch_size", value)

    @property
    def built(self) -> bool:
        """Whether the weights exist."""
        return bool(self._state)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights for an input of this shape; lengths other than the channels' may be None.

        The first call of the layer does it by itself. Building again for the same channels changes nothing.
        """
        shape = tuple(-1 if n is None else int(n) for n in input_shape)
        how = plan(shape, self.axis, self.name)
        if -1 in how.channel_shape:
            raise ArgumentError(f"{self.name}: build needs the length of axis {self.axis}; got {tuple(input_shape)}.")
        self._accept(shape, how)

    def _accept(self, shape: tuple[int, ...], how: Plan) -> None:
        if not self.built:
            self._make_weights(how.channel_shape)
        held = self._state["moving_mean"].shape
        if how.channel_shape != held:
            raise ArgumentError(
                f"{self.name}: the layer has {_channels(held)} channels on axis {self.axis}; got an input of shape "
                f"{shape}, which has {_channels(how.channel_shape)} there. Pass "
                "the axis that holds the channels, or make a layer for these."
            )

    def _make_weights(self, shape: tuple[int, ...]) -> None:
        self.gamma = np.ones(shape, self.dtype) if self.scale else None
        self.beta = np.zeros(shape, self.dtype) if self.center else None
        self._state = {name: np.full(shape, initial, self.dtype) for name, initial in state_names(self._rule).items()}
        self.skipped_updates = np.zeros(shape, np.int64)

    @property
    def moving_mean(self) -> Array | None:
        """The moving average of the batch means, as stored."""
        return self._state.get("moving_mean")

    @property
    def moving_variance(self) -> Array | None:
        """The moving average of the batch variances, as stored."""
        return self._state.get("moving_variance")

    def inference_statistics(self) -> tuple[Array, Array]:
        """Mean and variance that inference normalises with: the moving ones, debiased where that is asked for.

        Raises
        ------
        ArgumentError
            The layer has no weights yet.
        """
        if not self.built:
            raise ArgumentError(f"{self.name}: the layer has no weights yet. Call it on data, or build it, first.")
        return inference_statistics(np, self._rule, self._state)

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Names of the weights in their order: Keras' order, then ``remaining`` or ``updates``."""
        present = {"gamma": self.scale, "beta": self.center}
        return (*(name for name, here in present.items() if here), *state_names(self._rule))

    @property
    def weights(self) -> list[Array]:
        """The weights themselves, in the order of `weight_names`; empty before the layer is built."""
        if not self.built:
            return []
        return [getattr(self, name) if name in ("gamma", "beta") else self._state[name] for name in self.weight_names]

    def get_weights(self) -> list[Array]:
        """Copies of the weights, in the order of `weight_names`."""
        return [np.array(one) for one in self.weights]

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Take weights in the order of `weight_names`, from `get_weights` or from another layer (Keras' too).

        Weights from a layer with plain moving statistics come without ``remaining`` or ``updates``, which are then 0:
        inference takes the statistics as they are.

        Parameters
        ----------
        weights : sequence of array_like
            All of them, or all but the last in the modes that have one more than Keras. A layer that is not built yet
            takes the shape of the first.

        Raises
        ------
        ArgumentError
            Another number of arrays, or an array of another shape. Nothing is changed then.
        """
        names = self.weight_names
        wanted = names[:-1] if names[-1] in HISTORY and len(weights) == len(names) - 1 else names
        if len(weights) != len(wanted):
            raise ArgumentError(
                f"{self.name}: set_weights needs {len(names)} arrays, {', '.join(names)}; got {len(weights)}."
            )
        arrays = {key: as_float(one, self.name) for key, one in zip(wanted, weights, strict=True)}
        shape = self._state["moving_mean"].shape if self.built else arrays[wanted[0]].shape
        for key, one in arrays.items():
            if one.shape != shape:
                raise ArgumentError(f"{self.name}: {key} must have the shape {shape}; got {one.shape}.")
        if not self.built:
            self._make_weights(shape)
        self._take({key: np.zeros(shape) for key in names} | arrays)

    def _take(self, arrays: Mapping[str, Array]) -> None:
        new = {key: one.astype(self.dtype) for key, one in arrays.items()}
        self.gamma, self.beta = new.pop("gamma", None), new.pop("beta", None)
        self._state = new
        self.updates = int(new["updates"].max(initial=0)) if "updates" in new else None

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON holds them."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": self.dtype.name,
            "axis": list(self.axis) if isinstance(self.axis, tuple) else self.axis,
            "momentum": self._rule.decay,
            "epsilon": self._rule.epsilon,
            "center": self.center,
            "scale": self.scale,
            "statistics": self._rule.statistics,
            "ddof": self._rule.ddof,
            "guard": self._rule.guard,
            "virtual_batch_size": self.virtual_batch_size,
            "renorm": self._rule.renorm is not None,
            "renorm_clipping": self.renorm_clipping,
            "renorm_momentum": self.renorm_momentum,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A new layer, without weights, from what `get_config` gave."""
        return cls(**config)

    def __repr__(self) -> str:
        """Class, name and the settings that matter most."""
        return (
            f"{type(self).__name__}(name={self.name!r}, axis={self.axis}, momentum={self._rule.decay:g}, "
            f"epsilon={self._rule.epsilon:g}, statistics={self._rule.statistics!r})"
        )


def _channels(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
