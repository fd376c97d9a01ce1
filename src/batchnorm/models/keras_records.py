"""From a layer's config and its arrays to its record: what every Keras format has in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord, Mode

from .keras_config import FROZEN, Config, Layer
from .modelfile import quoted, unreadable

__all__ = ["counted", "ddof_of", "mode_of", "norm_record", "numbered", "roles_of", "unknown_record"]

LARGEST = 1e30
MOST_UPDATES = 2**53
STATISTICS = ("moving_mean", "moving_variance")
Arrays = dict[str, NDArray[Any]]


def roles_of(config: Config) -> tuple[str, ...]:
    """The names of a layer's arrays in the order in which Keras makes them, less the absent ones."""
    gamma = ("gamma",) if config.get("scale", True) is not False else ()
    beta = ("beta",) if config.get("center", True) is not False else ()
    return (*gamma, *beta, *STATISTICS)


def norm_record(path: str, layer: Layer, arrays: Arrays, *, ddof: int | None) -> LayerRecord:
    """The record of a layer whose config is known.

    Raises
    ------
    ModelFileError
        A setting is no number, or the arrays are not vectors of one length.
    """
    name = "/".join(layer.names)
    axis = _axis(path, name, layer.config.get("axis"))
    decay = _number(path, name, layer.config, "momentum")
    vectors, channel_shape = _vectors(path, name, arrays, axis)
    initial_mean = _initial(layer.config, ("moving_mean_initializer",), 0.0)
    initial_variance = _initial(layer.config, ("moving_variance_initializer",), 1.0)
    return LayerRecord(
        name=name,
        kind=layer.kind,
        channels=math.prod(channel_shape),
        axis=axis,
        dtype=vectors["moving_mean"].dtype.name,
        epsilon=_number(path, name, layer.config, "epsilon"),
        epsilon_source="file",
        averaging="exponential",
        decay=decay,
        momentum=decay,
        ddof=ddof,
        mode=mode_of(layer),
        channel_shape=channel_shape,
        initial_mean=initial_mean,
        initial_variance=initial_variance,
        renorm=layer.config.get("renorm") is True,
        **vectors,
    )


def unknown_record(path: str, names: Sequence[str], arrays: Sequence[NDArray[Any]], kind: str) -> LayerRecord:
    """The record of a layer of which only the arrays are known: four have all roles, two are the statistics."""
    name = "/".join(names)
    roles = ("gamma", "beta", *STATISTICS) if len(arrays) == 4 else STATISTICS
    given: Arrays = dict(zip(roles, arrays[-len(roles) :], strict=True))
    vectors, channel_shape = _vectors(path, name, given, -1)
    return LayerRecord(
        name=name,
        kind=kind,
        channels=math.prod(channel_shape),
        axis=-1,
        dtype=vectors["moving_mean"].dtype.name,
        epsilon=None,
        epsilon_source="unknown",
        averaging="exponential",
        **vectors,
    )


def mode_of(layer: Layer) -> Mode:
    """Frozen wins: such a layer normalises with its statistics whatever a call says."""
    if not layer.trainable:
        return "frozen"
    baked = [fixed for fixed, _ in layer.calls]
    if layer.config.get("mode") == 2:  # Keras 1: the statistics of the batch, also at inference
        return "batch-statistics"
    if True in baked:
        return "training"
    return "inference" if baked and None not in baked else "by-call"


def ddof_of(axis: Any, *, old: bool) -> int | None:
    """Keras 3 stores the biased variance; tf.keras' fused operation, taken for images, the unbiased one.

    tf.keras lists its axis counted from the front, so that [3] means channels-last images and [2] sequences. [1] may be
    a matrix or channels-first images.
    """
    if not old:
        return 0
    places = cast("list[Any]", axis) if isinstance(axis, list) else []
    return {3: 1, 2: 0}.get(places[0]) if len(places) == 1 and isinstance(places[0], int) else None


