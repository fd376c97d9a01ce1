"""Rules about what data shows: BN401, BN403 to BN406."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.numbers import brief, count, percent
from batchnorm.core.record import LayerRecord

from . import channels as of
from .effect import LEAVES, SHOWS, Effect, counted, effect, left_in, shares
from .finding import Hit, Subject
from .inputs import CHANGES, EXPLAINS
from .measured import Measured, Measurements
from .padding import Padding

__all__ = ["batch_too_small", "dead_on_data", "gaps", "input_scale", "padding_in_statistics", "train_inference_gap"]

ERROR = 0.5
"""Networks with a layer from here on lost 13 points of accuracy and more."""
NOISY, VERY_NOISY = 0.25, 0.5
"""Of the batch variance: at 25 % the output's scale moves by an eighth from batch to batch, at 50 % by a quarter."""
PADDING_MOVES = 0.4
"""Standard deviations: less is what a change of the sequences' lengths does anyway."""
TAKE_A_MASK = (
    "Give the layer the mask, layer(x, mask=mask): Keras' and Flax' own take one, for PyTorch there is "
    "batchnorm.torch.BatchNorm1d. Or pack the sequences. Then estimate the statistics anew:"
)
PADDED = {
    "data": (", as mask or lengths tell", TAKE_A_MASK),
    "model": (", as the model's own mask tells, which a layer before this one loses", TAKE_A_MASK),
    "layer": (
        ", as the mask tells that the layer gets",
        "The layer leaves padding out of a batch's statistics; its stored statistics are older. Estimate them anew:",
    ),
    "seen": (" at their end", TAKE_A_MASK),
}
"""How padding is known -> what to say of it, and the way out."""
ENOUGH_TO_BE_DEAD = 32
CAUSES = {
    "initial_value": "the initial value that is left in",
    "data_shift": "data unlike that of the statistics",
    "small_batch": "small batches",
    "epsilon": "epsilon",
    "divisor": "the divisor of the stored variance",
}
RECALIBRATE = "batchnorm recalibrate MODEL --data FILE -o OUT"
IN_CODE = "bn.recalibrate(model, loader)"
MOST_NAMED = 3


def gaps(subject: Subject) -> Iterator[tuple[LayerRecord, Measured, Effect]]:
    """Each layer that the data reached and that has statistics to compare, in the order of the data's way."""
    assert subject.data is not None
    for record in subject.records:
        seen = subject.data.layers.get(record.name)
        if seen is not None and of.held(record):
            seen = counted(record, seen)
            yield record, seen, effect(record, seen)


def train_inference_gap(subject: Subject) -> Iterable[Hit]:
    """Where training and inference part first, by how much, and why."""
    # A frozen layer normalises with the stored statistics in training, too: there the modes cannot part.
    found = [one for one in gaps(subject) if one[0].mode != "frozen"]
    parted = [one for one in found if one[2].significant and one[2].size >= SHOWS]
    if parted:
        yield _gap_hit(parted, len(found), next(iter(input_scale(subject)), None))


def _gap_hit(parted: list[tuple[LayerRecord, Measured, Effect]], layers: int, scale: Hit | None) -> Hit:
    record, seen, first = parted[0]
    worst = max(parted, key=lambda one: one[2].size)
    causes = shares(record, seen)
    named = [(cause, share) for cause, share in sorted(causes.items(), key=lambda one: -one[1]) if share >= 0.005]
    spelled = ", ".join(f"{percent(share)} {CAUSES[cause]}" for cause, share in named)
    others = "" if len(parted) == 1 else f", {len(parted)} of {layers} layers in all"
    most = "" if worst[0] is record else f", most {worst[0].name} by {brief(worst[2].size, 3)}"
    main = named[0][0] if named else "data_shift"
    remedy, code = f"Estimate the statistics from training data: {RECALIBRATE}.", IN_CODE
    if scale is not None:  # new statistics would fit the wrong input
        remedy = code = f"{scale.remedy} (BN403)"
    elif main == "data_shift":
        remedy += " If this data is not as in training, feed it so instead."
        code += ", with a loader of training data; if it is not as in training, feed it so instead"
    unshuffled = main == "data_shift" and seen.order is not None and seen.order.shows
    if unshuffled:
        remedy += " Shuffle what the model is trained on."
    fitted = left_in(record, seen) if record.initial_weight is None else None
    said = "" if fitted is None else f" (about {percent(fitted[0])} of it, by the statistics themselves)"
    return Hit(
        level="error" if worst[2].size >= ERROR else "warning",
        layer=record.name,
        message=(
            f"training and inference mode part here first: its statistics are {brief(first.size, 3)} standard "
            f"deviations off what it is fed ({count(seen.samples, 'sample')}{others}{most}). Shares: {spelled}{said}."
            f"{f' {seen.order}.' if unshuffled else ''}"
        ),
        short=f"statistics {brief(first.size, 2)} standard deviations off",
        remedy=remedy,
        code=code,
        evidence={
            "effect": first.size,
            "noise": float(np.sqrt(first.noise)),
            "samples": seen.samples,
            "samples_needed": first.needed,
            "causes": causes,
            "between_batches": None if seen.order is None else seen.order.ratio,
            "layers": [{"layer": one.name, "effect": how.size} for one, _, how in parted],
        },
    )


