"""What a user types or names as numbers: literals, lists, array files, iterables of batches."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import sys
import types
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import ArgumentError

__all__ = [
    "array_file",
    "as_array",
    "index",
    "model_batches",
    "model_stream",
    "named_object",
    "names_object",
    "real",
    "values",
]

Array = NDArray[Any]
MOST_QUOTED = 60


def values(text: str, option: str) -> Array:
    """Numbers as typed: a JSON literal, a list with commas, or the name of a .npy file.

    Raises
    ------
    ArgumentError
        None of these, no number at all, a ragged list, or a number beyond float64.
    """
    if text.lower().endswith((".npy", ".npz")):
        return array_file(text, option)
    try:
        return _regular(json.loads(text, parse_float=_number, parse_int=_number), text, option)
    except json.JSONDecodeError:
        pass  # a list with commas, then
    except RecursionError:
        raise ArgumentError(f"{option}: {_short(text)} is nested too deeply.") from None
    except OverflowError as error:
        raise ArgumentError(f"{option}: {_short(text)} holds {error}.") from None
    try:
        return np.array([_number(part) for part in text.split(",")])
    except ValueError:
        raise ArgumentError(
            f"{option}: cannot read {_short(text)} as numbers; give 1,5 or [[1], [5]] or the name of a .npy file."
        ) from None
    except OverflowError as error:
        raise ArgumentError(f"{option}: {_short(text)} holds {error}.") from None


def _number(text: str) -> float:
    value = float(text)
    if np.isinf(value) and any(digit.isdigit() for digit in text):
        raise OverflowError(f"{_short(text.strip())}, which is beyond float64 (1.8e308)")
    return value


def _regular(value: Any, text: str, option: str) -> Array:
    if not _holds_numbers(value):
        raise ArgumentError(f"{option}: {_short(text)} holds something that is no number; give 1,5 or [[1], [5]].")
    try:
        array = np.asarray(value, np.float64)
    except ValueError:
        raise ArgumentError(
            f"{option}: {_short(text)} is not a regular array of numbers; every row needs one length."
        ) from None
    if not array.size:
        raise ArgumentError(f"{option}: {_short(text)} holds no number; give at least one.")
    return array


def _holds_numbers(value: Any) -> bool:
    # JSON's null, true and "1" would pass as nan, 1 and 1.
    if isinstance(value, list):
        return all(map(_holds_numbers, cast("list[Any]", value)))
    return type(value) is float


def _short(text: str) -> str:
    return repr(text) if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]!r}... ({len(text)} characters)"


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
    named = _arrays(path, option)
    if len(named) != 1:
        raise ArgumentError(f"{option}: {path!r} must hold one array; it holds {', '.join(named) or 'none'}.")
    return next(iter(named.values()))


def _arrays(path: str, option: str) -> dict[str, Array]:
    with _as_argument(path, option), Path(path).open("rb") as stream:
        loaded: Any = np.load(stream, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": real(cast("Array", loaded), path, option)}
        return {str(name): real(loaded[name], path, option) for name in loaded.files}


@contextlib.contextmanager
def _as_argument(path: str, option: str) -> Generator[None]:
    if not Path(path).is_file():
        raise ArgumentError(f"{option}: no file {path!r}.")
    try:
        yield
    except ArgumentError:
        raise
    except Exception as error:  # NumPy's reader meets damage in many ways: zlib.error, struct.error, SyntaxError, ...
        why = " ".join(str(error).split()) or type(error).__name__
        if "pickle" in why:  # NumPy's advice is to load it all the same
            why = "it is no NumPy file, or holds Python objects, which are not loaded"
        raise ArgumentError(f"{option}: {path!r} holds no plain array ({why}).") from None


def real(array: Any, path: str, option: str) -> Array:
    """The array, if it holds real numbers, and at least one; an ArgumentError says what it holds instead."""
    if not isinstance(array, np.ndarray):
        raise ArgumentError(f"{option}: {path!r} holds a member that is no array.")
    found = cast("Array", array)
    if found.dtype.kind not in "fiub":
        raise ArgumentError(f"{option}: the array must hold real numbers; its dtype is {found.dtype}.")
    if not found.size:
        raise ArgumentError(f"{option}: {path!r} holds an empty array of shape {found.shape}; give at least one value.")
    return found


def as_array(value: Any, who: str, what: str = "data") -> Array:
    """Numbers that a caller gives, as an array; a memory-mapped file stays one, a tensor is taken off its device.

    Raises
    ------
    ArgumentError
        Something in it is no real number, or its rows have several lengths.
    """
    try:
        array = np.asanyarray(_on_host(value))
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{who}: {what} must be a regular array of numbers ({error}).") from None
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise ArgumentError(f"{who}: {what} must hold real numbers; got dtype {array.dtype}.")
    return array


def _on_host(value: Any) -> Any:
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.device.type == "cpu" and value.dtype != torch.bfloat16:
            return value.detach().numpy()
        from batchnorm.engines.torch_state import array_of

        return array_of(value)
    return value


def model_batches(path: str, *, again: bool = False) -> Any:
    """The input of a model: one array from a .npy file, named inputs from a .npz, or ``package.module:name``.

    A named object is an array or an iterable of batches: arrays, tuples ``(x, y)`` of which ``x`` is taken, or dicts
    of named inputs. The array of a .npy file stays on the disk until it is read. ``again`` asks for data that can be
    run through again: a factory that gives an iterator is left a factory.

    Raises
    ------
    ArgumentError
        No such file or name, or it holds no arrays.
    """
    if names_object(path):
        found = named_object(path)
        return functools.partial(named_object, path) if again and isinstance(found, Iterator) else found
    if path.lower().endswith(".npy"):
        with _as_argument(path, "--data"):
            return real(np.load(path, mmap_mode="r", allow_pickle=False), path, "--data")
    named = _arrays(path, "--data")
    if not named:
        raise ArgumentError(f"--data: {path!r} holds no array.")
    return next(iter(named.values())) if len(named) == 1 else named


def model_stream(path: str) -> Any:
    """As `model_batches`; a list is named batches, not the inputs of one."""
    found = model_batches(path)
    return iter(cast("Iterable[Any]", found)) if isinstance(found, (list, tuple)) else found


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
        No such module or name, or a factory that wants arguments. Errors inside the module keep their own traceback.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise ArgumentError(f"{name}: no module {module!r}; it is looked for here and where Python looks.") from None
    if not hasattr(found, attribute):
        raise ArgumentError(f"{name}: module {module!r} has no {attribute!r}.")
    value = getattr(found, attribute)
    return _made(value, name) if isinstance(value, FACTORIES) else value


FACTORIES = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, type)


def _made(factory: Any, name: str) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError:
        raise ArgumentError(f"{name}: it wants arguments; name an object, or a factory without arguments.") from None
    except ValueError:
        pass  # a built-in without a signature
    return factory()
