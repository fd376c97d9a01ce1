"""One recalibration: how it is to be done, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchnorm.analysis.recalibration import Statistics

from .progress import Progress, Silent
from .recalibrated import Sides

__all__ = ["METHODS", "Options", "Outcome", "notes_of_mark"]

METHODS = ("one-pass", "sequential")
COUNTER_NOTE = (
    "The counter of updates stays as it is: it tells how long the model was trained. The statistics are marked as "
    "recalibrated, so that list and check take no initial value for left in them."
)
LIVE_NOTE = (
    "The mark is on the live layers: copies and pickles keep it, model.save() and state dicts do not write it. "
    "recalibrate(..., out=FILE) does."
)
UNCOUNTED = ("flax", "numpy")
"""Live layers without a number of updates, which need no mark and get none."""


def notes_of_mark(read: Any, out: Any) -> tuple[str, ...]:
    """What is to be known of the counter of updates and of the mark, where the result is put anywhere."""
    if out is not None:
        return (COUNTER_NOTE,)
    return () if read.commit is None or read.format in UNCOUNTED else (COUNTER_NOTE, LIVE_NOTE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a recalibration is done; see `recalibrate`."""

    method: str = "one-pass"
    batch_size: int = 128
    skip_nonfinite: bool = False
    workers: int | None = None
    ray: str | None = None
    process_group: Any = None
    checkpoint: Any = None
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a way of recalibrating found."""

    found: Mapping[str, Statistics]
    unreached: Collection[str] = ()
    passes: int = 0
    forwards: float = 0.0
    samples: int | None = None
    gap: Sides | None = None
    accuracy: Sides | None = None
    notes: tuple[str, ...] = ()
    nothing: Mapping[str, str] = field(default_factory=dict[str, str])
    padded: frozenset[str] | None = None  # layers without the padding that data tell of; None where they tell of none
    finish: Callable[[], None] = lambda: None  # told once the result is where it belongs