def input_scale(subject: Subject) -> Iterable[Hit]:
    """A change of the model's input that takes the first layer's gap away."""
    assert subject.data is not None
    first = next(((r, seen, how) for r, seen, how in gaps(subject)), None)
    if first is None or not subject.data.remedies:
        return
    record, seen, before = first
    if shares(record, seen)["initial_value"] >= 1 - LEAVES:
        return  # the statistics themselves say what is wrong with them: BN107 and BN401
    change, left = min(subject.data.remedies.items(), key=lambda one: one[1])
    if before.size < ERROR or not before.significant or left > SHOWS or left > EXPLAINS * before.size:
        return
    what, how = CHANGES[change]
    yield Hit(
        level="error",
        layer=record.name,
        message=(
            f"the model's input is off: {what}. As it is, this first layer's statistics are {brief(before.size, 3)} "
            f"standard deviations off; with {change} they fit ({brief(left, 2)})."
        ),
        short=f"input off: {what}",
        remedy=f"{how} before the model, as in its training; nothing is wrong with the model.",
        evidence={"change": change, "before": before.size, "after": left, "tried": dict(subject.data.remedies)},
    )


def dead_on_data(subject: Subject) -> Iterable[Hit]:
    """Channels that are constant on this data, or that the activation after the layer always cuts off."""
    assert subject.data is not None
    if subject.data.samples < ENOUGH_TO_BE_DEAD:
        return
    for record in subject.records:
        seen = subject.data.layers.get(record.name)
        if seen is not None:
            hit = _dead(record, seen, _cut_off(subject, record, seen))
            if hit is not None:
                yield hit


def _dead(record: LayerRecord, seen: Measured, cut: of.Mask) -> Hit | None:
    constant = (seen.high - seen.low) <= 1e-6 * np.maximum(np.abs(seen.high), np.abs(seen.low))
    channels = of.indices(constant | cut)
    if not channels:
        return None
    what = [
        f"{text} in {of.named(found, record.channels)}"
        for text, found in (("constant", of.indices(constant)), ("always cut off after it", of.indices(cut)))
        if found
    ]
    return Hit(
        level="note",
        layer=record.name,
        channels=channels,
        message=f"on this data {' and '.join(what)}: nothing of it comes through.",
        short=f"dead on this data in {of.some(channels, record.channels)}",
        remedy="On training data such channels can be pruned; on other data see whether it is like the training data.",
        evidence={"constant": list(of.indices(constant)), "cut_off": list(of.indices(cut)), "samples": seen.samples},
    )


RECTIFIERS = ("relu", "relu_", "relu6", "rectify")


def _cut_off(subject: Subject, record: LayerRecord, seen: Measured) -> of.Mask:
    none = np.zeros(record.channels, bool)
    if subject.graph is None or seen.highest is None:
        return none
    after = [
        use for call in subject.graph.calls(record.name) for out in call.outputs for use in subject.graph.consumers(out)
    ]
    if not after or not all(_rectifies(use) for use in after):
        return none
    return seen.highest <= 0


def _rectifies(operation: Any) -> bool:
    said = str(operation.settings.get("activation", operation.operator)).lower()
    return operation.kind == "activation" and said in RECTIFIERS


