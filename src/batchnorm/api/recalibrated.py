"""What a recalibration returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from batchnorm.render.document import plain

from .results import ModelInfo, Result

__all__ = ["Moments", "Recalibrated", "Recalibration", "Sides"]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The stored mean and variance of each channel."""

    mean: NDArray[Any]
    variance: NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Recalibrated:
    """One layer: how many elements a channel are behind its new statistics, and why it was left alone if it was."""

    name: str
    count: float | None
    before: Moments | None
    after: Moments | None
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class Sides:
    """A number before and after."""

    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Recalibration(Result):
    """New statistics of a model.

    ``gap`` is how far the model's outputs in inference mode lie from those in training mode, on the first batches: the
    root mean square of the difference over the spread of the outputs in training mode. ``passes`` counts runs over the
    data that measure; ``forwards`` is what they cost together, in whole forwards of the model over the data.
    """

    schema: ClassVar[str] = "batchnorm/recalibrate/1"
    model: ModelInfo
    layers: tuple[Recalibrated, ...]
    method: str
    passes: int
    forwards: float
    samples: int | None
    gap: Sides | None
    accuracy: Sides | None
    output: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_partial(self) -> bool:
        """Whether a layer that was meant could not be done."""
        return any(layer.skipped is not None and layer.skipped.startswith("not reached") for layer in self.layers)

    def to_document(self) -> dict[str, Any]:
        """See `Result`."""
        return {"schema": self.schema, **plain(self)}