def counted(record: LayerRecord, layer: Layer, steps: int | None, *, old: bool = False) -> LayerRecord:
    """The record with its number of updates: the optimizer's steps times the calls of the layer in one step.

    Parameters
    ----------
    steps : int or None
        The optimizer's own count; None where the file holds none.
    old : bool
        Written by Keras 1, Keras 2 or tf.keras. There a call with ``training=False`` in the graph updates nothing, and
        TimeDistributed folds time into the batch; the ``fit`` of Keras 3 overrides the former, and its TimeDistributed
        calls the layer once a time step.
    """
    if steps is None:
        return record
    if not layer.trainable:
        return record.replace(updates_doubt=FROZEN)
    if record.decay is None or not 0 <= record.decay <= 1:
        return record.replace(updates_doubt=f"momentum {record.decay} is no share: it lies outside 0 to 1")
    calls = [1 if old else times for baked, times in layer.calls if not (old and baked is False)]
    if not calls:
        return record.replace(updates_doubt="every call of the layer fixes training=False, which updates nothing")
    known = [times for times in calls if times is not None]
    if len(known) < len(calls):
        return record.replace(
            updates_doubt="a wrapper around the layer updates it once a time step, and the file does not say how many "
            "time steps there were"
        )
    updates = steps * sum(known)
    if updates >= MOST_UPDATES:
        return record.replace(updates_doubt="the file claims more updates than any training makes")
    return record.with_updates(updates, "optimizer iterations")


def numbered(records: Iterable[LayerRecord]) -> tuple[LayerRecord, ...]:
    """Records with unique names: the second of one path gets ``#2``, the third ``#3``."""
    records = list(records)
    taken = {record.name for record in records}
    seen: set[str] = set()
    unique: list[LayerRecord] = []
    for record in records:
        name, number = record.name, 2
        if name in seen:
            while (name := f"{record.name}#{number}") in taken:
                number += 1
            taken.add(name)
        seen.add(name)
        unique.append(record if name == record.name else record.replace(name=name))
    return tuple(unique)


def _vectors(
    path: str, name: str, arrays: Arrays, axis: int | tuple[int, ...]
) -> tuple[dict[str, Any], tuple[int, ...]]:
    shapes = {role: array.shape for role, array in arrays.items()}
    shape = shapes["moving_mean"]
    numeric = all(array.dtype.kind == "f" or array.dtype.name == "bfloat16" for array in arrays.values())
    one_axis = len(shape) == 1 or isinstance(axis, tuple)
    if len(set(shapes.values())) != 1 or not shape or 0 in shape or not numeric or not one_axis:
        found = ", ".join(f"{role} {list(array.shape)} {array.dtype}" for role, array in arrays.items())
        raise unreadable(
            path,
            f"layer {quoted(name)} should hold vectors of one length, and holds {found}",
            "The file is damaged, or written by other code than Keras",
        )
    return dict(arrays), _kept(shape, axis)


def _kept(shape: tuple[int, ...], axis: int | tuple[int, ...]) -> tuple[int, ...]:
    """Lengths of the kept axes: for several of them tf.keras stores (1, 3, 1, 4), with ones where it reduces."""
    if isinstance(axis, tuple) and all(-len(shape) <= place < len(shape) for place in axis):
        lengths = tuple(shape[place] for place in axis)
        if math.prod(lengths) == math.prod(shape):
            return lengths
    return shape


def _axis(path: str, name: str, value: Any) -> int | tuple[int, ...]:
    if isinstance(value, dict):  # a tuple, as tf.keras serialises it
        value = cast("Config", value).get("items")
    items = list(cast("list[Any]", value)) if isinstance(value, (list, tuple)) else [value]
    if not items or not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        raise unreadable(path, f"layer {quoted(name)} has axis {quoted(items)}, which is no number")
    return items[0] if len(items) == 1 else tuple(items)


def _number(path: str, name: str, config: Config, key: str) -> float:
    value = config.get(key)
    number = float(value) if isinstance(value, (int, float)) and abs(value) < LARGEST else math.nan
    if isinstance(value, bool) or math.isnan(number):
        raise unreadable(path, f"layer {quoted(name)} has {key} {quoted(value)}, which is no number")
    return number


def _initial(config: Config, keys: tuple[str, ...], default: float) -> float | None:
    """The value an initializer gives; None where it is random or unknown, ``default`` where none is named."""
    value: Any = next((config[key] for key in keys if key in config), None)
    if value is None:
        return default
    name: Any = cast("Config", value).get("class_name") if isinstance(value, dict) else value
    known = {"zeros": 0.0, "zero": 0.0, "ones": 1.0, "one": 1.0}.get(str(name).lower())
    if known is not None:
        return known
    settings: Any = cast("Config", value).get("config") if isinstance(value, dict) else None
    constant: Any = cast("Config", settings).get("value") if isinstance(settings, dict) else None
    is_number = isinstance(constant, (int, float)) and abs(constant) < LARGEST
    # Kept in the type the statistics are stored in, which is what they are compared with.
    return float(np.float32(constant)) if str(name).lower() == "constant" and is_number else None
