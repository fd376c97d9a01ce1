"""Rules about how the statistics came about: BN106, BN107, BN108 and BN208."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from batchnorm.analysis.numbers import brief, count, percent
from batchnorm.core.dtypes import unit_roundoff
from batchnorm.core.equations import debias
from batchnorm.core.record import LayerRecord

from . import channels as of
from .finding import Hit, Subject

__all__ = ["freeze_conflict", "half_precision_damage", "never_updated", "not_converged"]

INITIAL_SHARE = 0.10
"""More than a tenth of the stored variance being the initial 1 moves outputs by 5 % and more."""
MOVED = 0.1
"""Standard deviations that the initial 0 holds the mean back: a tenth is what sampling leaves anyway."""
AFFECTED = 0.10
"""Of the channels: fewer are features that hardly vary, whose variance anything is a large share of."""
ROUNDING = 1e-4
"""Of the initial value's rest: float32 averages of nothing but it lie so near."""
HALF = ("float16", "bfloat16")
STALL = 0.05
"""An update that is lost while the batch still differs by 5 % leaves the statistics that far behind."""
RECALIBRATE = "batchnorm recalibrate MODEL --data FILE -o OUT"
IN_CODE = "bn.recalibrate(model, loader)"


def never_updated(subject: Subject) -> Iterable[Hit]:
    """Statistics still at their initial values: an error where another layer's have moved."""
    untouched = [record for record in subject.records if record.untouched()]
    live = [record for record in untouched if record.mode != "frozen"]
    moved = [record for record in subject.records if of.held(record) and not record.untouched()]
    if moved:
        return [_left_behind(record, moved[0]) for record in live]
    return [_all_initial(record) for record in untouched]


def _left_behind(record: LayerRecord, moved: LayerRecord) -> Hit:
    return Hit(
        level="error",
        layer=record.name,
        message=(
            f"its statistics are still the initial {of.initially(record)}, to the bit, in all of "
            f"{count(record.channels, 'channel')}, while those of {moved.name} have moved: it was never updated."
        ),
        short="statistics still their initial 0 and 1",
        remedy=f"Estimate them from data: {RECALIBRATE}. Then see why: never called in training, or training=False?",
        code=IN_CODE,
        evidence={"updates": record.updates, "moved": moved.name, "channels": record.channels},
    )


def _all_initial(record: LayerRecord) -> Hit:
    return Hit(
        level="note",
        layer=record.name,
        message=f"its statistics are the initial {of.initially(record)}, as are those of every layer: not trained yet.",
        short="statistics still their initial 0 and 1",
        remedy="Train the model, or load trained weights.",
        evidence={"updates": record.updates, "channels": record.channels},
    )


def not_converged(subject: Subject) -> Iterable[Hit]:
    """From decay and updates: too much of the initial value is left."""
    for record in subject.records:
        hit = _initial_left(record)
        if hit is not None and not any(_contradicts(other, record) for other in subject.records):
            yield hit


def _contradicts(other: LayerRecord, record: LayerRecord) -> bool:
    """Whether another layer shows that the number of updates is not that of the whole history.

    Layers are trained together: where a fine-tuned model's new counter cannot be right for one of them, it is not for
    the others.
    """
    if other.recalibrated is not None or record.updates_source == "option":
        return False
    if other.updates_doubt is None or other.mode == "frozen" or other.renorm:
        return False
    return other.with_updates(record.updates, "optimizer iterations").updates is None


def _initial_left(record: LayerRecord) -> Hit | None:
    held_share, weight = of.initial_share(record), record.initial_weight
    if held_share is None or weight is None or record.moving_mean is None or record.untouched():
        return None
    mean, variance = of.mean(record), of.variance(record)
    with np.errstate(all="ignore"):
        # The mean moves by weight * mean/(1 - weight) once the initial 0 is taken out.
        moved = np.abs(mean) * weight / max(1 - weight, 1e-300) / np.sqrt(variance + (record.epsilon or 0.0))
        # Beside epsilon, what is left of the initial 1 can be as small as the variance is; and where all that is stored
        # is left of it, the channel never varied, and there is nothing that it could be normalised wrongly.
        left = weight * (record.initial_variance or 1.0)
        share, varied = left / (variance + (record.epsilon or 0.0)), variance > left * (1 + ROUNDING)
    where = varied & ((share > INITIAL_SHARE) | (moved > MOVED))
    if where.sum() < AFFECTED * max(1, varied.sum()) or not where.any():
        return None
    channels = of.indices(where)
    return _not_converged(record, weight, float(np.max(held_share[where])), channels)


def _not_converged(record: LayerRecord, weight: float, worst: float, channels: tuple[int, ...]) -> Hit:
    lead = max(channels, key=lambda c: _share(record, c))
    mean = float(debias(of.mean(record)[lead], record.initial_mean or 0.0, weight))
    variance = float(debias(of.variance(record)[lead], record.initial_variance or 1.0, weight))
    missing = _missing(record)
    more = "" if missing is None else f" {count(missing, 'more update')} would bring it under 1 %."
    return Hit(
        level="warning",
        layer=record.name,
        channels=channels,
        message=(
            f"after {count(record.updates or 0, 'update')} at decay {record.decay:g} the moving averages are still "
            f"{percent(weight)} their initial value, up to {percent(worst)} of a stored variance "
            f"({of.named(channels, record.channels)}). Without it channel {lead} has mean {brief(mean)} and variance "
            f"{brief(variance)}.{more}"
        ),
        short=f"variance {percent(worst)} initial value",
        remedy=f"With data: {RECALIBRATE}. Without: batchnorm recalibrate MODEL --debias -o OUT. Or train longer.",
        code=IN_CODE,
        evidence={
            "updates": record.updates,
            "decay": record.decay,
            "initial_weight": weight,
            "largest_share": worst,
            "updates_missing": missing,
            "debiased": {"channel": lead, "moving_mean": mean, "moving_variance": variance},
        },
    )


