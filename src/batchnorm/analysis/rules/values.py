"""Rules about the stored numbers themselves: BN101 to BN105, BN109, BN110 and BN207."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.numbers import brief, percent
from batchnorm.core.record import ARRAYS, LayerRecord

from . import channels as of
from .finding import Hit, Level

__all__ = [
    "BACK",
    "cancellation_risk",
    "constant_channel",
    "dead_gamma",
    "epsilon_dominated",
    "exploding_scale",
    "negative_variance",
    "non_finite",
    "swapped_statistics",
]

RESTORE = (
    "Go back to a checkpoint from before the damage, or estimate the statistics anew from data: "
    "batchnorm recalibrate MODEL --data FILE -o OUT."
)
BACK = "Go back to a checkpoint from before the damage: a gamma or beta cannot be estimated from data."
RECALIBRATE = "bn.recalibrate(model, loader)"
DOMINATED_SHARE = 0.5
"""A fault of the input's scale moves all channels: the middle one lies below epsilon. Fewer are features that hardly
vary, as an activation in front leaves them in sound networks (three of eight were seen)."""
DEAD_SHARE = 0.5
"""Half of a layer without a scale is more than pruning leaves behind unnoticed."""
LARGE_SCALE = 1e3
"""A thousandth of change in the input is a whole unit after it; of 40,000 channels of published models the largest
that is no dead channel reaches 60."""
LARGE_GAMMA = 10.0
"""A layer whose inputs are all tiny has such scales, too, and is sound: its gamma is an ordinary one."""
SCALE_OF_MEDIAN = 100.0
"""A channel stretched a hundred times as much as its neighbours decides the next layer alone."""
LARGEST_USUAL_EPSILON = 1e-3
"""Where the file holds no epsilon: the one that makes the scale smallest, so that nothing is claimed in doubt."""
LARGE_MEAN = 1e6
"""Of mean^2 to variance: from there scale-and-shift inference in float32 loses three digits."""
ERRORS = (("PyTorch", 6.8e-9), ("Keras", 1.5e-9), ("onnxruntime", 1.6e-11))
"""Error of the output over mean / standard deviation, measured on the CPU at 1e6 of it."""


def non_finite(record: LayerRecord) -> Hit | None:
    """A gamma, beta, moving mean or variance is NaN or infinite."""
    stored = {name: of.wide(values) for name in ARRAYS if (values := getattr(record, name)) is not None}
    bad = {name: where for name, values in stored.items() if (where := ~np.isfinite(values)).any()}
    if not bad:
        return None
    channels, names = of.indices(np.logical_or.reduce(list(bad.values()))), " and ".join(bad)
    estimated = set(bad) <= {"moving_mean", "moving_variance"}
    where = of.named(channels, record.channels)
    return Hit(
        level="error",
        layer=record.name,
        channels=channels,
        message=f"{names} not finite in {where}: the output there is NaN or infinite for every input.",
        short=f"{names} not finite in {of.some(channels, record.channels)}",
        remedy=f"{RESTORE if estimated else BACK} Then look for the batch that brought it (a NaN in the input, an "
        "overflow).",
        code=RECALIBRATE if estimated else "",
        evidence={name: of.numbers(stored[name], of.indices(where)) for name, where in bad.items()},
    )


def negative_variance(record: LayerRecord) -> Hit | None:
    """A moving variance is below zero."""
    if record.moving_variance is None:
        return None
    variance = of.variance(record)
    channels = of.indices(variance < 0)
    if not channels:
        return None
    lowest = float(np.min(variance[list(channels)]))
    return Hit(
        level="error",
        layer=record.name,
        channels=channels,
        message=(
            f"moving_variance below zero in {of.named(channels, record.channels)}, lowest {brief(lowest)}: no data has "
            "such a variance, and its root is NaN."
        ),
        short=f"moving_variance below zero in {of.some(channels, record.channels)}",
        remedy=RESTORE,
        code=RECALIBRATE,
        evidence={"moving_variance": of.numbers(variance, channels), "lowest": lowest},
    )


def swapped_statistics(record: LayerRecord) -> Hit | None:
    """Some variance is negative while no mean is: the two were exchanged."""
    if not of.held(record):
        return None
    mean, variance = of.mean(record), of.variance(record)
    channels = of.indices(variance < 0)
    if not channels or np.any(mean < 0) or not np.any(mean > 0):
        return None
    return Hit(
        level="error",
        layer=record.name,
        channels=channels,
        message=(
            f"moving_mean and moving_variance look exchanged: {len(channels)} of {record.channels} variances are "
            f"negative (lowest {brief(float(np.min(variance)))}), and no mean is."
        ),
        short="mean and variance look exchanged",
        remedy=(
            "Exchange them where the weights were converted (Keras: mean before variance, as in PyTorch; ONNX: inputs "
            "3 and 4); batchnorm diff MODEL ORIGINAL shows which."
        ),
        evidence={"negative_variances": len(channels), "lowest_mean": float(np.min(mean))},
    )


def epsilon_dominated(record: LayerRecord) -> Hit | None:
    """Moving variances under ten epsilon; a warning where half of the channels that varied lie below epsilon."""
    if not of.held(record) or record.epsilon is None or record.epsilon <= 0:
        return None
    variance, constant = of.variance(record), of.constant(record)
    varied = ~constant & (variance >= 0)
    below, near = varied & (variance < record.epsilon), of.near_epsilon(record)
    if not near.any():
        return None
    worst = below.sum() >= DOMINATED_SHARE * varied.sum()
    where = of.indices(below if worst else near)
    limit = "epsilon" if worst else f"{of.EPSILON_DOMINATED:g} epsilon"
    smallest = float(np.min(variance[list(where)]))
    spread = float(np.sqrt(smallest / (smallest + record.epsilon)))
    return Hit(
        level="warning" if worst else "note",
        layer=record.name,
        channels=where,
        message=(
            f"moving_variance under {limit} ({brief(record.epsilon)}) in {of.named(where, record.channels)}, lowest "
            f"{brief(smallest)}: there epsilon sets the output's spread, {brief(spread, 3)} instead of 1."
        ),
        short=f"variance {'below' if worst else 'under'} {limit} in {of.some(where, record.channels)}",
        remedy=(
            "Is the input scaled twice, or weights before it too small? Scale the input as in training, or build the "
            "layer with a smaller epsilon and train on."
            if worst
            else "A few such channels are features that hardly ever vary. Many are an input smaller than this epsilon "
            "was made for; the model was trained with it, so leave it as it is."
        ),
        evidence={"epsilon": record.epsilon, "channels": len(where), "varied": int(varied.sum()), "lowest": smallest},
    )


def dead_gamma(record: LayerRecord) -> Hit | None:
    """A gamma next to nothing: the channel outputs its beta whatever comes in."""
    if record.gamma is None:
        return None
    channels = of.indices(of.dead(record))
    if not channels:
        return None
    share, gamma = len(channels) / record.channels, np.abs(of.wide(record.gamma))
    level: Level = "warning" if share >= DEAD_SHARE else "note"
    whole = share == 1
    return Hit(
        level=level,
        layer=record.name,
        channels=channels,
        message=(
            f"gamma near 0 (at most {brief(float(np.max(gamma[list(channels)])))}, the layer's 95th percentile is "
            f"{brief(float(np.percentile(gamma, 95)))}) in {of.named(channels, record.channels)}: only beta comes out."
        ),
        short=f"gamma near 0, only beta comes out, in {of.some(channels, record.channels)}",
        remedy=(
            "Was the model trained at all, or its gamma set to zero and kept there (weight decay on gamma, zero "
            "initialisation, a lost weight)? Load the trained gamma."
            if whole
            else "Such channels can be pruned. If that was not the aim, take gamma out of the weight decay."
        ),
        evidence={"share": share, "gamma": of.numbers(of.wide(record.gamma), channels)},
    )


def exploding_scale(record: LayerRecord) -> Hit | None:
    """A channel stretched over a thousand times, or a hundred times as much as its neighbours."""
    if not of.held(record):
        return None
    usual = ~(of.constant(record) | of.dead(record) | of.near_epsilon(record)) & (of.variance(record) >= 0)
    usual &= np.isfinite(of.variance(record))
    scale = of.scale(record, LARGEST_USUAL_EPSILON)
    if not (usual & np.isfinite(scale)).any():
        return None
    median = float(np.median(scale[usual & np.isfinite(scale)]))
    large = (scale > LARGE_SCALE) & (_sizes(record) > LARGE_GAMMA)
    channels = of.indices(usual & np.isfinite(scale) & (large | (scale > SCALE_OF_MEDIAN * median)))
    if not channels:
        return None
    worst = max(channels, key=lambda c: scale[c])
    return Hit(
        level="warning",
        layer=record.name,
        channels=channels,
        message=(
            f"gamma/sqrt(moving_variance + epsilon) reaches {brief(float(scale[worst]))} in channel {worst} "
            f"(the layer's median is {brief(median)}; {of.named(channels, record.channels)}): noise in the input is "
            "stretched as much."
        ),
        short=f"scale {brief(float(scale[worst]), 3)} in {of.some(channels, record.channels)}",
        remedy=(
            "Look at the channel with batchnorm explain MODEL --layer NAME: a variance that collapsed after gamma was "
            "trained is mended by batchnorm recalibrate MODEL --data FILE -o OUT, a gamma that grew by training on "
            "with weight decay."
        ),
        evidence={"median": median, "largest": float(scale[worst]), "scale": of.numbers(scale, channels)},
    )


def _sizes(record: LayerRecord) -> NDArray[np.float64]:
    return np.ones(record.channels) if record.gamma is None else np.abs(of.wide(record.gamma))


def cancellation_risk(record: LayerRecord) -> Hit | None:
    """A mean over a thousand standard deviations: digits are lost where it is subtracted."""
    if not of.held(record):
        return None
    with np.errstate(all="ignore"):
        ratio = of.mean(record) ** 2 / (of.variance(record) + (record.epsilon or 0.0))
        channels = of.indices(np.isfinite(ratio) & (ratio > LARGE_MEAN) & ~of.dead(record))
    if not channels:
        return None
    worst = max(channels, key=lambda c: ratio[c])
    far = float(np.sqrt(ratio[worst]))
    gamma = 1.0 if record.gamma is None else abs(float(record.gamma[worst]))
    costs = {name: factor * far * gamma for name, factor in ERRORS}
    spelled = ", ".join(f"{brief(cost, 2)} in {name}" for name, cost in costs.items())
    return Hit(
        level="warning",
        layer=record.name,
        channels=channels,
        message=(
            f"moving_mean {brief(float(of.mean(record)[worst]))} of channel {worst} is {brief(far)} standard "
            f"deviations ({of.named(channels, record.channels)}): engines that compute x*scale + shift in float32 "
            f"lose digits, the output is off by about {spelled}."
        ),
        short=f"mean over 1000 standard deviations in {of.some(channels, record.channels)}",
        remedy=(
            "Subtract a constant from the input (and from moving_mean), or scale it before the layer; "
            "batchnorm verify MODEL --data FILE measures what each engine loses."
        ),
        evidence={"largest_ratio": far, "error": costs, "moving_mean": of.numbers(of.mean(record), channels)},
    )


def constant_channel(record: LayerRecord) -> Hit | None:
    """A variance that is rounding: the channel never varied."""
    if not of.held(record):
        return None
    channels = of.indices(of.constant(record))
    if not channels:
        return None
    variance = of.variance(record)
    share = len(channels) / record.channels
    whole = share == 1 and not of.dead(record).all() and record.channels > 1
    return Hit(
        level="warning" if whole else "note",
        layer=record.name,
        channels=channels,
        message=(
            f"moving_variance near 0 (at most {brief(float(np.max(variance[list(channels)])))}, the layer's median is "
            f"{brief(float(np.median(variance)))}) in {of.named(channels, record.channels)} ({percent(share)}): it "
            "never varied in training."
            + (" Such statistics come of a batch of one sample, or of a layer that is fed nothing." if whole else "")
        ),
        short=f"variance near 0, it never varied, in {of.some(channels, record.channels)}",
        remedy=(
            "Estimate the statistics anew from data: batchnorm recalibrate MODEL --data FILE -o OUT. In training, "
            "leave out a last batch of one sample."
            if whole
            else "The unit before it is dead (a cut-off activation, zero weights) and can be pruned. That is all."
        ),
        code=RECALIBRATE if whole else "",
        evidence={"moving_variance": of.numbers(variance, channels), "median": float(np.median(variance))},
    )
