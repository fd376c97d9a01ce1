"""Results as plain documents, and documents as JSON.

A document is what JSON can hold: dicts, lists, strings, numbers, booleans, None. Text and pages are drawn from it, so
that nothing is shown that a script could not read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

__all__ = ["dumps", "plain", "spelled"]


def plain(value: Any) -> Any:
    """Dataclasses as dicts, arrays and tuples as lists, NumPy numbers as Python's; anything else as it is."""
    fields: dict[str, Any] | None = getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        return {name: plain(getattr(value, name)) for name in fields if name != "schema"}
    if isinstance(value, np.ndarray):
        return plain(np.asarray(cast("Any", value), np.float64).tolist())
    if isinstance(value, np.generic):
        return cast("Any", value).item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in cast("list[Any]", value)]
    return value


def dumps(document: Mapping[str, Any]) -> str:
    """The document as JSON; a number JSON cannot hold is the string ``"nan"``, ``"inf"`` or ``"-inf"``."""
    return json.dumps(spelled(document), indent=2, allow_nan=False)


def spelled(value: Any) -> Any:
    """A document with numbers that JSON cannot hold as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: spelled(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [spelled(item) for item in cast("list[Any]", value)]
    return value
