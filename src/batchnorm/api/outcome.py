"""What a recalibration changes in the model's outputs: the gap between the modes, and the accuracy."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from batchnorm.core.calibration import Bench
from batchnorm.errors import BatchnormError

from .labels import Answers, floats
from .padding import left_out
from .passes import Gather, alone, shared
from .streams import Batch

__all__ = ["accuracy", "gap"]


def gap(
    bench: Bench,
    batches: Sequence[Batch],
    training: Collection[str],
    gather: Gather,
    padded: Collection[str] | None = None,
) -> float | None:
    """How far outputs in inference mode lie from those in training mode, over their spread in training mode.

    ``sqrt(sum((inference - training)^2) / sum((training - mean(training))^2))`` over all floating-point outputs, the
    mean over the samples; None where there is nothing to compare. Training mode is that of layers which leave out the
    padding that the data tell of, where it lies along their inputs (``padded``).
    """
    apart = spread = 0.0
    for batch in batches:
        if batch.samples < 2:
            continue
        out = left_out(batch, padded)
        pair = zip(*(floats(bench.outputs(batch.inputs, names, out)) for names in ((), training)), strict=True)
        for inference, trained in pair:
            if inference.shape == trained.shape:
                apart += float(np.sum((inference - trained) ** 2))
                spread += float(np.sum((trained - trained.mean(axis=0)) ** 2))
    parts = gather((apart, spread))
    apart, spread = (sum(part[place] for part in parts) for place in (0, 1))
    return float(np.sqrt(apart / spread)) if spread > 0 and np.isfinite(apart) else None


def accuracy(bench: Bench, batches: Collection[Batch] | Any, gather: Gather) -> float | None:
    """The share of labels that the model names (`Answers`); None without such labels."""
    parts, failure = (0, 0, 0, 0), None
    try:
        parts = _counted(bench, batches)
    except BatchnormError as error:
        if gather is alone:
            raise
        failure = error
    parts = shared(gather, parts, failure)
    return Answers.share([sum(numbers) for numbers in zip(*parts, strict=True)])


def _counted(bench: Bench, batches: Collection[Batch] | Any) -> tuple[int, int, int, int]:
    answers = Answers("recalibrate")
    for batch in batches:
        if batch.labels is not None:
            answers.add(bench.outputs(batch.inputs), batch.labels, batch.start)
    return answers.sums
