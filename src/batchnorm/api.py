"""The Python functions behind the commands: a reader, an analysis and a result joined."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.analysis.explain import Request, explain_layer
from batchnorm.analysis.explanation import LayerExplanation
from batchnorm.analysis.numbers import listed
from batchnorm.analysis.reasons import verdict
from batchnorm.analysis.signs import signs_of
from batchnorm.core.arrays import as_float
from batchnorm.core.protocols import Model
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, NoBatchNorm, UnknownLayer
from batchnorm.results import Explanation, Listing, ModelInfo

__all__ = ["explain", "explain_arrays", "list_layers", "load"]

MOST_NAME = 200


def load(
    model: Any, *, epsilon: float | None = None, trust: bool = False, weights: str | os.PathLike[str] | None = None
) -> Model:
    """Read a model: a file, a folder, or a live object; nothing of a file is executed.

    Parameters
    ----------
    model : path or object
        A ``.keras``, ``.weights.h5``, ``.h5``, ``.hdf5``, ``.onnx``, ``.pt2``, ``.pt``, ``.pth``, ``.ckpt``, ``.bin``
        or ``.safetensors`` file, an unzipped ``.keras`` folder; or a live ``keras.Model``, ``torch.nn.Module``,
        ``nnx.Module``, ``onnx.ModelProto``, or a `batchnorm.BatchNormalization`. What was loaded already is returned
        as it is.
    epsilon : float, optional
        The epsilon of layers for which a file holds none.
    trust : bool
        Read TorchScript archives too: PyTorch's loader runs code that lies in the file.
    weights : path, optional
        A checkpoint or ``.safetensors`` file that is loaded into ``model``, a live ``torch.nn.Module``, first. This
        alone changes the object.

    Returns
    -------
    Model
        With ``.layers`` (records with arrays) and ``.run(x, capture=[names])``.

    Raises
    ------
    ModelFileError
        It cannot be read as a model.
    ArgumentError
        An object of no known kind.

    Examples
    --------
    >>> model = load("model.keras")  # doctest: +SKIP
    >>> model.layers[0].epsilon  # doctest: +SKIP
    0.001
    """
    from batchnorm.models.registry import open_model

    _check_epsilon(epsilon)
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        if not path:
            raise ArgumentError("load: the model's path is empty; give the path of a file or folder.")
        if weights is not None:
            raise ArgumentError(
                "load: weights are loaded into a live object, and the model is a file; name the object as "
                "package.module:name."
            )
        return open_model(path, epsilon=epsilon, trust=trust)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(model, Model):
        return model
    from batchnorm.live import from_live, load_weights

    if weights is not None:
        load_weights(model, os.fspath(weights))
    found = from_live(model)
    if found is None:
        raise ArgumentError(
            f"load: cannot read an object of type {type(model).__name__}; give the path of a model file, a "
            "keras.Model, torch.nn.Module, nnx.Module, onnx.ModelProto, or a batchnorm.BatchNormalization."
        )
    return found


def list_layers(model: Any, *, epsilon: float | None = None, arrays: bool = False) -> Listing:
    """Every batch normalization of a model, as `load` finds it; see there for the arguments and errors."""
    read = load(model, epsilon=epsilon)
    return Listing(_info(read), read.layers, read.other_layers, _notes(read, epsilon), arrays)


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
    epsilon: float | None = None,
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
    data : array_like, optional
        The input **of the model**, which is run up to the layer in its own engine.
    at : sequence of int, optional
        Only what lies under this index of the layer's input, batch first.
    limit : int
        At most so many values a channel, and so many channels.
    mode : {"inference", "training"}
        Which statistics normalise.
    expect : array_like, optional
        The values you expected; every reading that gives them is named.
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
        layers = (explain_layer(chosen(records, layer), request),)
    return Explanation(_info(read), layers, _notes(read, epsilon))


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
    _check_epsilon(epsilon)
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
    from batchnorm.analysis.gap import first_gap, gap_sentence

    _, captured = read.run(data, capture=[record.name for record in records])
    reached = {record.name: captured.get(record.name, []) for record in records}
    gap = first_gap(records, {name: [x for x, _ in calls] for name, calls in reached.items()})
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
    because = (gap_sentence(gap, len(records)), *found.because, *([several] if len(calls) > 1 else []))
    return (dataclasses.replace(found, because=because),)


def chosen(records: Sequence[LayerRecord], layer: str | None, who: str = "explain") -> LayerRecord:
    """The layer of that name, or of an unambiguous tail of it; without a name, the only one there is.

    Raises
    ------
    UnknownLayer
        None or several; the message lists them.
    """
    names = [record.name for record in records]
    if layer is None:
        if len(records) == 1:
            return records[0]
        raise UnknownLayer(f"{who}: name one of {len(names)} layers with --layer: {_some(names)}.")
    for same in (str.__eq__, _is_path_tail, str.endswith):
        found = [record for record in records if same(record.name, layer)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownLayer(
                f"{who}: {layer!r} is the tail of {len(found)} layers: {_some([r.name for r in found])}."
            )
    near = difflib.get_close_matches(layer, names, n=3, cutoff=0.4) or names
    raise UnknownLayer(f"{who}: no batch normalization {layer!r}; the nearest: {_some(near)}.")


def _is_path_tail(name: str, tail: str) -> bool:
    return name.endswith((f"/{tail}", f".{tail}"))


def _some(names: Sequence[str]) -> str:
    shown = (name if len(name) <= MOST_NAME else f"{name[:MOST_NAME]}..." for name in names[:5])
    return ", ".join(map(repr, shown)) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _no_batch_norm(read: Model) -> str:
    holds = f"; it holds {_some(read.other_layers)}" if read.other_layers else ""
    return f"{read.path}: there is no batch normalization in this model{holds}."


def _info(read: Model) -> ModelInfo:
    return ModelInfo(read.path, read.format)


def _notes(read: Model, epsilon: float | None) -> tuple[str, ...]:
    notes: tuple[str, ...] = tuple(getattr(read, "notes", ()))
    own = {r.epsilon for r in read.layers if r.epsilon is not None and r.epsilon_source != "option"}
    if epsilon is None or not own or any(record.epsilon_source == "option" for record in read.layers):
        return notes
    return (*notes, f"The epsilon given ({epsilon:g}) was not used: the model holds its own, {listed(sorted(own))}.")


def _check_epsilon(epsilon: float | None) -> None:
    if epsilon is not None and not 0 <= epsilon < float("inf"):
        raise ArgumentError(f"explain: --eps must be a finite number that is not negative; got {epsilon:g}.")


def _check_updates(updates: int | None) -> None:
    if updates is not None and updates < 0:
        raise ArgumentError(f"explain: --updates must not be negative; got {updates}.")


def _tuple(at: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if at is None else tuple(int(i) for i in at)
