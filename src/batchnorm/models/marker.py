"""The mark that statistics were recalibrated: they no longer follow from the counter of updates that lies beside them.

A file keeps its counter, which tells how long the model was trained; read with the decay, it would claim an initial
value that is gone. So a short JSON text goes where each format lets others keep notes, and names the statistics it is
about by a digest of their numbers: renamed layers keep it, and statistics that have moved since lose it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, cast

import numpy as np

from batchnorm.core.record import LayerRecord

__all__ = ["ATTRIBUTE", "KEY", "committed", "digest", "mark_live", "marked", "marked_live", "text_of"]

KEY = "batchnorm.recalibrated"
ATTRIBUTE = "_batchnorm_recalibrated"
METHODS = ("one-pass", "sequential", "debias", "merge")
MOST_TEXT = 1 << 22
DIGITS = 16


def digest(record: LayerRecord) -> str:
    """What the statistics of a layer are told by, whatever its name: 64 bits of their hash."""
    parts = [np.asarray(each, "<f8").tobytes() for each in (record.moving_mean, record.moving_variance)]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:DIGITS]


def text_of(records: Iterable[LayerRecord], new: Collection[str], method: str) -> str:
    """The mark of a file whose layers ``new`` were recalibrated now; those that were before keep theirs.

    ``{"one-pass": [digest, ...]}``: the statistics by the method that they come from.
    """
    found: dict[str, list[str]] = {}
    for record in records:
        how = method if record.name in new else record.recalibrated
        if how is not None and record.moving_mean is not None and record.moving_variance is not None:
            found.setdefault(how, []).append(digest(record))
    return json.dumps(found)


def marked(records: Iterable[LayerRecord], text: Any) -> tuple[LayerRecord, ...]:
    """The records, those that the mark is about without a number of updates; a damaged mark marks nothing."""
    known = _read(text)
    return tuple(_with(record, known) for record in records)


def mark_live(record: LayerRecord, layer: Any, method: str) -> None:
    """Mark a live layer, by an attribute that holds nothing but text: copied and pickled with it, and in no state."""
    vars(layer)[ATTRIBUTE] = f"{method} {digest(record)}"


def marked_live(record: LayerRecord, layer: Any) -> LayerRecord:
    """The record of a live layer, without a number of updates where it bears the mark of these very statistics."""
    attributes = cast("dict[str, Any]", vars(layer))
    method, _, own = str(attributes.get(ATTRIBUTE, "")).partition(" ")
    return record.with_recalibration(method) if method in METHODS and own == digest(record) else record


def committed(
    commit: Callable[[Mapping[str, Any], Mapping[str, tuple[Any, Any]]], None],
    read: Callable[[str, Any], LayerRecord],
    layers: Mapping[str, Any],
    statistics: Mapping[str, tuple[Any, Any]],
    method: str | None = None,
) -> None:
    """Write statistics into live layers, and mark those that were recalibrated; ``read`` makes a layer's record."""
    commit(layers, statistics)
    for name in statistics if method is not None else ():
        mark_live(read(name, layers[name]), layers[name], str(method))


def _with(record: LayerRecord, known: dict[str, str]) -> LayerRecord:
    if not known or record.moving_mean is None or record.moving_variance is None:
        return record
    method = known.get(digest(record))
    return record if method is None else record.with_recalibration(method)


def _read(text: Any) -> dict[str, str]:
    if not isinstance(text, (str, bytes)) or len(text) > MOST_TEXT:
        return {}
    try:
        held: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(held, dict):
        return {}
    found = cast("dict[str, Any]", held)
    lists = {method: found[method] for method in METHODS if isinstance(found.get(method), list)}
    return {each: method for method, those in lists.items() for each in those if isinstance(each, str)}
