"""The arrays of ONNX files: inside the file, or in one beside it; only the slice that is asked for is read."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .modelfile import quoted, unreadable
from .protobuf import Message

__all__ = ["MOST_ELEMENTS", "MOST_RANK", "Constant", "constant_of", "dtype_name"]

MOST_ELEMENTS = 1 << 24
MOST_RANK = 40
AGAIN = "Save or download the file again"
EXTERNAL = 1
# DataType of onnx.proto -> the type, and for floats the field that holds it where raw_data does not.
FLOATS = {1: ("<f4", 4), 11: ("<f8", 10)}
BITS = {10: np.dtype("<f2"), 16: np.dtype(ml_dtypes.bfloat16)}
INTEGERS = {2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 12: "<u4", 13: "<u8"}


@dataclass(frozen=True, slots=True)
class Constant:
    """An array of the file: an initializer, or the value of a node."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], NDArray[Any]]

    @property
    def size(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)


def constant_of(path: str, name: str, message: Message) -> Constant:
    """The array of a TensorProto, not read yet."""
    shape = tuple(message.integers(1))
    if any(length < 0 for length in shape) or len(shape) > MOST_RANK:
        raise unreadable(path, f"array {quoted(name)} has shape {quoted(list(shape))}, which is none", AGAIN)
    code = message.integer(2)
    return Constant(shape, dtype_name(code), lambda: _read(path, name, message, shape, code))


def _dtype(code: int) -> np.dtype[Any] | None:
    if code in FLOATS:
        return np.dtype(FLOATS[code][0])
    return BITS.get(code) or (np.dtype(INTEGERS[code]) if code in INTEGERS else None)


def dtype_name(code: int) -> str:
    """NumPy's name of a type; ``"type 8"`` for one that holds no numbers, or parts of bytes."""
    dtype = _dtype(code)
    return f"type {code}" if dtype is None else dtype.name


def _read(path: str, name: str, message: Message, shape: Sequence[int], code: int) -> NDArray[Any]:
    size, dtype = math.prod(shape), _dtype(code)
    if size > MOST_ELEMENTS or dtype is None:
        raise unreadable(path, f"array {quoted(name)} of shape {quoted(list(shape))} is no parameter of a layer")
    raw = message.span(9)
    if message.integer(14) == EXTERNAL:
        data = _external(path, name, message.pairs(13), size * dtype.itemsize)
        array = np.frombuffer(data, dtype)
    elif raw is not None:
        span = raw if raw[1] - raw[0] == size * dtype.itemsize else (0, 0)
        array = np.frombuffer(message.data(span), dtype)
    else:
        array = _typed(message, dtype, code)
    if array.size != size:
        raise unreadable(
            path, f"array {quoted(name)} of shape {quoted(list(shape))} holds other than {size:,} numbers", AGAIN
        )
    return array.reshape(shape)


def _typed(message: Message, dtype: np.dtype[Any], code: int) -> NDArray[Any]:
    if code in FLOATS:
        return message.floats(FLOATS[code][1], FLOATS[code][0])
    number = {7: 7, 12: 11, 13: 11}.get(code, 5)
    numbers = message.integers(number)
    if code in BITS:
        return np.array([each & 0xFFFF for each in numbers], "<u2").view(dtype)
    return np.array([each & (1 << 64) - 1 for each in numbers], np.uint64).astype(dtype)


def _external(path: str, name: str, entries: dict[str, str], size: int) -> bytes:
    """The bytes of an array in a file beside the model; nothing but that slice is read."""
    location = entries.get("location", "")
    outside = Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location or ":" in location
    if not location or outside or "\0" in location:
        raise unreadable(path, f"array {quoted(name)} lies in {quoted(location)}, which is no file beside the model")
    file = Path(path).parent / location
    # A link may lead to where the model itself is kept, as in a download cache, and nowhere else.
    homes = (os.path.realpath(Path(path).parent), os.path.dirname(os.path.realpath(path)))
    if not any(Path(os.path.realpath(file)).is_relative_to(home) for home in homes):
        raise unreadable(path, f"array {quoted(name)} lies in {quoted(location)}, a link that leads elsewhere")
    if not file.is_file():
        raise unreadable(path, f"array {quoted(name)} lies in {quoted(location)}, which is not there", "Copy all files")
    offset, length = (entries.get(key, "0") for key in ("offset", "length"))
    if not (offset.isdecimal() and length.isdecimal()) or len(offset) > 18 or int(length or 0) not in (0, size):
        raise unreadable(path, f"array {quoted(name)} lies at {quoted(offset)}, {quoted(length)} bytes long")
    with file.open("rb") as stream:
        stream.seek(int(offset))
        data = stream.read(size)
    if len(data) < size:
        raise unreadable(path, f"{quoted(location)} is truncated: array {quoted(name)} ends behind it", AGAIN)
    return data
