"""A live Keras model as a ModelFile; Keras is found in the process, never imported, and nothing of it is changed."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from functools import partial
from typing import Any

from numpy.typing import NDArray

from batchnorm.core.graph import Graph, LazyGraph, NoGraph
from batchnorm.core.record import LayerRecord
from batchnorm.engines.keras import array_of, live_layers, run_live
from batchnorm.engines.keras_bench import ModelBench, commit, save
from batchnorm.errors import ArgumentError

from .keras_config import Layer, read_layers
from .keras_file import mark
from .keras_graph import graph_of
from .keras_legacy import mark as mark_legacy
from .keras_records import counted, norm_record, roles_of
from .marker import committed, marked_live
from .modelfile import ModelFile

__all__ = ["from_live"]


def from_live(model: Any) -> ModelFile:
    """Read a live Keras model, or a single layer.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        Built: its variables exist.

    Returns
    -------
    ModelFile
        With the model's name as path and copies of its arrays. Names are those that a file of the model would have,
        and ``updates`` comes from the model's own optimizer, where it has one.

    Raises
    ------
    ArgumentError
        A layer has no weights yet.
    """
    steps = _steps(model)
    shown = _serialised(model)
    found = live_layers(model)
    records = tuple(_record(str(model.name), name, layer, shown, steps) for name, layer in found)
    return ModelFile(
        path=str(model.name),
        format="keras",
        layers=records,
        other_layers=tuple(str(layer.name) for layer in getattr(model, "layers", ())) if not found else (),
        runner=partial(run_live, model),
        lazy_graph=LazyGraph(partial(_graph, model)),
        bench=partial(ModelBench, model, records, dict(found)),
        commit=partial(committed, commit, partial(_record, str(model.name), shown=shown, steps=None), dict(found)),
        writer=partial(save, model, dict(found)) if hasattr(model, "save") else None,
        marker=_mark,
    )


def _mark(place: pathlib.Path, text: str) -> None:
    if place.suffix == ".keras":
        mark(place, text)
    elif place.suffix in (".h5", ".hdf5"):
        mark_legacy(place, text)


def _graph(model: Any) -> Graph:
    keras: Any = sys.modules["keras"]
    try:
        config: Any = keras.saving.serialize_keras_object(model)
    except Exception as error:
        raise NoGraph(f"Keras cannot serialise it ({type(error).__name__})") from None
    return graph_of(config, partial(_fetched, model))


def _fetched(model: Any, layer: Layer, number: int) -> NDArray[Any]:
    """An array of the layer of that path."""
    found: Any = model
    for name in layer.names:
        inner = getattr(found, "layer", None)
        found = found.get_layer(name) if hasattr(found, "get_layer") else inner
    return array_of(found.weights[number])


def _arrays(name: str, live: Any, roles: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    if live.moving_mean is None:
        raise ArgumentError(f"layer {name!r} has no weights yet. Call it, or its model, once on data")
    return {role: array_of(getattr(live, role)) for role in roles}


def _record(path: str, name: str, live: Any, shown: dict[str, Layer], steps: int | None) -> LayerRecord:
    known = shown.get(name)
    layer = Layer(
        names=(name,),
        storage=(),
        kind=type(live).__name__,
        config=dict(live.get_config()),
        trainable=bool(live.trainable),
        is_norm=True,
    )
    if known is not None:
        layer.calls = known.calls
    arrays = _arrays(name, live, roles_of(layer.config))
    return marked_live(counted(norm_record(path, layer, arrays, ddof=0), layer, steps), live)


def _serialised(model: Any) -> dict[str, Layer]:
    """What the config of the model tells of its layers' calls; nothing where a class cannot be serialised."""
    keras: Any = sys.modules["keras"]
    with contextlib.suppress(Exception):
        config: Any = keras.saving.serialize_keras_object(model)
        return {"/".join(layer.names): layer for layer in read_layers(config) if layer.is_norm}
    return {}


def _steps(model: Any) -> int | None:
    counter = getattr(getattr(model, "optimizer", None), "iterations", None)
    return None if counter is None else int(array_of(counter))
