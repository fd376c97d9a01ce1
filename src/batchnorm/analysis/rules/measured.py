"""What data shows of a layer's input: streamed moments, and how far sampling alone moves them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.accumulator import Accumulator
from batchnorm.core.padding import Told
from batchnorm.core.plan import mask_shape
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError
from batchnorm.kernels.on_arrays import moments

from .order import Order, order_of
from .padding import Padding, PaddingSeen

__all__ = ["Measured", "Measurements", "Stream"]

Array = NDArray[np.float64]
FEW_BATCHES = 4
"""Fewer batches of one size say nothing about the spread of their variances."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One layer's input on the data, all calls together.

    Attributes
    ----------
    samples, count : int
        Samples, and elements a channel.
    mean, variance : array
        Of all elements of each channel, the variance with divisor count.
    mean_noise, variance_noise : array
        What one sample adds to the variance of the two estimates: theirs is that over the number of samples. A sample's
        elements go together, as neighbouring pixels say nearly the same.
    batch_size : int or None
        Samples of most batches; None where the data came as one array without a batch size.
    spread : array or None
        Standard deviation of the batch variances over their mean, each channel; None without four batches of one size.
    highest : array or None
        Each channel's largest output.
    low, high : array
        Each channel's smallest and largest input.
    calls : tuple of Accumulator
        Of each call by itself.
    padding : Padding or None
        Padding at the end of sequences, where there is some.
    order : Order or None
        How batches differ from each other; None without four batches of one size.
    """

    samples: int
    count: int
    mean: Array
    variance: Array
    mean_noise: Array
    variance_noise: Array
    low: Array
    high: Array
    highest: Array | None = None
    batch_size: int | None = None
    spread: Array | None = None
    calls: tuple[Accumulator, ...] = ()
    padding: Padding | None = None
    order: Order | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """All layers' inputs on the data.

    Attributes
    ----------
    layers : mapping
        Layer name -> what it was fed; a layer that the data did not reach is missing.
    remedies : mapping
        A change of the model's input, in words -> the effect that is left in the first layer with it; empty where the
        first layer has no gap.
    """

    samples: int
    layers: Mapping[str, Measured] = field(default_factory=dict[str, Measured])
    remedies: Mapping[str, float] = field(default_factory=dict[str, float])


class Stream:
    """Measures one layer batch by batch; memory does not grow with the data.

    Parameters
    ----------
    record : LayerRecord
        Whose input it is.
    batched : bool
        The batches are those of training, so that their size and the spread of their variances mean something.
    """

    def __init__(self, record: LayerRecord, batched: bool) -> None:
        self._record = record
        self._batched = batched
        self._total: Accumulator | None = None
        self._influence: Accumulator | None = None
        self._origin: Array | None = None
        self._calls: list[Accumulator] = []
        self._batches: dict[int, Accumulator] = {}
        self._means: dict[int, Accumulator] = {}
        self._sizes = Counter[int]()
        self._samples = 0
        self._low = np.full(record.channels, np.inf)
        self._high = np.full(record.channels, -np.inf)
        self._highest: Array | None = None
        self._padding = PaddingSeen(record)

    def add(
        self,
        calls: Sequence[tuple[NDArray[Any], NDArray[Any]]],
        samples: int,
        masks: Sequence[NDArray[Any] | None] = (),
        told: Told | None = None,
    ) -> None:
        """The inputs and outputs of a layer's calls on one batch of so many samples.

        ``masks`` are what the layer itself leaves out of its statistics, call by call; ``told`` is what is known of the
        padding, whatever the layer makes of it.
        """
        whole: Accumulator | None = None
        for place, (x, y) in enumerate(calls):
            last = self._channels_last(x)
            own = self._own(masks[place] if place < len(masks) else None, x)
            known = own if own is not None or told is None else told.at(last.shape[:-1])
            self._padding.add(last, known, "layer" if own is not None or told is None else told.source)
            rows, keep = self._rows(last, own, samples, 0 not in self._kept_axes(x.ndim))
            table = rows.reshape(-1, self._record.channels) if keep is None else rows[keep]
            if not len(table):
                continue  # padding through and through
            one = Accumulator.from_moments(moments(table, -1))
            whole = one if whole is None else whole.merge(one)
            if place == len(self._calls):
                self._calls.append(one)
            else:
                self._calls[place] = self._calls[place].merge(one)
            self._per_sample(rows, keep)
            self._low = np.minimum(self._low, table.min(axis=0))
            self._high = np.maximum(self._high, table.max(axis=0))
            top = self._channels_last(y).reshape(-1, self._record.channels).max(axis=0)
            self._highest = top if self._highest is None else np.maximum(self._highest, top)
        if whole is None:
            return
        self._total = whole if self._total is None else self._total.merge(whole)
        self._samples += samples
        self._sizes[samples] += 1
        for kept, each in ((self._batches, whole.variance(0)), (self._means, whole.mean)):
            one = Accumulator(1, each, np.zeros(self._record.channels))
            kept[samples] = kept[samples].merge(one) if samples in kept else one

    def _kept_axes(self, ndim: int) -> tuple[int, ...]:
        axes = self._record.axis if isinstance(self._record.axis, tuple) else (self._record.axis,)
        return tuple(sorted(axis % ndim for axis in axes))

    def _channels_last(self, x: NDArray[Any]) -> Array:
        """Shape (positions..., channels)."""
        kept = self._kept_axes(x.ndim)
        last = np.moveaxis(np.asarray(x).astype(np.float64), kept, tuple(range(-len(kept), 0)))
        return last.reshape(*last.shape[: last.ndim - len(kept)], self._record.channels)

    def _own(self, mask: NDArray[Any] | None, x: NDArray[Any]) -> NDArray[np.bool_] | None:
        """A layer's own mask over its positions."""
        if mask is None:
            return None
        kept = self._kept_axes(x.ndim)
        try:
            aligned, _ = mask_shape(mask.shape, x.shape, kept)
        except ArgumentError:
            aligned = (1,) * (x.ndim - mask.ndim) + mask.shape  # Flax' own, which may differ from channel to channel
        whole = np.moveaxis(np.broadcast_to(mask.reshape(aligned), x.shape), kept, tuple(range(-len(kept), 0)))
        return np.all(whole.reshape(*whole.shape[: whole.ndim - len(kept)], -1), axis=-1)

    def _rows(
        self, last: Array, own: NDArray[np.bool_] | None, samples: int, batch_first: bool
    ) -> tuple[Array, NDArray[np.bool_] | None]:
        """Shape (samples, elements of a sample, channels), and which of them count."""
        table = last.reshape(-1, self._record.channels)
        whole = samples > 0 and len(table) % samples == 0 and batch_first
        rows = table.reshape(samples if whole else len(table), -1, self._record.channels)
        return rows, None if own is None else own.reshape(rows.shape[:2])

    def _per_sample(self, rows: Array, keep: NDArray[np.bool_] | None) -> None:
        counted: Any = True
        if keep is not None:
            some = keep.any(axis=1)
            rows, counted = rows[some], keep[some][..., None]
        origin: Array = rows.mean(axis=(0, 1), where=counted) if self._origin is None else self._origin
        self._origin = origin
        distance = rows - origin
        first, second = distance.mean(axis=1, where=counted), (distance**2).mean(axis=1, where=counted)
        # Side by side with their sum: its variance gives the covariance of the two.
        found = Accumulator.from_moments(moments(np.concatenate([first, second, first + second], axis=1), -1))
        self._influence = found if self._influence is None else self._influence.merge(found)

    def result(self) -> Measured | None:
        """What was seen; None where the data did not reach the layer."""
        if self._total is None or self._influence is None:
            return None
        mean_noise, variance_noise = self._noise(self._influence)
        return Measured(
            samples=self._samples,
            count=int(np.max(self._total.count)),
            mean=self._total.mean,
            variance=self._total.variance(0),
            mean_noise=mean_noise,
            variance_noise=variance_noise,
            low=self._low,
            high=self._high,
            highest=self._highest,
            batch_size=self._sizes.most_common(1)[0][0] if self._batched else None,
            spread=self._spread() if self._batched else None,
            calls=tuple(self._calls),
            padding=self._padding.result(),
            order=self._order(mean_noise, self._total.variance(0)) if self._batched else None,
        )

    def _order(self, mean_noise: Array, variance: Array) -> Order | None:
        size = max(self._means, key=lambda n: float(self._means[n].count))
        return order_of(self._means[size], size, mean_noise, variance)

    def _noise(self, seen: Accumulator) -> tuple[Array, Array]:
        # The variance estimate is mean(Q) - mean(D)^2, so that one sample moves it by Q - 2*mean(D)*D.
        first, second, both = np.split(seen.variance(1), 3)
        mean = np.split(seen.mean, 3)[0]
        covariance = (both - first - second) / 2
        return first, np.maximum(second - 4 * mean * covariance + 4 * mean**2 * first, 0.0)

    def _spread(self) -> Array | None:
        size = max(self._batches, key=lambda n: float(self._batches[n].count))
        batches = self._batches[size]
        if np.max(batches.count) < FEW_BATCHES:
            return None
        with np.errstate(all="ignore"):
            return np.sqrt(batches.variance(1)) / batches.mean
