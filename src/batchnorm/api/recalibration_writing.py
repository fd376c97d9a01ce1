"""New statistics where they belong, in the live object or in a copy of a file; and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from batchnorm.analysis.recalibration import Statistics
from batchnorm.core.record import LayerRecord
from batchnorm.errors import Refused

from .loading import hashed
from .recalibrated import Moments, Recalibrated, Recalibration
from .recalibration_options import Outcome

__all__ = ["put", "result"]


def put(read: Any, template: Any, new: Mapping[str, tuple[Any, Any]], out: Any, force: bool, method: str) -> None:
    """Into the live object; or into a copy of a file. Both bear the mark of what was done."""
    if template is not None and out is not None:
        names = {record.name for record in template.layers}
        own = {_own_name(names, name): pair for name, pair in new.items()}
        template.with_statistics(own, method).save(out, force=force)
    elif out is not None:
        read.with_statistics(new, method).save(out, force=force)
    elif read.commit is not None:
        read.commit(new, method)


def _own_name(names: set[str], name: str) -> str:
    """The name of a live layer in a state dict, which may put a prefix before it."""
    if name in names:
        return name
    ends = [each for each in names if each.endswith(f".{name}")]
    if len(ends) != 1:
        raise Refused(
            f"recalibrate: the file of --weights has {'no' if not ends else 'several'} layers named {name!r}."
        )
    return ends[0]


def result(given: Any, read: Any, done: Outcome, reasons: Mapping[str, str], out: Any, method: str) -> Recalibration:
    """The result of a recalibration, with the layers that were left alone and why."""
    layers = tuple(_layer(record, done.found.get(record.name), reasons.get(record.name)) for record in read.layers)
    return Recalibration(
        model=hashed(given, read) if read.commit is None else replace(hashed(None, read), sha256=None),
        layers=layers,
        method=method,
        passes=done.passes,
        forwards=done.forwards,
        samples=done.samples,
        gap=done.gap,
        accuracy=done.accuracy,
        output=None if out is None else str(Path(out)),
        notes=(*cast("tuple[str, ...]", getattr(read, "notes", ())), *done.notes),
    )


def _layer(record: LayerRecord, new: Statistics | None, reason: str | None) -> Recalibrated:
    held = record.moving_mean is not None and record.moving_variance is not None
    before = Moments(record.moving_mean, record.moving_variance) if held else None  # type: ignore[arg-type]
    if new is None:
        return Recalibrated(record.name, None, before, before, reason)
    return Recalibrated(record.name, new.count, before, Moments(new.mean, new.variance))
