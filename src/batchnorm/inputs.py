"""What a user types or names as numbers: literals, lists, array files, iterables of batches."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import ArgumentError

__all__ = ["array_file", "index", "model_input", "named_object", "names_object", "values"]

Array = NDArray[Any]


def values(text: str, option: str) -> Array:
    """Numbers as typed: a JSON literal, a list with commas, or the name of a .npy file.

    Raises
    ------
    ArgumentError
        None of these, or a ragged list.
    """
    if text.endswith((".npy", ".npz")):
        return array_file(text, option)
    try:
        return np.asarray(json.loads(text), np.float64)
    except json.JSONDecodeError:
        pass  # a list with commas, then
    except (TypeError, ValueError):
        raise ArgumentError(
            f"{option}: {text!r} is not a regular array of numbers; every row needs one length."
        ) from None
    try:
        return np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise ArgumentError(
            f"{option}: cannot read {text!r} as numbers; give 1,5 or [[1], [5]] or the name of a .npy file."
        ) from None


def index(text: str) -> tuple[int, ...]:
    """``0,3,3`` as an index."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(f"--at: {text!r} is not an index; give whole numbers, batch first: 0,3,3.") from None


def array_file(path: str, option: str) -> Array:
    """One array from a .npy file, or from a .npz that holds one; nothing pickled is loaded.

    Raises
    ------
    ArgumentError
        No such file, or it holds no array.
    """
    if not Path(path).is_file():
        raise ArgumentError(f"{option}: no file {path!r}.")
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArgumentError(f"{option}: {path!r} holds no plain array ({error}).") from None
    if isinstance(loaded, np.ndarray):
        return _real(cast("Array", loaded), option)
    names = list(loaded.files)
    if len(names) != 1:
        raise ArgumentError(f"{option}: {path!r} must hold one array; it holds {', '.join(names) or 'none'}.")
    return _real(cast("Array", loaded[names[0]]), option)


def _real(array: Array, option: str) -> Array:
    if array.dtype.kind not in "fiub":
        raise ArgumentError(f"{option}: the array must hold real numbers; its dtype is {array.dtype}.")
    return array


def model_input(path: str) -> Any:
    """The input of a model: one array from a .npy file, named inputs from a .npz.

    Raises
    ------
    ArgumentError
        No such file, or it holds no arrays.
    """
    if not path.endswith(".npz"):
        return array_file(path, "--data")
    if not Path(path).is_file():
        raise ArgumentError(f"--data: no file {path!r}.")
    try:
        with np.load(path, allow_pickle=False) as loaded:
            named = {name: _real(loaded[name], "--data") for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArgumentError(f"--data: {path!r} holds no plain arrays ({error}).") from None
    return next(iter(named.values())) if len(named) == 1 else named


def names_object(text: str) -> bool:
    """Whether a model argument is ``package.module:name`` rather than a path."""
    module, colon, attribute = text.partition(":")
    parts = [*module.split("."), attribute]
    return bool(colon) and all(part.isidentifier() for part in parts) and not Path(text).exists()


def named_object(name: str) -> Any:
    """What ``package.module:name`` names; a factory without arguments is called.

    Raises
    ------
    ArgumentError
        No such module or name. Errors inside the module keep their own traceback.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ArgumentError(f"{name}: no module {module!r}; it is looked for here and where Python looks.") from None
    if not hasattr(found, attribute):
        raise ArgumentError(f"{name}: module {module!r} has no {attribute!r}.")
    value = getattr(found, attribute)
    return value() if isinstance(value, type(named_object)) else value