def _share(record: LayerRecord, channel: int) -> float:
    return -float(of.variance(record)[channel])  # the smaller the variance, the more of it is the initial one


def _missing(record: LayerRecord) -> int | None:
    if record.decay is None or not 0 < record.decay < 1 or record.updates is None:
        return None
    return max(0, math.ceil(math.log(0.01) / math.log(record.decay)) - record.updates)


def half_precision_damage(record: LayerRecord) -> Hit | None:
    """Statistics in 16 bits with variances of 0 or infinity; a note where updates are lost in rounding."""
    if record.dtype not in HALF or not of.held(record):
        return None
    variance = of.variance(record)
    channels = of.indices((variance == 0) | np.isinf(variance))
    if channels:
        return _damaged(record, channels)
    return _stalls(record)


def _damaged(record: LayerRecord, channels: tuple[int, ...]) -> Hit:
    variance = of.variance(record)
    zeros, infinite = int(np.sum(variance == 0)), int(np.sum(np.isinf(variance)))
    what = " and ".join(f"{number} {name}" for number, name in ((zeros, "0"), (infinite, "infinite")) if number)
    return Hit(
        level="error",
        layer=record.name,
        channels=channels,
        message=(
            f"statistics are stored in {record.dtype}, and of the variances {what} "
            f"({of.named(channels, record.channels)}): what lies outside the type's range was lost."
        ),
        short=f"{record.dtype} variances 0 or infinite in {of.some(channels, record.channels)}",
        remedy=f"Keep statistics in float32, in mixed precision too, and estimate them anew: {RECALIBRATE}.",
        code=IN_CODE,
        evidence={"dtype": record.dtype, "zero": zeros, "infinite": infinite},
    )


def _stalls(record: LayerRecord) -> Hit | None:
    if record.decay is None or record.averaging != "exponential" or not record.decay < 1 or record.mode == "inference":
        return None
    behind = unit_roundoff(record.dtype) / (1 - record.decay)
    if behind < STALL:
        return None
    return Hit(
        level="note",
        layer=record.name,
        message=(
            f"statistics are stored in {record.dtype}: at decay {record.decay:g} an update is lost in rounding once "
            f"the batch lies within {percent(min(behind, 1.0))} of the stored value, so training on leaves them there."
        ),
        short=f"{record.dtype} statistics stall {percent(min(behind, 1.0))} off",
        remedy="Before training on, keep the layer's statistics in float32 (module.float(), dtype_policy='float32').",
        evidence={"dtype": record.dtype, "decay": record.decay, "stalls_within": behind},
    )


def freeze_conflict(subject: Subject) -> Iterable[Hit]:
    """Frozen at its initial values in a trained model; a note where frozen and live layers mix inside one part."""
    moved = [record for record in subject.records if of.held(record) and not record.untouched()]
    if moved:
        yield from (_frozen_initial(r, moved[0]) for r in subject.records if r.mode == "frozen" and r.untouched())
    parts: dict[str, list[LayerRecord]] = {}
    for record in subject.records:
        parts.setdefault(_part(record.name), []).append(record)
    for part, records in parts.items():
        frozen = [record.name for record in records if record.mode == "frozen" and not record.untouched()]
        live = [record.name for record in records if record.mode == "by-call" and not record.untouched()]
        if part and frozen and live:
            yield _mixed(part, frozen, live)


def _part(name: str) -> str:
    return name.rpartition("/" if "/" in name else ".")[0]


def _frozen_initial(record: LayerRecord, moved: LayerRecord) -> Hit:
    return Hit(
        level="warning",
        layer=record.name,
        message=(
            f"it is frozen at the initial {of.initially(record)} while the statistics of {moved.name} have moved: it "
            "was frozen before it saw any data, and normalises nothing."
        ),
        short="frozen at its initial 0 and 1",
        remedy=(
            f"Load the weights it was meant to keep, or unfreeze it and estimate the statistics: batchnorm unfreeze "
            f"MODEL -o OUT, then {RECALIBRATE}."
        ),
        code=f"{IN_CODE} after unfreezing it",
        evidence={"moved": moved.name, "updates": record.updates},
    )


def _mixed(part: str, frozen: list[str], live: list[str]) -> Hit:
    few, which = (frozen, "frozen") if len(frozen) <= len(live) else (live, "live")
    names = ", ".join(few[:4]) + (", ..." if len(few) > 4 else "")
    return Hit(
        level="note",
        layer=None,
        layers=tuple(few),
        message=(
            f"inside {part} {len(frozen)} layers are frozen and {len(live)} are not ({which}: {names}): in training "
            "the live ones normalise with the batch, the frozen ones do not."
        ),
        short=f"frozen and live layers inside {part}",
        remedy="If that was not the aim, freeze or unfreeze all of them: batchnorm freeze MODEL -o OUT.",
        code="bn.freeze(model), if that was not the aim",
        evidence={"part": part, "frozen": len(frozen), "live": len(live), "minority": few},
    )
