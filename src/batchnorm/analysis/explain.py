"""Why is this the output: one layer's arithmetic with its numbers, and what stands behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core import equations
from batchnorm.core.ops import moments
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError

from .arrange import Arranged, arrange, checked_channel
from .case import Case
from .expected import Reading, Readings, Statistics, read
from .explanation import Batch, ChannelExplanation, Debiased, LayerExplanation, Value
from .folded import is_folded
from .formula import Constants, constants_of
from .numbers import shown
from .reasons import because
from .remedies import remedies
from .signs import worst_channels

__all__ = ["Request", "explain_layer"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to explain of a layer.

    Attributes
    ----------
    x : array_like, optional
        The layer's input; None works each channel through at its mean and one standard deviation either side.
    at : tuple of int, optional
        Only what lies under this index of the input, batch first.
    channel : int, optional
        Only this channel.
    limit : int
        At most so many values a channel, and so many channels.
    mode : {"inference", "training"}
        Which statistics normalise.
    expect : array_like, optional
        What the user expected for the values shown.
    model_y : array, optional
        What the model itself gave for x.
    upstream : str, optional
        An earlier layer of the model from which on training and inference differ for this input.
    """

    x: Any = None
    at: tuple[int, ...] | None = None
    channel: int | None = None
    limit: int = 20
    mode: str = "inference"
    expect: Any = None
    model_y: Array | None = None
    upstream: str | None = None


def explain_layer(record: LayerRecord, request: Request) -> LayerExplanation:
    """Work a layer through and say why its output is what it is.

    Raises
    ------
    ArgumentError
        An input, index or expectation of the wrong shape; NaN needs no error, it shows.
    UnknownLayer
        No such channel.
    """
    _check(record, request)
    arranged = None if request.x is None else arrange(request.x, record, request.at)
    channels, left_out = _channels(record, request, arranged)
    explained = tuple(_channel(record, request, arranged, c) for c in channels)
    expected = _expected(record, request, arranged, explained)
    case = Case(record, explained, expected, request.mode, arranged is not None, request.upstream)
    return LayerExplanation(
        record=record,
        explained=explained,
        expected=expected,
        because=because(case),
        remedies=remedies(case),
        channels_truncated=left_out,
        mode=request.mode,
    )


def _check(record: LayerRecord, request: Request) -> None:
    if request.mode not in ("inference", "training"):
        raise ArgumentError(f"explain: mode must be 'inference' or 'training'; got {request.mode!r}.")
    if request.mode == "training" and request.x is None:
        raise ArgumentError("explain: --mode training normalises with the input's own statistics; pass --x or --data.")
    if request.limit < 1:
        raise ArgumentError(f"explain: limit must be at least 1; got {request.limit}.")
    if request.expect is not None and request.x is None:
        raise ArgumentError("explain: --expect needs the input that should give it; pass --x.")
    if request.at is not None and request.x is None:
        raise ArgumentError("explain: --at is an index into the layer's input; pass --x or --data.")
    if request.expect is not None and not np.isfinite(np.asarray(request.expect, np.float64)).all():
        raise ArgumentError("explain: --expect must hold finite numbers.")
    if record.moving_mean is None and is_folded(record):
        raise ArgumentError(_left_of(record, request.channel))
    if record.moving_mean is None and request.mode == "inference":
        raise ArgumentError(f"{record.name}: the file holds no moving statistics; only --mode training can be shown.")


def _left_of(record: LayerRecord, channel: int | None) -> str:
    """What a converter left of a layer that it folded."""
    if record.gamma is None:
        return f"{record.name}: {record.kind}: it is part of another operator's weights, and no number of it is left."
    channels = range(min(record.channels, 3)) if channel is None else (checked_channel(channel, record),)
    beta = np.zeros(record.channels) if record.beta is None else record.beta
    lines = (f"channel {c} y = {shown(record.gamma)[c]}*x + ({shown(beta)[c]})" for c in channels)
    return f"{record.name}: the converter left a scale and a shift in place of its statistics: {', '.join(lines)}."


def _channels(record: LayerRecord, request: Request, arranged: Arranged | None) -> tuple[tuple[int, ...], int]:
    if request.channel is not None:
        channel = checked_channel(request.channel, record)
        if arranged is not None and not len(arranged.positions(channel)):
            raise ArgumentError(f"explain: nothing of channel {channel} lies at index {request.at}.")
        return (channel,), 0
    order = worst_channels(record)
    if arranged is None:
        return order[:1], 0
    order = tuple(c for c in order if len(arranged.positions(c)))
    return order[: request.limit], max(len(order) - request.limit, 0)


