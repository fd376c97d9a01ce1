"""One call of a layer in any eager framework: what it is fed, and the moments of that.

Where the tensor lies in this processor's memory the compiled kernels read it there, once: for 8 MB of activations that
is half a millisecond, where the equations in PyTorch take 7.6 (one thread). Where it does not, or Numba is not
installed, the framework computes the equations of the core.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core import equations, ops
from batchnorm.core.accumulator import Accumulator
from batchnorm.core.padding import LeftOut, Told
from batchnorm.core.plan import Plan, mask_shape, plan
from batchnorm.core.record import LayerRecord
from batchnorm.errors import Refused
from batchnorm.kernels.on_arrays import TINY, compiled_moments

__all__ = ["Along", "Call", "Visit", "of_channels", "require_finite"]

Array = NDArray[Any]


class Call(ABC):
    """One call of a layer, seen before it is computed.

    Parameters
    ----------
    record : LayerRecord
        The layer's.
    x : tensor
        What it is fed.
    mask : tensor of bool, optional
        What counts of it.
    """

    refine = False
    """Whether the framework adds one number after another: see `equations.moments`."""
    threads: int | None = None
    """Threads that the framework itself was given; None is any number."""
    output: Any = None
    """What the layer gives, where `in_training` has computed that too; the layer's own code is then left out."""

    def __init__(self, record: LayerRecord, x: Any, mask: Any = None) -> None:
        self.name = record.name
        self.record = record
        self.x = x
        self.mask = mask
        self._data: Array | None = None

    def lies_along(self, told: Told) -> bool:
        """Whether it is known which positions of its input hold data: from its own mask, or as the data tell."""
        return self.mask is not None or self._at(told) is not None

    def leave_out(self, padding: LeftOut | None) -> None:
        """Count only the positions that hold data, where that is said of this layer and its own mask does not tell.

        Raises
        ------
        Refused
            They do not lie along its input.
        """
        if padding is None or self.name not in padding.layers or self.mask is not None:
            return
        self._data = self._at(padding.told)
        if self._data is None:
            raise _not_along(self.name, tuple(self.x.shape))

    def _at(self, told: Told) -> Array | None:
        how = plan(tuple(self.x.shape), self.record.axis, f"recalibrate: {self.name}")
        return told.at(tuple(int(self.x.shape[axis]) for axis in how.reduced))

    @abstractmethod
    def _namespace(self) -> Any:
        """What the equations are computed with, where the kernels cannot."""

    @abstractmethod
    def _widened(self) -> Any:
        """The input in float32, or as it is where it is float64."""

    @abstractmethod
    def _tensor(self, array: Array) -> Any:
        """A mask as the namespace takes it."""

    @abstractmethod
    def _array(self, tensor: Any) -> Array:
        """A copy of a tensor."""

    @abstractmethod
    def _memory(self) -> Array | None:
        """The input where it lies, not copied; None where this processor cannot read it there."""

    def moments(self) -> Accumulator:
        """Moments of its input, over what its mask counts.

        Raises
        ------
        Refused
            The input is not finite.
        """
        who = f"recalibrate: {self.name}"
        how = plan(tuple(self.x.shape), self.record.axis, who)
        if how.count == 0 or 0 in how.channel_shape:
            return self._nothing()
        counted = self._counted(how, who)
        if counted is not None and not counted.any():
            return self._nothing()
        found = self._by_kernels(how, counted)
        return self._by_equations(how, counted) if found is None else found

    def in_training(self) -> Accumulator:
        """`moments`; may leave in ``output`` what the layer gives in training mode, where both come from one pass."""
        return self.moments()

    def total(self) -> float:
        """The sum of its input: NaN where a NaN has arrived, and another number where anything has changed."""
        return float(np.sum(self._array(self.x).astype(np.float64)))

    def _nothing(self) -> Accumulator:
        return Accumulator(0, np.zeros(self.record.channels), np.zeros(self.record.channels))

    def _counted(self, how: Plan, who: str) -> Array | None:
        """What counts, at the input's rank: whole on the reduced axes, of length 1 on the channel axes; None is all."""
        mask = self._data if self.mask is None else np.asarray(self._array(self.mask), bool)
        if mask is None:
            return None
        aligned, full = mask_shape(mask.shape, tuple(self.x.shape), how.kept, who)
        return np.broadcast_to(mask.reshape(aligned), full)

    def _by_kernels(self, how: Plan, counted: Array | None) -> Accumulator | None:
        """None where the equations must do."""
        held = self._memory()
        if held is None or (counted is not None and any(counted.shape[axis] != 1 for axis in how.kept)):
            return None
        if held.size <= TINY:
            found = ops.moments(held.astype(np.float64), self.record.axis, mask=counted)
        else:
            one = compiled_moments(held, self.record.axis, counted, self.threads)
            if one is None:
                return None
            found = one
        return of_channels(self.record, found)

    def _by_equations(self, how: Plan, counted: Array | None) -> Accumulator:
        count: Any = how.count
        if counted is not None:
            count = counted.sum(axis=how.reduced, keepdims=True)
            count = int(count.item()) if count.size == 1 else count
        mask = None if counted is None else self._tensor(counted)
        return self._moments_of(self._widened(), how, count, mask)

    def _moments_of(self, wide: Any, how: Plan, count: Any, mask: Any) -> Accumulator:
        divisor: Any = count if isinstance(count, int) else np.maximum(count, 1)
        found = equations.moments(self._namespace(), wide, how.reduced, divisor, mask, refine=self.refine)
        parts = [self._array(each).astype(np.float64) for each in (found.high, found.low, found.variance)]
        require_finite(self.record, *parts)
        return Accumulator.from_parts(count, *parts)


Visit = Callable[[Call], None]


class Along:
    """A visit that learns along whose inputs the padding lies that is told of, in all their calls."""

    def __init__(self, told: Told | None) -> None:
        self._told = told
        self._lies: dict[str, bool] = {}

    def __call__(self, call: Call) -> None:
        """Look at a call."""
        if self._told is not None:
            self._lies[call.name] = self._lies.get(call.name, True) and call.lies_along(self._told)

    @property
    def layers(self) -> frozenset[str] | None:
        """The layers; None where nothing is told."""
        return None if self._told is None else frozenset(name for name, lies in self._lies.items() if lies)


def _not_along(name: str, shape: tuple[int, ...]) -> Refused:
    """Padding that lies along a layer's input in one batch, and not in another."""
    return Refused(
        f"recalibrate: the padding that the data tell of lies along the input of {name} in the first batch, and not in "
        f"one where that has shape {shape}. Pad all batches to a length that the strides before it divide, leave the "
        "layer out with --skip, or take mask or lengths out of the data."
    )


def of_channels(record: LayerRecord, found: ops.Moments) -> Accumulator:
    """Moments of a layer's input as they are added up.

    Raises
    ------
    Refused
        They are not finite.
    """
    require_finite(record, found.mean, found.variance)
    return Accumulator.from_moments(found)


def require_finite(record: LayerRecord, *parts: Array) -> None:
    """Moments that are numbers.

    Raises
    ------
    Refused
        They are not.
    """
    if not all(np.all(np.isfinite(part)) for part in parts):
        raise Refused(
            f"recalibrate: the input of {record.name} is not finite on this data, so that its statistics would not be "
            "either. Look for weights or statistics that are not finite before it: batchnorm check names them."
        )
