"""The layer record: what any file or live object knows about one batch normalization."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .dtypes import smallest_normal, unit_roundoff

__all__ = ["Averaging", "EpsilonSource", "LayerRecord", "Mode", "UpdatesSource"]

EpsilonSource = Literal["file", "option", "hint", "fit", "sibling", "unknown"]
Averaging = Literal["exponential", "cumulative", "unknown"]
Mode = Literal["by-call", "inference", "training", "frozen", "batch-statistics"]
UpdatesSource = Literal["num_batches_tracked", "optimizer iterations", "option"]

RENORM = "with renorm the layer averages standard deviations, so that momentum is not the share a variance keeps"
RECALIBRATED = "the statistics were recalibrated after training, so that no counter of updates is about them"
ARRAYS = ("gamma", "beta", "moving_mean", "moving_variance")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerRecord:
    """One batch normalization, in one vocabulary, whatever format it came from.

    Parameters
    ----------
    name : str
        The path from the model, joined by ``/`` where the format nests.
    kind : str
        The class or operator as the format spells it, ``"BatchNormalization"``.
    channels : int
        Elements of each array below.
    axis : int or tuple of int
        The axis or axes that are kept (not reduced).
    dtype : str
        NumPy's name of the type the statistics are stored in.
    epsilon : float or None
        The constant inside the root; None where the format holds none.
    epsilon_source : str
        Where ``epsilon`` comes from; ``"unknown"`` exactly when it is None.
    averaging : str
        How the moving statistics are updated.
    decay : float or None
        Share of the old value that one update keeps: Keras' momentum, 1 - PyTorch's.
    momentum : float or None
        The number as the file spells it, in the file's own convention.
    ddof : int or None
        The stored variance was divided by count - ddof.
    mode : str or None
        Whether the graph itself fixes training or inference; ``"by-call"`` where the caller decides.
    updates : int or None
        How often the moving statistics were updated, where that can be known.
    updates_source, updates_doubt : str or None
        Where ``updates`` comes from; or why a counter that the file holds was not believed.
    recalibrated : str or None
        How the statistics were taken anew after training, ``"one-pass"``, ``"sequential"``, ``"debias"`` or
        ``"merge"``; a counter of updates then says nothing of them.
    gamma, beta, moving_mean, moving_variance : array or None
        Shape ``(channels,)``, as stored. A gamma or beta of None is absent (1 and 0); a moving statistic of None is
        not held by the file.
    channel_shape : tuple of int
        Lengths of the kept axes; ``(channels,)`` for a single axis. Channels count through it in C order.
    initial_mean, initial_variance : float or None
        What the moving statistics started from; None where the file says they started from something else.
    renorm : bool
        Batch renormalization: the standard deviation is averaged, not the variance, so that no number of updates tells
        how much of the initial variance is left.
    source : str or None
        The line of the user's code that called the layer, where an exporter left it in the file.
    """

    name: str
    kind: str
    channels: int
    axis: int | tuple[int, ...]
    dtype: str
    epsilon: float | None
    epsilon_source: EpsilonSource
    averaging: Averaging = "unknown"
    decay: float | None = None
    momentum: float | None = None
    ddof: int | None = None
    mode: Mode | None = None
    updates: int | None = None
    updates_source: UpdatesSource | None = None
    updates_doubt: str | None = None
    recalibrated: str | None = None
    gamma: NDArray[Any] | None = None
    beta: NDArray[Any] | None = None
    moving_mean: NDArray[Any] | None = None
    moving_variance: NDArray[Any] | None = None
    channel_shape: tuple[int, ...] = ()
    initial_mean: float | None = 0.0
    initial_variance: float | None = 1.0
    renorm: bool = False
    source: str | None = None

    def __post_init__(self) -> None:
        if (self.epsilon is None) != (self.epsilon_source == "unknown"):
            raise ValueError(f"{self.name}: epsilon {self.epsilon} contradicts epsilon_source {self.epsilon_source!r}")
        for field in ARRAYS:
            array = getattr(self, field)
            if array is not None:
                object.__setattr__(self, field, self._checked(field, array))
        if not self.channel_shape:
            object.__setattr__(self, "channel_shape", (self.channels,))

    def _checked(self, field: str, array: NDArray[Any]) -> NDArray[Any]:
        flat = np.array(array).reshape(-1)
        if flat.size != self.channels:
            raise ValueError(f"{self.name}: {field} has {flat.size} elements; the layer has {self.channels} channels")
        flat.flags.writeable = False
        return flat

    @property
    def initial_weight(self) -> float | None:
        """``decay**updates``: the share of the initial value still in each moving average."""
        if self.updates is None or self.decay is None or self.averaging != "exponential":
            return None
        return float(self.decay**self.updates)

    def replace(self, **changes: Any) -> LayerRecord:
        """A copy with other values in the named fields."""
        return dataclasses.replace(self, **changes)

    def with_epsilon(self, epsilon: float | None, source: EpsilonSource = "option") -> LayerRecord:
        """A copy that takes ``epsilon`` where the file holds none; unchanged otherwise."""
        if epsilon is None or self.epsilon is not None:
            return self
        return self.replace(epsilon=float(epsilon), epsilon_source=source)

    def with_updates(self, updates: int | None, source: UpdatesSource) -> LayerRecord:
        """A copy that knows its number of updates, or why the counter cannot be that number.

        Returns
        -------
        LayerRecord
            With ``updates`` and ``updates_source`` set where the stored statistics allow it; otherwise with both None
            and ``updates_doubt`` saying what contradicts the counter. None as ``updates`` changes nothing.
        """
        if updates is None:
            return self
        doubt = self._doubt(updates)
        if doubt is None:
            return self.replace(updates=int(updates), updates_source=source, updates_doubt=None)
        return self.replace(updates=None, updates_source=None, updates_doubt=doubt)

    def with_recalibration(self, method: str) -> LayerRecord:
        """A copy that knows its statistics to be taken anew, so that no counter tells what is in them."""
        return self.replace(recalibrated=method, updates=None, updates_source=None, updates_doubt=RECALIBRATED)

    def untouched(self) -> bool:
        """Whether every moving mean and variance is still its initial value, to the bit."""
        if self.moving_mean is None or self.moving_variance is None:
            return False
        mean, variance = self.initial_mean, self.initial_variance
        if mean is None or variance is None:
            return False
        return bool(np.all(self.moving_mean == mean) and np.all(self.moving_variance == variance))

    def _doubt(self, updates: int) -> str | None:
        if self.renorm:
            return RENORM
        started_known = self.initial_mean is not None and self.initial_variance is not None
        if started_known and self.moving_mean is not None and self.moving_variance is not None:
            if updates == 0:
                return None if self.untouched() else "the counter says 0 updates, but the statistics have moved"
            if self.untouched() and self.decay != 1:
                return (
                    f"the counter says {updates} updates, but the statistics are still their initial "
                    f"{self.initial_mean:g} and {self.initial_variance:g}"
                )
        if self.decay is None or self.averaging != "exponential":
            return None
        return self._doubt_of_variance(updates, self.decay)

    def _doubt_of_variance(self, updates: int, decay: float) -> str | None:
        # A batch variance is never negative, so decay**t of the initial variance is a floor under the stored one. Where
        # a channel never varied, each update rounds the decay and the product, relative to what is left, until it is 0.
        if self.moving_variance is None or self.initial_variance is None:
            return None
        floor = decay**updates * self.initial_variance
        stored = self.moving_variance.astype(np.float64)
        lowest = float(np.min(stored, where=np.isfinite(stored), initial=np.inf))
        slack = min(1.0, 2 * (1 + updates) * unit_roundoff(self.dtype))
        if lowest >= max(0.0, floor * (1 - slack) - smallest_normal(self.dtype)):
            return None
        return (
            f"after {updates} updates at decay {decay:g} at least {floor:.3g} of the initial variance would be left, "
            f"but a stored variance is {lowest:.3g}"
        )