def _channel(record: LayerRecord, request: Request, arranged: Arranged | None, channel: int) -> ChannelExplanation:
    constants = constants_of(record, channel)
    row = None if arranged is None else arranged.rows[channel]
    batch = None if row is None else moments(row[:, None])
    used = constants
    if request.mode == "training" and batch is not None:
        used = constants.with_statistics(float(batch.mean[0]), float(batch.variance[0]))
    positions = np.arange(3) if arranged is None else arranged.positions(channel)
    xs = _probe(constants) if row is None else [float(v) for v in shown(row[positions[: request.limit]])]
    values = tuple(_value(used, request, arranged, channel, int(p), x) for p, x in zip(positions, xs, strict=False))
    return ChannelExplanation(
        channel=channel,
        gamma=constants.gamma,
        beta=constants.beta,
        moving_mean=None if record.moving_mean is None else constants.mean,
        moving_variance=None if record.moving_variance is None else constants.variance,
        epsilon=constants.epsilon,
        inv_std=used.inv_std,
        scale=used.scale,
        shift=used.shift,
        values=values,
        truncated=max(len(positions) - len(values), 0),
        batch=None if batch is None else _batch(constants, batch, xs),
        debiased=_debiased(record, constants, channel, xs),
    )


def _probe(constants: Constants) -> list[float]:
    spread = float(np.sqrt(max(constants.variance, 0.0)))
    return [float(f"{v:.6g}") for v in (constants.mean - spread, constants.mean, constants.mean + spread)]


def _value(
    used: Constants, request: Request, arranged: Arranged | None, channel: int, position: int, x: float
) -> Value:
    index = () if arranged is None else arranged.index(channel, position)
    y = used.output(x)
    model_y = None if request.model_y is None else float(np.asarray(request.model_y, np.float64).item(*index))
    difference = None if model_y is None or y is None else model_y - y
    return Value(index, x, y, used.formula(x), model_y, difference)


def _batch(constants: Constants, batch: Any, xs: list[float]) -> Batch:
    mean, variance = float(batch.mean[0]), float(batch.variance[0])
    with_batch = constants.with_statistics(mean, variance)
    return Batch(int(batch.count), mean, variance, tuple(with_batch.output(x) for x in xs))


def _debiased(record: LayerRecord, constants: Constants, channel: int, xs: list[float]) -> Debiased | None:
    weight = record.initial_weight
    start_mean, start_variance = record.initial_mean, record.initial_variance
    if weight is None or weight >= 1 or start_mean is None or start_variance is None:
        return None
    mean = float(equations.debias(constants.mean, start_mean, weight))
    variance = float(equations.debias(constants.variance, start_variance, weight))
    without = constants.with_statistics(mean, variance)
    return Debiased(mean, variance, tuple(without.output(x) for x in xs))


def _expected(
    record: LayerRecord, request: Request, arranged: Arranged | None, explained: tuple[ChannelExplanation, ...]
) -> tuple[Reading, ...] | None:
    if request.expect is None or arranged is None:
        return None
    wanted = _aligned(request.expect, arranged, request, explained)
    parts = [(channel, value) for channel in explained for value in channel.values]
    per_value = {
        name: np.array([getattr(channel, name) for channel, _ in parts], np.float64)
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
        if getattr(explained[0], name) is not None
    }
    return read(
        wanted,
        Readings(
            x=np.array([value.x for _, value in parts]),
            gamma=per_value.get("gamma"),
            beta=per_value.get("beta"),
            epsilon=record.epsilon,
            sources=tuple(_sources(parts, per_value)),
        ),
    )


def _aligned(
    expect: Any, arranged: Arranged, request: Request, explained: tuple[ChannelExplanation, ...]
) -> NDArray[np.float64]:
    # Values of the input's shape are looked up by index, so that channels may be shown in another order.
    wanted = np.asarray(expect, np.float64)
    if wanted.size == int(np.prod(arranged.shape)):
        wanted = wanted.reshape(arranged.shape)
        return np.array([wanted[value.index] for channel in explained for value in channel.values])
    if len(explained) > 1:
        raise ArgumentError(
            f"explain: --expect must have the input's {int(np.prod(arranged.shape))} values; got {wanted.size}. "
            "Or name one channel with --channel."
        )
    return wanted.ravel()


def _sources(
    parts: list[tuple[ChannelExplanation, Value]], per_value: dict[str, NDArray[np.float64]]
) -> list[Statistics]:
    def gathered(of: str, name: str) -> NDArray[np.float64]:
        return np.array([getattr(getattr(channel, of), name) for channel, _ in parts], np.float64)

    count = min(channel.batch.count for channel, _ in parts if channel.batch is not None)
    sources = [
        Statistics("the batch's own mean and variance", gathered("batch", "mean"), gathered("batch", "variance"), count)
    ]
    if "moving_mean" in per_value:
        moving = Statistics("the moving mean and variance", per_value["moving_mean"], per_value["moving_variance"])
        sources.insert(0, moving)
    if all(channel.debiased is not None for channel, _ in parts):
        without = "the moving mean and variance without their initial value"
        sources.append(Statistics(without, gathered("debiased", "mean"), gathered("debiased", "variance")))
    return sources
