"""What an explanation holds: layers, their channels worked through, why, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from batchnorm.core.record import LayerRecord

from .expected import Reading

__all__ = ["Batch", "ChannelExplanation", "Debiased", "LayerExplanation", "Value"]


@dataclass(frozen=True, slots=True)
class Value:
    """One element: where it is, what goes in, what comes out, and the arithmetic between."""

    index: tuple[int, ...]
    x: float
    y: float | None
    formula: str
    model_y: float | None = None
    difference: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What training mode would take from this input and give for the values shown."""

    count: int
    mean: float
    variance: float
    y: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Debiased:
    """The statistics with the initial value taken out, and what they would give for the values shown."""

    mean: float
    variance: float
    y: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class ChannelExplanation:
    """One channel worked through."""

    channel: int
    gamma: float | None
    beta: float | None
    moving_mean: float | None
    moving_variance: float | None
    epsilon: float | None
    inv_std: float | None
    scale: float | None
    shift: float | None
    values: tuple[Value, ...]
    truncated: int
    batch: Batch | None
    debiased: Debiased | None


@dataclass(frozen=True, slots=True, eq=False)
class LayerExplanation:
    """One layer: its record, its channels worked through (worst first), why, and what to do."""

    record: LayerRecord
    explained: tuple[ChannelExplanation, ...]
    expected: tuple[Reading, ...] | None
    because: tuple[str, ...]
    remedies: tuple[str, ...]
    channels_truncated: int = 0
    mode: str = "inference"
