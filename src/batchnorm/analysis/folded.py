"""Layers of which a converter left a scale and a shift in place of the statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.dtypes import unit_roundoff
from batchnorm.core.equations import fold
from batchnorm.core.record import LayerRecord

from .constants import Constants

__all__ = ["SLACK", "effective", "is_folded", "is_merged", "same_map", "scale_and_shift"]

Array = NDArray[np.float64]
SLACK = 16 * unit_roundoff("float32")
"""Converters fold in float32: the sum, the root, the quotient and the product are each rounded, a few times over."""


def is_folded(record: LayerRecord) -> bool:
    """Whether a file holds the scale and shift of a layer that always infers, in place of its statistics."""
    known = record.epsilon_source == "file"  # an epsilon that a user gives for all layers is none of a folded one
    return record.mode == "inference" and record.moving_variance is None and not known


def is_merged(record: LayerRecord) -> bool:
    """Whether not even scale and shift are there: they are part of another operator's weights."""
    return is_folded(record) and record.gamma is None


def effective(record: LayerRecord) -> LayerRecord:
    """The same map as a layer of variance 1 and epsilon 0, where a record is folded; any other as it is."""
    if not is_folded(record) or record.gamma is None:
        return record
    mean = np.zeros_like(record.gamma) if record.moving_mean is None else record.moving_mean
    return record.replace(
        moving_mean=mean, moving_variance=np.ones_like(record.gamma), epsilon=0.0, epsilon_source="file"
    )


def same_map(a: Constants, b: LayerRecord) -> bool:
    """Whether a folded layer holds just the scale and shift of these constants, up to the rounding of a converter."""
    right = Constants.of(effective(b), 0.0)
    return _scales_agree(a, right) and _shifts_agree(a, right, b.moving_mean is not None)


def scale_and_shift(constants: Constants) -> tuple[Array, Array]:
    """``scale, shift`` of the same map ``x*scale + shift``."""
    with np.errstate(all="ignore"):
        return fold(
            np,
            constants.moving_mean,
            constants.moving_variance,
            constants.gamma,
            constants.beta,
            constants.epsilon,
        )


def _scales_agree(a: Constants, b: Constants) -> bool:
    return _close(a.scale(), b.scale(), np.abs(a.scale()))


def _shifts_agree(a: Constants, b: Constants, has_mean: bool) -> bool:
    if has_mean:
        pairs = ((a.moving_mean, b.moving_mean), (a.beta, b.beta))
        return all(_close(p, q, np.abs(p)) for p, q in pairs)
    with np.errstate(all="ignore"):
        size = np.abs(a.beta) + np.abs(a.moving_mean * a.scale())
    return _close(scale_and_shift(a)[1], scale_and_shift(b)[1], size)


def _close(p: Array, q: Array, size: Array) -> bool:
    with np.errstate(invalid="ignore"):
        near = np.abs(p - q) <= SLACK * size
    return bool(np.all(near | (p == q) | (np.isnan(p) & np.isnan(q))))
