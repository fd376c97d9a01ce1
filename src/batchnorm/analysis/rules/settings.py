"""Rules about a layer's settings, and about several files of one model: BN201, BN202, BN206 and BN209."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from batchnorm.analysis.constants import Constants, largest_change, whole_change
from batchnorm.analysis.numbers import brief, count, digits
from batchnorm.core.record import LayerRecord

from . import channels as of
from .finding import Hit, Subject

__all__ = ["epsilon_unknown", "momentum_convention", "odd_epsilon", "rank_divergence"]

KERAS, TORCH = 1e-3, 1e-5
"""The two defaults that most models were built with."""
FOLLOWS = 0.1
"""A decay of a tenth or less keeps the last batch or two: what 0.9 or 0.99 means in the other convention."""
LARGE_EPSILON = 0.1
SMALL_VARIANCE = 1e-5
"""Without an epsilon such a variance is a division by next to nothing."""
MOST_NAMED = 4


def epsilon_unknown(record: LayerRecord) -> Hit | None:
    """The file holds no epsilon: how far outputs move between the two usual ones."""
    if record.epsilon is not None or not of.held(record):
        return None
    change = whole_change(largest_change(Constants.of(record, KERAS), Constants.of(record, TORCH)))
    return Hit(
        level="note",
        layer=record.name,
        message=f"the file holds no epsilon; between 0.001 and 0.00001 an output moves by up to {brief(change)}.",
        short="epsilon unknown: pass --eps",
        remedy="Pass the epsilon the model was built with: --eps 0.001 is Keras' default, --eps 0.00001 PyTorch's.",
        evidence={"max_output_change": change, "between": [TORCH, KERAS]},
    )


def momentum_convention(record: LayerRecord) -> Hit | None:
    """A momentum that fits the other framework's convention."""
    decay, momentum = record.decay, record.momentum
    if decay is None or momentum is None or record.averaging != "exponential" or not 0 < decay <= FOLLOWS * 1.001:
        return None
    keeps = abs(momentum - decay) <= abs(momentum - (1 - decay))
    meant = brief(1 - momentum, 6)
    said = (
        f"here it is the share of the old value that is kept (PyTorch's {digits_of(momentum)} is {meant} here)"
        if keeps
        else f"here it is the share of the new batch that is taken (Keras' {digits_of(momentum)} is {meant} here)"
    )
    fixed = record.mode in ("inference", "frozen")
    return Hit(
        level="note" if fixed else "warning",
        layer=record.name,
        message=(
            f"momentum {digits_of(momentum)} looks like the other framework's: {said}, so each update forgets "
            f"{100 * (1 - decay):.3g} % and the statistics are those of the last batch alone."
            + (" It is used in training only." if fixed else "")
        ),
        short=f"momentum {digits_of(momentum)} looks like the other framework's",
        remedy=(
            f"Set momentum={meant}. Statistics made with it are estimated anew by batchnorm recalibrate MODEL --data "
            "FILE -o OUT."
        ),
        code="bn.recalibrate(model, loader)",
        evidence={"momentum": momentum, "decay": decay, "meant": float(meant)},
    )


def digits_of(value: float) -> str:
    """Up to six digits: a float32 spelling of 0.9 is 0.9."""
    return digits(float(f"{value:.6g}"))


def odd_epsilon(subject: Subject) -> Iterable[Hit]:
    """An epsilon that is no small constant, or none over a tiny variance; a note where layers disagree."""
    for record in subject.records:
        hit = _odd(record)
        if hit is not None:
            yield hit
    yield from _disagreeing([r for r in subject.records if r.epsilon is not None and r.epsilon_source == "file"])


