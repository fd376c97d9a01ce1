"""Which model is recalibrated, and which of its layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from batchnorm.core.calibration import Bench
from batchnorm.core.record import LayerRecord
from batchnorm.errors import Refused

from .loading import chosen, load, opened

__all__ = ["left_alone", "listed_reasons", "opened_model", "unrun"]

SKIPPED = "skipped as asked"


def opened_model(model: Any, weights: str | os.PathLike[str] | None, epsilon: float | None) -> Any:
    """The model, read, with a file of weights loaded into it."""
    return opened(load(model, epsilon=epsilon, weights=weights), epsilon)


def unrun(read: Any) -> Callable[[], Bench]:
    """What makes the bench of a model.

    Raises
    ------
    Refused
        It cannot be run.
    """
    if read.bench is None:
        raise Refused(
            f"{read.path}: a {read.format} model cannot be recalibrated with data: it holds weights and no graph, or "
            "no engine runs it. Name the model that the weights belong to: package.module:name --weights FILE."
        )
    return read.bench


def left_alone(read: Any, only: Sequence[str], skip: Sequence[str]) -> dict[str, str]:
    """Layers that keep their statistics, with the reason."""
    wanted = {chosen(read.layers, name, "recalibrate").name for name in only}
    unwanted = {chosen(read.layers, name, "recalibrate").name for name in skip}
    reasons: dict[str, str] = {}
    for record in read.layers:
        reason = _untouchable(record) or getattr(read, "untouched", {}).get(record.name)
        if reason is None and (record.name in unwanted or (wanted and record.name not in wanted)):
            reason = SKIPPED
        if reason is not None:
            reasons[record.name] = reason
    return reasons


def _untouchable(record: LayerRecord) -> str | None:
    if record.moving_mean is None or record.moving_variance is None:
        return "it holds no moving statistics"
    if record.mode == "frozen":
        return "frozen"
    return "batch renormalization averages standard deviations" if record.renorm else None


def listed_reasons(reasons: Mapping[str, str]) -> str:
    """The first few layers that are left alone, each with its reason."""
    return "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])
