"""One call of a layer that is fed a NumPy array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.accumulator import Accumulator
from batchnorm.core.ops import Moments
from batchnorm.core.plan import plan
from batchnorm.core.record import LayerRecord
from batchnorm.errors import Refused
from batchnorm.kernels import cpu
from batchnorm.kernels.on_arrays import Call as Kernel
from batchnorm.kernels.on_arrays import batch_norm, normalize

from .calls import Call, of_channels

__all__ = ["ArrayCall"]

Array = NDArray[Any]


class ArrayCall(Call):
    """See `Call`.

    Parameters
    ----------
    record : LayerRecord
        The layer's.
    x : array
        What it is fed.
    gamma, beta : array, optional
        The parameters of this call.
    spare : bool
        Whether nobody needs ``x`` afterwards, so that the output may take its place.
    rectifies : bool
        Whether the output is that of the ReLU behind the layer, of which the layer's own is nobody's.
    """

    def __init__(
        self,
        record: LayerRecord,
        x: Array,
        gamma: Array | None = None,
        beta: Array | None = None,
        *,
        spare: bool = False,
        rectifies: bool = False,
    ) -> None:
        super().__init__(record, x)
        self._parameters = gamma, beta
        self._rectifies = rectifies
        self._out = x if spare and x.flags.writeable else None

    def in_training(self) -> Accumulator:
        """`moments`, and in ``output`` what the layer gives in training mode; None where nothing counts."""
        who = f"recalibrate: {self.name}"
        how = plan(self.x.shape, self.record.axis, who)
        counted = self._counted(how, who)
        if not self.x.size or (counted is not None and not counted.any()):
            return self._nothing()
        found = self._in_place() if counted is None else None
        if found is not None:
            self.output = self.x
            return of_channels(self.record, found)
        given: Any = {"epsilon": self.record.epsilon, "axis": self.record.axis, "mask": counted, "out": self._out}
        with np.errstate(all="ignore"):
            y, found = batch_norm(self.x, *self._parameters, **given)
        self.output = self._rectified(y)
        return of_channels(self.record, found)

    def infer(self, mean: Array, variance: Array) -> Array:
        """What the layer gives with these statistics."""
        given: Any = {"epsilon": self.record.epsilon, "axis": self.record.axis}
        return self._rectified(normalize(self.x, mean, variance, *self._parameters, **given))

    def _rectified(self, y: Array) -> Array:
        return np.maximum(y, 0, out=y) if self._rectifies else y

    def _in_place(self) -> Moments | None:
        """The moments, and the output over the input from one read of it; None where the kernels do not take that.

        `batch_norm` reads it twice, so as to still have it where the result does not hold: numbers from 1e36 on.

        Raises
        ------
        Refused
            The input holds such numbers.
        """
        fast = None if self._out is None else Kernel.of(self.x, self.record.axis, None, f"recalibrate: {self.name}")
        if fast is None or fast.x is not self.x or self.x.dtype != np.float32:
            return None
        own, rows = cpu.view_of(self.x), np.empty((2, fast.channels))
        if not cpu.fits(own, axis=fast.axis):
            return None
        epsilon: Any = self.record.epsilon
        gamma, beta = self._parameters
        views: Any = fast.views(fast.parameters("recalibrate", epsilon, gamma=gamma, beta=beta))
        mean, variance = map(cpu.view_of, rows)
        views["activation"] = "relu" if self._rectifies else "identity"
        count = cpu.forward(own, own, mean, variance, axis=fast.axis, epsilon=epsilon, **views)
        if fast.failed(count, rows[1]) and np.all(np.isfinite(rows)):
            raise Refused(
                f"recalibrate: the input of {self.name} has a variance of {np.max(rows[1]):.0e} on this data, which "
                "float32 holds no output of. Scale the data, or leave out the samples that are no measurements."
            )
        return Moments(count, *rows)

    def _namespace(self) -> Any:
        return np

    def _widened(self) -> Any:
        return self.x if self.x.dtype == np.float64 else self.x.astype(np.float32)

    def _tensor(self, array: Array) -> Any:
        return array

    def _array(self, tensor: Any) -> Array:
        return np.array(tensor)

    def _memory(self) -> Array | None:
        return self.x