def _odd(record: LayerRecord) -> Hit | None:
    if record.epsilon is None or 0 < record.epsilon <= LARGE_EPSILON:
        return None
    evidence = {"epsilon": record.epsilon}
    remedy = "Build the layer with the epsilon it was trained with (0.001 in Keras, 0.00001 in PyTorch)."
    if record.epsilon > LARGE_EPSILON:
        message = f"epsilon {brief(record.epsilon)} is no small constant: it shrinks every channel of variance 1 to "
        message += f"{brief(1 / np.sqrt(1 + record.epsilon), 3)}."
        short = f"epsilon {brief(record.epsilon)} is no small constant"
        return Hit(level="warning", layer=record.name, message=message, short=short, remedy=remedy, evidence=evidence)
    channels = () if record.moving_variance is None else of.indices(of.variance(record) < SMALL_VARIANCE)
    if not channels:
        return None
    return Hit(
        level="warning",
        layer=record.name,
        channels=channels,
        message=(
            f"epsilon is {brief(record.epsilon)} and the variance under {SMALL_VARIANCE:g} in "
            f"{of.named(channels, record.channels)}: the division has nothing to hold it."
        ),
        short=f"epsilon {brief(record.epsilon)} with variance near 0 in {of.some(channels, record.channels)}",
        remedy=remedy,
        evidence=evidence | {"moving_variance": of.numbers(of.variance(record), channels)},
    )


def _disagreeing(records: list[LayerRecord]) -> Iterable[Hit]:
    spelled = {record.name: f"{record.epsilon:.5g}" for record in records}  # 0.001 in float32 is 0.001
    counted = Counter(spelled.values())
    if len(counted) < 2:
        return
    usual = counted.most_common(1)[0][0]
    few = [name for name, epsilon in spelled.items() if epsilon != usual]
    names = ", ".join(few[:MOST_NAMED]) + (", ..." if len(few) > MOST_NAMED else "")
    others = ", ".join(value for value in counted if value != usual)
    yield Hit(
        level="note",
        layer=None,
        layers=tuple(few),
        message=(
            f"layers disagree about epsilon: {counted[usual]} have {usual}, {len(few)} {others} ({names}). A "
            "pretrained body under a new head is the usual reason; an epsilon lost in conversion is another."
        ),
        short=f"epsilon {others} where others have {usual}",
        remedy="If the layers were meant to agree, batchnorm diff MODEL ORIGINAL shows which changed.",
        evidence={"epsilons": dict(counted), "minority": few},
    )


def rank_divergence(subject: Subject) -> Iterable[Hit]:
    """Two files with the same gamma and beta to the bit and different statistics: ranks that were never merged."""
    for name, others in subject.others:
        theirs = {record.name: record for record in others}
        apart = [r for r in subject.records if r.name in theirs and _same_weights(r, theirs[r.name])]
        differing = [(r, far) for r in apart if (far := _distance(r, theirs[r.name])) > 0]
        if differing:
            yield _divergence(name, differing, len(apart))


def _divergence(name: str, differing: list[tuple[LayerRecord, float]], same: int) -> Hit:
    first, far = max(differing, key=lambda one: one[1])
    return Hit(
        level="error",
        layer=None if len(differing) > 1 else first.name,
        layers=tuple(record.name for record, _ in differing),
        message=(
            f"gamma and beta are those of {name} to the bit in {count(same, 'layer')}, and the statistics differ in "
            f"{len(differing)}, most in {first.name} by {brief(far, 3)} standard deviations: each rank averaged its "
            "own data."
        ),
        short=f"statistics differ from {name} in {count(len(differing), 'layer')}",
        remedy=(
            "Merge them over all data: batchnorm recalibrate MODEL --data FILE -o OUT. In training use a synchronised "
            "layer, or save from one rank after broadcasting its buffers."
        ),
        code="bn.recalibrate(model, loader, process_group=group)",
        evidence={"other": name, "same_weights": same, "differing": len(differing), "largest": far},
    )


def _same_weights(a: LayerRecord, b: LayerRecord) -> bool:
    if not of.held(a) or not of.held(b) or a.channels != b.channels:
        return False
    trained = False
    for role, initial in (("gamma", 1), ("beta", 0)):
        left, right = getattr(a, role), getattr(b, role)
        if (left is None) != (right is None) or (left is not None and not np.array_equal(left, right)):
            return False
        trained |= left is not None and bool(np.any(left != initial))
    return trained  # weights that nobody trained agree by themselves


def _distance(a: LayerRecord, b: LayerRecord) -> float:
    with np.errstate(all="ignore"):
        sd = np.sqrt(np.maximum(of.variance(a), 0) + (a.epsilon or KERAS))
        shift = np.abs(of.mean(a) - of.mean(b)) / sd
        stretch = np.abs(np.sqrt(np.maximum(of.variance(b), 0) + (a.epsilon or KERAS)) / sd - 1)
        return float(np.nanmax(np.maximum(shift, stretch), initial=0.0))
