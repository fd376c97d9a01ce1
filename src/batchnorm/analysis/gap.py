"""Where training and inference part on given data: each layer's own input against its stored statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from batchnorm.core.padding import Told
from batchnorm.core.record import LayerRecord

from .numbers import brief, count
from .rules.effect import SHOWS, counted, effect
from .rules.measured import Stream

__all__ = ["Gap", "Gaps", "gap_sentence"]

Calls = Sequence[tuple[NDArray[Any], NDArray[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class Gap:
    """The first layer whose training-mode output would differ, by how much, and on how many elements a channel."""

    record: LayerRecord
    position: int
    effect: float
    count: int


class Gaps:
    """Looks for the first layer where training and inference part, batch by batch; memory does not grow.

    Parameters
    ----------
    records : sequence of LayerRecord
        The layers in the order of the data's way.
    """

    def __init__(self, records: Sequence[LayerRecord]) -> None:
        held = [each.moving_mean is not None and each.moving_variance is not None for each in records]
        self._streams = {at: Stream(record, batched=False) for at, record in enumerate(records) if held[at]}
        self._records = records

    def add(self, captured: Mapping[str, Calls], samples: int, told: Told | None = None) -> None:
        """The inputs and outputs of each layer's calls on so many samples, in inference mode, and its padding."""
        for place, stream in self._streams.items():
            calls = captured.get(self._records[place].name, ())
            if calls:
                stream.add(calls, samples, getattr(captured, "masks", {}).get(self._records[place].name, ()), told)

    def first(self) -> Gap | None:
        """The first layer, in the order of the data's way, where the stored statistics are not this data's."""
        for place, stream in self._streams.items():
            record, seen = self._records[place], stream.result()
            if seen is not None and (found := effect(record, counted(record, seen))).size > SHOWS:
                return Gap(record, place, found.size, counted(record, seen).count)
        return None


def gap_sentence(gap: Gap | None, layers: int) -> str:
    """What to say of it first."""
    if gap is None:
        return "On this data the stored statistics fit: training and inference mode agree in every layer."
    where = f"the {_ordinal(gap.position + 1)} of {count(layers, 'batch normalization')}"
    return (
        f"On this data training and inference mode differ, beginning at {gap.record.name} ({where}): its stored "
        f"statistics are off by {brief(gap.effect, 2)} standard deviations ({count(gap.count, 'element')} a channel)."
    )


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
