"""What a recalibration changes in the model's outputs: the gap between the modes, and the accuracy."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.calibration import Bench

from .passes import Gather
from .streams import Batch

__all__ = ["accuracy", "gap"]

Array = NDArray[Any]


def gap(bench: Bench, batches: Sequence[Batch], training: Collection[str], gather: Gather) -> float | None:
    """How far outputs in inference mode lie from those in training mode, over their spread in training mode.

    ``sqrt(sum((inference - training)^2) / sum((training - mean(training))^2))`` over all floating-point outputs, the
    mean over the samples; None where there is nothing to compare.
    """
    apart = spread = 0.0
    for batch in batches:
        if batch.samples < 2:
            continue
        pair = zip(*(_floats(bench.outputs(batch.inputs, names)) for names in ((), training)), strict=True)
        for inference, trained in pair:
            if inference.shape == trained.shape:
                apart += float(np.sum((inference - trained) ** 2))
                spread += float(np.sum((trained - trained.mean(axis=0)) ** 2))
    parts = gather((apart, spread))
    apart, spread = (sum(part[place] for part in parts) for place in (0, 1))
    return float(np.sqrt(apart / spread)) if spread > 0 and np.isfinite(apart) else None


def accuracy(bench: Bench, batches: Collection[Batch] | Any, gather: Gather) -> float | None:
    """The share of labels that the largest of the model's (first) outputs names; None without such labels."""
    right = total = 0
    for batch in batches:
        if batch.labels is None:
            continue
        outputs = _floats(bench.outputs(batch.inputs))
        hits = _hits(outputs[0], batch.labels) if outputs else None
        if hits is not None:
            right += int(hits.sum())
            total += hits.size
    parts = gather((right, total))
    right, total = (sum(part[place] for part in parts) for place in (0, 1))
    return right / total if total else None


def _hits(outputs: Array, labels: Array) -> Array | None:
    if labels.shape == outputs.shape and outputs.ndim > 1 and outputs.shape[-1] > 1:
        return np.equal(outputs.argmax(-1), labels.argmax(-1))  # one-hot
    if labels.dtype.kind not in "iub":
        return None
    flat = labels.reshape(labels.shape[:-1]) if labels.ndim > 1 and labels.shape[-1] == 1 else labels
    for axis in (-1, 1):
        if outputs.ndim < 2 or outputs.shape[axis] < 2:
            continue
        best = outputs.argmax(axis)
        if best.shape == flat.shape:
            return np.equal(best, flat)
    return None


def _floats(outputs: Any) -> list[Array]:
    """Every floating-point array of the outputs, in float64."""
    if isinstance(outputs, dict):
        return [array for value in cast("dict[Any, Any]", outputs).values() for array in _floats(value)]
    if isinstance(outputs, (list, tuple)):
        return [array for value in cast("list[Any]", outputs) for array in _floats(value)]
    array = np.asarray(outputs)
    is_float = array.ndim > 0 and (array.dtype.kind == "f" or array.dtype.name == "bfloat16")
    return [array.astype(np.float64)] if is_float else []
