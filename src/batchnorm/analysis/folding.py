"""What a batch normalization becomes inside the convolution or dense layer beside it: the algebra, and its rounding.

In inference a batch normalization is ``scale*x + shift`` in each channel, with ``scale = gamma/sqrt(variance +
epsilon)`` and ``shift = beta - mean*scale``. Behind a linear operation ``K x + b`` this gives
``(scale K) x + (scale b + shift)``; before it, ``(K scale) x + (b + K shift)``. Every kernel is brought into one form
for that, ``(groups, outputs of a group, inputs of a group, taps)``, computed in float64, brought back and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core import equations
from batchnorm.core.dtypes import unit_roundoff
from batchnorm.core.record import LayerRecord

__all__ = ["Affine", "Linear", "affine_of", "bound", "fits", "tolerance"]

Array = NDArray[np.float64]

STATED = 1e-5
"""What a folded model may differ by, as a share of its largest output, in float32."""
DEVIATIONS = 5
STEPS = 3


@dataclass(frozen=True, slots=True)
class Affine:
    """What inference does to each channel: ``scale*x + shift``, float64, shape (channels,)."""

    scale: Array
    shift: Array


def affine_of(record: LayerRecord) -> Affine:
    """Scale and shift of a layer that has its statistics and an epsilon.

    Returns
    -------
    Affine
        In float64 from the stored values, rounded nowhere before.
    """
    assert record.moving_mean is not None
    assert record.moving_variance is not None
    assert record.epsilon is not None
    gamma, beta = (None if each is None else each.astype(np.float64) for each in (record.gamma, record.beta))
    mean, variance = record.moving_mean.astype(np.float64), record.moving_variance.astype(np.float64)
    ones, zeros = np.ones(record.channels), np.zeros(record.channels)
    with np.errstate(all="ignore"):
        scale, shift = equations.fold(
            np, mean, variance, ones if gamma is None else gamma, zeros if beta is None else beta, record.epsilon
        )
    return Affine(np.asarray(scale), np.asarray(shift))


@dataclass(frozen=True, slots=True)
class Linear:
    """A convolution or dense operation in one form.

    Parameters
    ----------
    kernel : array
        Shape ``(groups, outputs of a group, inputs of a group, taps)``; a dense operation has one tap.
    bias : array
        Shape ``(outputs,)``; zeros where there is none.
    shape : tuple of int
        The kernel's as the format stores it.
    settings : mapping
        Those of its `batchnorm.core.graph.Operation`.
    transposed : bool
        A transposed convolution, whose groups lie along the inputs of its kernel.
    """

    kernel: Array
    bias: Array
    shape: tuple[int, ...]
    settings: Mapping[str, Any]
    transposed: bool = False

    @classmethod
    def of(cls, kernel: NDArray[Any], bias: NDArray[Any] | None, settings: Mapping[str, Any], kind: str) -> Linear:
        """From arrays as the format stores them.

        Raises
        ------
        ValueError
            Their shapes do not go with the settings.
        """
        transposed = kind == "conv_transpose"
        held = cls(np.zeros((1, 1, 1, 1)), np.zeros(1), kernel.shape, settings, transposed)
        form = held._grouped(kernel.astype(np.float64))
        outputs = form.shape[0] * form.shape[1]
        given = np.zeros(outputs)
        if bias is not None:
            flat = bias.astype(np.float64).reshape(-1)
            given = np.broadcast_to(flat, (outputs,)).copy()
        return cls(form, given, kernel.shape, settings, transposed)

    @property
    def inputs(self) -> int:
        """Channels that come in."""
        return self.kernel.shape[0] * self.kernel.shape[2]

    @property
    def outputs(self) -> int:
        """Channels that go out."""
        return self.kernel.shape[0] * self.kernel.shape[1]

    @property
    def terms(self) -> int:
        """How many products make one output."""
        return self.kernel.shape[2] * self.kernel.shape[3]

    def then(self, affine: Affine) -> Linear:
        """Followed by a batch normalization: ``scale*(K x + b) + shift``."""
        groups, outputs = self.kernel.shape[:2]
        kernel = self.kernel * affine.scale.reshape(groups, outputs, 1, 1)
        return self._with(kernel, self.bias * affine.scale + affine.shift)

    def after(self, affine: Affine) -> Linear:
        """Fed by a batch normalization: ``K (scale*x + shift) + b``; every output must see all taps."""
        groups, inputs = self.kernel.shape[0], self.kernel.shape[2]
        added = (self.kernel * affine.shift.reshape(groups, 1, inputs, 1)).sum(axis=(2, 3)).reshape(-1)
        return self._with(self.kernel * affine.scale.reshape(groups, 1, inputs, 1), self.bias + added)

    def stored(self, dtype: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Kernel and bias as the format stores them, rounded to a type."""
        return self._ungrouped(self.kernel).astype(dtype), self.bias.astype(dtype)

    def _with(self, kernel: Array, bias: Array) -> Linear:
        return Linear(kernel, bias, self.shape, self.settings, self.transposed)

    def _axes(self) -> tuple[int, int]:
        rank = len(self.shape)
        if self.settings.get("depthwise"):  # channels, then the multiplier
            return rank - 2, rank - 1
        first = self.settings["kernel_in_axis" if self.transposed else "kernel_out_axis"] % rank
        second = self.settings["kernel_out_axis" if self.transposed else "kernel_in_axis"] % rank
        return first, second

    def _grouped(self, kernel: Array) -> Array:
        moved = np.moveaxis(kernel, self._axes(), (0, 1))
        if self.settings.get("depthwise"):
            return moved.reshape(moved.shape[0], moved.shape[1], 1, -1)
        groups = int(self.settings.get("groups") or 1)
        if moved.shape[0] % groups:
            raise ValueError(f"{moved.shape[0]} channels in {groups} groups")
        form = moved.reshape(groups, moved.shape[0] // groups, moved.shape[1], -1)
        return form.swapaxes(1, 2) if self.transposed else form

    def _ungrouped(self, form: Array) -> Array:
        axes = self._axes()
        rest = [length for axis, length in enumerate(self.shape) if axis not in axes]
        if self.transposed and not self.settings.get("depthwise"):
            form = form.swapaxes(1, 2)
        lengths = [self.shape[axis] for axis in axes]
        return np.moveaxis(form.reshape(*lengths, *rest), (0, 1), axes)


def bound(terms: Sequence[int], dtype: Any) -> float:
    """What rounding alone should stay under: the largest difference of outputs, as a share of the largest output.

    ``5 sqrt(2 sum(n/6 (2^-24)^2 + 3 u^2))`` over the folded operations: both networks round independently, a sum of n
    products adds n/6 squared roundings of its accumulator (float32, or the type where that is wider), and the product,
    the stored weight and the stored result round once each in the type, of unit roundoff u. Five standard deviations.

    Parameters
    ----------
    terms : sequence of int
        For each folded operation, how many products make one of its outputs.
    dtype : dtype
        The widest roundoff among weights and outputs.

    Notes
    -----
    Probabilistic, after Higham and Mary (2019, SIAM J. Sci. Comput. 41, doi:10.1137/18M1226312): the worst case grows
    with n instead of its root, and no network comes near it. It takes for granted that the operations between neither
    amplify nor cancel; where they do, the proof shows it.
    """
    u = unit_roundoff(dtype)
    accumulator = min(u, unit_roundoff("float32"))
    return DEVIATIONS * math.sqrt(2 * sum(n / 6 * accumulator**2 + STEPS * u**2 for n in terms))


def tolerance(terms: Sequence[int], dtype: Any) -> float:
    """What the proof demands: 1e-5 in float32; in other types what rounding explains."""
    u = unit_roundoff(dtype)
    return STATED if u == unit_roundoff("float32") else min(bound(terms, dtype), 0.25)


def fits(linear: Linear, channels: int, *, before: bool) -> bool:
    """Whether as many channels go out, or come in, as the batch normalization has."""
    return channels == (linear.inputs if before else linear.outputs)
