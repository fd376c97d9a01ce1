"""Why a layer gives what it gives: ``bn.explain``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.analysis.arrange import arrange
from batchnorm.analysis.epsilon import Fitted, fitted
from batchnorm.analysis.explain import Request, explain_layer
from batchnorm.analysis.explanation import LayerExplanation
from batchnorm.analysis.gap import Gap, Gaps, gap_sentence
from batchnorm.analysis.reasons import verdict
from batchnorm.analysis.signs import signs_of
from batchnorm.core.arrays import as_float
from batchnorm.core.protocols import Capture, Model
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, NoBatchNorm

from .batches import Batch, samples_of
from .epsilons import Epsilon
from .loading import check_epsilon, chosen, info, load, notes_of, some
from .padding import Apart, told
from .parts import in_parts
from .results import Explanation, ModelInfo

__all__ = ["explain", "explain_arrays"]


def explain(
    model: Any,
    x: ArrayLike | None = None,
    *,
    layer: str | None = None,
    channel: int | None = None,
    data: Any = None,
    at: Sequence[int] | None = None,
    limit: int = 20,
    mode: str = "inference",
    expect: ArrayLike | None = None,
    updates: int | None = None,
    epsilon: Epsilon | None = None,
) -> Explanation:
    """Why is this the output: the arithmetic with its numbers, why it is not what was expected, what to do.

    Parameters
    ----------
    model : path or object
        See `load`.
    x : array_like, optional
        The input **of the layer**. A list holds values for a layer of one channel, and the channels of one sample
        otherwise. Without ``x`` and ``data`` every layer gets its verdict, and the worst channel of the worst layer is
        worked through at its mean and one standard deviation either side.
    layer : str, optional
        The layer's name, or any unambiguous tail of it; needed with ``x`` where there are several.
    channel : int, optional
        Only this channel.
    data : array_like or iterable of batches, optional
        The input **of the model**, which is run up to the layer in its own engine. Memory does not grow with it: of
        more than 32 MB the first are shown, and the gap between training and inference is measured on all.
    at : sequence of int, optional
        Only what lies under this index of the layer's input, batch first.
    limit : int
        At most so many values a channel, and so many channels.
    mode : {"inference", "training"}
        Which statistics normalise.
    expect : array_like, optional
        The values you expected; every reading that gives them is named. Where the file holds no epsilon, and ``expect``
        has a value for each of ``x``, the epsilon is fitted to them, with what is left unsure of it.
    updates : int, optional
        How often the statistics were updated, where the file does not tell.
    epsilon : float, optional
        As in `load`.

    Returns
    -------
    Explanation
        ``.layers[i].because`` holds the sentences; ``str()`` is what the terminal shows; ``.to_json()`` the document.

    Raises
    ------
    NoBatchNorm
        The model has none.
    UnknownLayer
        No such layer or channel; or several, or none named where one must be.
    ArgumentError
        An input of the wrong shape (the message says the shape wanted), and the like.

    Examples
    --------
    >>> print(explain("model.keras", x=[1, 5], expect=[-1, 1]))  # doctest: +SKIP
    """
    read = load(model, epsilon=epsilon)
    if not read.layers:
        raise NoBatchNorm(_no_batch_norm(read))
    _check_updates(updates)
    records = [record.with_updates(updates, "option") for record in read.layers]
    request = Request(x=x, at=_tuple(at), channel=channel, limit=limit, mode=mode, expect=expect)
    if x is not None and data is not None:
        raise ArgumentError("explain: give x (the layer's input) or data (the model's input), not both.")
    if data is not None:
        layers = _with_data(read, records, data, layer, request)
    elif x is None and layer is None:
        layers = _verdicts(records, request)
    else:
        layers = (_worked(chosen(records, layer), request),)
    return Explanation(info(read), layers, notes_of(read, epsilon))


def _worked(record: LayerRecord, request: Request) -> LayerExplanation:
    """One layer; an epsilon that its file does not hold is fitted to the values expected, where these tell it."""
    fit = _fit(record, request)
    if fit is None:
        return explain_layer(record, request)
    found = explain_layer(record.with_epsilon(fit.epsilon, "fit"), request)
    return dataclasses.replace(found, because=(fit.sentence(), *found.because))


def _fit(record: LayerRecord, request: Request) -> Fitted | None:
    whole = request.at is None and request.channel is None and request.mode == "inference"
    if record.epsilon is not None or request.x is None or request.expect is None or not whole:
        return None
    if record.moving_mean is None or np.size(request.expect) != np.size(request.x):
        return None
    x, y = (arrange(np.reshape(each, np.shape(request.x)), record).rows for each in (request.x, request.expect))
    return fitted(record, x.astype(np.float64), y.astype(np.float64))


def explain_arrays(
    x: ArrayLike | None,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    moving_mean: ArrayLike,
    moving_variance: ArrayLike,
    epsilon: float,
    *,
    axis: int | tuple[int, ...] = -1,
    decay: float | None = None,
    updates: int | None = None,
    expect: ArrayLike | None = None,
    mode: str = "inference",
    name: str = "batch_normalization",
    limit: int = 20,
) -> Explanation:
    """As `explain`, from the arrays themselves: for authors of other libraries, and for a layer of your own.

    Parameters
    ----------
    x : array_like or None
        The layer's input; None works the worst channel through.
    gamma, beta : array_like or None
        Multiplier and addend of each channel; None where absent.
    moving_mean, moving_variance : array_like
        The stored statistics, one number a channel.
    epsilon : float
        Added to the variance inside the root.
    axis : int or tuple of int
        The axis or axes of ``x`` that hold the channels.
    decay : float, optional
        Share of the old value that one update keeps: Keras' momentum, 1 - PyTorch's.
    updates : int, optional
        How often the statistics were updated.
    expect, mode, limit
        As in `explain`.
    name : str
        What to call the layer.

    Examples
    --------
    >>> found = explain_arrays(
    ...     [1, 5], [0.80644524], None, [0.05885344], [0.91000736], 1e-3, decay=0.99, updates=10
    ... )
    >>> [round(value.y, 6) for value in found.layers[0].explained[0].values]
    [0.795191, 4.174858]
    """
    check_epsilon(epsilon)
    _check_updates(updates)
    mean = as_float(moving_mean, "explain_arrays")
    record = LayerRecord(
        name=name,
        kind="arrays",
        channels=mean.size,
        channel_shape=mean.shape or (1,),
        axis=axis,
        dtype=mean.dtype.name,
        epsilon=epsilon,
        epsilon_source="option",
        averaging="unknown" if decay is None else "exponential",
        decay=decay,
        momentum=decay,
        ddof=None,
        mode="by-call",
        gamma=None if gamma is None else np.asarray(gamma),
        beta=None if beta is None else np.asarray(beta),
        moving_mean=mean,
        moving_variance=np.asarray(moving_variance),
    ).with_updates(updates, "option")
    request = Request(x=x, expect=expect, mode=mode, limit=limit)
    return Explanation(ModelInfo("arrays", "arrays"), (explain_layer(record, request),))


def _verdicts(records: list[LayerRecord], request: Request) -> tuple[LayerExplanation, ...]:
    # A layer that normalises with the batch only has nothing to work through without an input.
    held = [i for i, each in enumerate(records) if each.moving_mean is not None and each.moving_variance is not None]
    worst = min(held, key=lambda i: _severity(records[i]), default=None)
    return tuple(
        explain_layer(record, request) if i == worst else LayerExplanation(record, (), None, (verdict(record),), ())
        for i, record in enumerate(records)
    )


def _severity(record: LayerRecord) -> int:
    found = signs_of(record)
    return ("error", "warning", "note").index(found[0].level) if found else 3


def _with_data(
    read: Model, records: list[LayerRecord], data: Any, layer: str | None, request: Request
) -> tuple[LayerExplanation, ...]:
    reached, gap, counts = _reached(read, records, data)
    named = None if layer is None else chosen(records, layer)
    one = named or (gap.record if gap else next((r for r in records if reached[r.name]), None))
    if one is None or not reached[one.name]:
        raise ArgumentError(f"explain: this data does not reach {one.name if one else 'any batch normalization'}.")
    calls = reached[one.name]
    x, y = calls[0]
    upstream = gap.record.name if gap is not None and records.index(one) > gap.position else None
    model_y = y if request.mode == "inference" else None
    found = explain_layer(one, dataclasses.replace(request, x=x, model_y=model_y, upstream=upstream))
    several = f"The model calls this layer {len(calls)} times; what is shown is the first call."
    part = f"What is shown are the first {counts[0]} of {sum(counts)} samples; the gap was measured on all of them."
    more = [*([several] if len(calls) > 1 else []), *([part] if len(counts) > 1 else [])]
    because = (gap_sentence(gap, len(records)), *found.because, *more)
    return (dataclasses.replace(found, because=because),)


def _reached(read: Model, records: list[LayerRecord], data: Any) -> tuple[Capture, Gap | None, list[int]]:
    """What goes in and out of each layer in the first part of the data, where it parts, and the samples of each part.

    Of the other parts nothing is kept but statistics, so that memory does not grow with the data.
    """
    names = [record.name for record in records]
    gaps, counts, first = Gaps(records), list[int](), dict[str, Any]()
    apart = Apart(read.run, "explain")
    for part in in_parts(data):
        batch = apart(Batch(part, None, sum(counts), samples_of(part)))
        _, captured = read.run(batch.inputs, capture=names)
        counts.append(batch.samples)
        gaps.add(captured, counts[-1], told(batch))
        first = first or {name: captured.get(name, []) for name in names}
    return first, gaps.first(), counts


def _no_batch_norm(read: Model) -> str:
    holds = f"; it holds {some(read.other_layers)}" if read.other_layers else ""
    return f"{read.path}: there is no batch normalization in this model{holds}."


def _check_updates(updates: int | None) -> None:
    if updates is not None and updates < 0:
        raise ArgumentError(f"explain: --updates must not be negative; got {updates}.")


def _tuple(at: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if at is None else tuple(int(i) for i in at)