def batch_too_small(subject: Subject) -> Iterable[Hit]:
    """The batch variance is as noisy as that: from its measured spread over batches."""
    assert subject.data is not None
    for record in subject.records:
        seen = subject.data.layers.get(record.name)
        if seen is None or seen.batch_size is None or record.mode in ("frozen", "inference"):
            continue
        noise = _batch_noise(record, seen)
        if noise is not None and noise > NOISY:
            yield _too_small(record, seen, seen.batch_size, noise)


def _batch_noise(record: LayerRecord, seen: Measured) -> float | None:
    if seen.batch_size == 1 and seen.count <= seen.samples:
        return float("inf")
    if seen.spread is None:
        return None
    varied = np.isfinite(seen.spread) & (seen.variance > 1e-12 * np.median(seen.variance))
    return float(np.median(seen.spread[varied])) if varied.any() else None


def _too_small(record: LayerRecord, seen: Measured, size: int, noise: float) -> Hit:
    single = not np.isfinite(noise)
    enough = None if single else int(np.ceil(size * (noise / NOISY) ** 2))
    text = (
        "at batch size 1 each channel has a single value, whose variance is 0: training mode gives beta"
        if single
        else f"at batch size {size} the batch variance varies by {percent(noise)} from batch to batch (median over "
        f"channels); about {enough} would bring it to 25 %"
    )
    return Hit(
        level="warning" if noise > VERY_NOISY else "note",
        layer=record.name,
        message=f"{text}.",
        short=f"batch variance varies by {percent(noise)}" if not single else "one value a channel",
        remedy=(
            "Train with a larger batch, with a synchronised layer over several devices, or with frozen statistics "
            "(batchnorm freeze MODEL -o OUT)."
        ),
        code="train with a larger batch, a synchronised layer, or bn.freeze(model)",
        evidence={"batch_size": size, "noise": noise, "batch_size_needed": enough},
    )


def padding_in_statistics(subject: Subject) -> Iterable[Hit]:
    """Padded positions take part in the statistics, and move them."""
    assert subject.data is not None
    for record in subject.records:
        seen = subject.data.layers.get(record.name)
        if seen is not None and seen.padding is not None and of.held(record):
            hit = _padded(record, seen.padding)
            if hit is not None:
                yield hit


def _padded(record: LayerRecord, seen: Padding) -> Hit | None:
    data, whole, epsilon = seen.data, seen.whole, record.epsilon or 0.0
    s = np.sqrt(data.variance(0) + epsilon)
    of_whole = np.sqrt(whole.variance(0) + epsilon)
    with np.errstate(all="ignore"):
        moved = _apart(whole.mean, whole.variance(0), data.mean, s, epsilon)
        stored = _apart(of.mean(record), of.variance(record), data.mean, s, epsilon)
        from_padded = _apart(of.mean(record), of.variance(record), whole.mean, of_whole, epsilon)
    # The stored statistics are nearer to those with padding than to those without.
    if not moved >= PADDING_MOVES or not from_padded < stored:
        return None
    told, remedy = PADDED[seen.source]
    padded = count(seen.sequences, "sequence")
    return Hit(
        level="warning",
        layer=record.name,
        message=(
            f"{padded} {'is' if seen.sequences == 1 else 'are'} padded{told}: {percent(seen.share)} of all positions. "
            f"The padding is in the statistics and moves them by {brief(moved, 3)} standard deviations."
        ),
        short=f"padding moves the statistics by {brief(moved, 2)} standard deviations",
        remedy=f"{remedy} {RECALIBRATE}.",
        code=f"{remedy} {IN_CODE}",
        evidence={
            "share": seen.share,
            "moves": moved,
            "stored_off_data": stored,
            "sequences": seen.sequences,
            "source": seen.source,
        },
    )


def _apart(mean: Any, variance: Any, other: Any, s: Any, epsilon: float) -> float:
    square: NDArray[np.float64] = ((mean - other) / s) ** 2 + (np.sqrt(np.maximum(variance, 0) + epsilon) / s - 1) ** 2
    return float(np.sqrt(np.mean(square[np.isfinite(square)]))) if np.isfinite(square).any() else 0.0


def needed(data: Measurements, records: Iterable[LayerRecord]) -> int | None:
    """Samples it takes to tell a gap that shows in every layer that the data reached."""
    found = [how.needed for _, _, how in gaps(Subject(records=tuple(records), data=data))]
    known = [one for one in found if one is not None]
    return max(known) if known and len(known) == len(found) else None
