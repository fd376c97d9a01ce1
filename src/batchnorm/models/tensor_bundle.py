"""TensorFlow's checkpoint files (``variables.index`` and ``variables.data-*``), read without TensorFlow.

The index is a sorted table as LevelDB writes it: blocks of key and value with shared prefixes, a block that lists the
blocks, a footer. Each value is a small protocol buffer: type, shape, file, offset, size and checksum of one tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .modelfile import quoted, unreadable
from .protobuf import Message, WireError, varint

__all__ = ["DTYPES", "Bundle", "Entry", "crc32c"]

FOOTER = 48
MAGIC = bytes.fromhex("57fb808b247547db")
TRAILER = 5  # one byte of compression, four of checksum
MOST_INDEX = 512 << 20
LONGEST_KEYS = 64  # bytes of keys in a byte of table: keys share their beginnings, within reason
MASK = 0xA282EAD8
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    9: np.dtype("<i8"),
    14: np.dtype(ml_dtypes.bfloat16),
    19: np.dtype("<f2"),
}
STRING = 7
DAMAGED = "Save or copy the model again"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool


class Bundle:
    """The tensors of a checkpoint by name; a tensor is read when it is asked for.

    Parameters
    ----------
    prefix : path
        The common beginning of the files' names, ``.../variables/variables``.
    path : str
        How messages call the model.

    Raises
    ------
    ModelFileError
        The index is missing, damaged or compressed.
    """

    def __init__(self, prefix: Path, path: str) -> None:
        self._prefix = prefix
        self._path = path
        try:
            pairs = _table(self._index(), path)
            self._shards = Message(pairs.pop(b"", b"")).integer(1) or 1
            self._entries = {key.decode("utf-8", "replace"): _entry(value) for key, value in pairs.items()}
        except WireError as error:
            raise unreadable(path, f"{prefix.name}.index is damaged ({error})", DAMAGED) from None

    def names(self) -> tuple[str, ...]:
        """The names of the tensors, sorted."""
        return tuple(self._entries)

    def get(self, name: str) -> Entry | None:
        """What the index says of a tensor."""
        return self._entries.get(name)

    def array(self, name: str) -> NDArray[Any] | None:
        """A tensor of numbers; None where there is none of the name, or it holds something else.

        Raises
        ------
        ModelFileError
            The file that should hold it is missing, shorter than the index says, or fails the checksum.
        """
        entry = self._entries.get(name)
        dtype = None if entry is None else DTYPES.get(entry.dtype)
        if entry is None or dtype is None or entry.sliced:
            return None
        if any(length < 0 for length in entry.shape) or entry.size != math.prod(entry.shape) * dtype.itemsize:
            raise unreadable(self._path, f"{quoted(name)} has a size that contradicts its shape", DAMAGED)
        return np.frombuffer(self._bytes(name, entry), dtype).reshape(entry.shape)

    def file(self, name: str) -> str:
        """The name of the file that holds a tensor."""
        entry = self._entries.get(name)
        return f"{self._prefix.name}.data-{entry.shard if entry else 0:05d}-of-{self._shards:05d}"

    def string(self, name: str) -> bytes | None:
        """A tensor that holds one string: its length, a checksum of the length, then the bytes."""
        entry = self._entries.get(name)
        if entry is None or entry.dtype != STRING or entry.shape:
            return None
        try:
            size, at = varint(data := self._bytes(name, entry, checked=False), 0, entry.size)
        except WireError:
            size, at, data = -1, 0, b""
        if at + 4 + size != len(data):
            raise unreadable(self._path, f"{quoted(name)} is damaged", DAMAGED)
        return data[at + 4 :]

    def _index(self) -> bytes:
        file = self._prefix.with_name(f"{self._prefix.name}.index")
        try:
            if file.stat().st_size > MOST_INDEX:
                raise unreadable(self._path, f"{file.name} is larger than any index")
            return file.read_bytes()
        except FileNotFoundError:
            raise unreadable(
                self._path, f"the folder holds no variables/{file.name}", "Copy the whole folder"
            ) from None

    def _bytes(self, name: str, entry: Entry, *, checked: bool = True) -> bytes:
        file = self._prefix.with_name(self.file(name))
        try:
            with file.open("rb") as stream:
                if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > file.stat().st_size:
                    raise unreadable(self._path, f"{file.name} ends before {quoted(name)}", DAMAGED)
                stream.seek(entry.offset)
                data = stream.read(entry.size)
        except FileNotFoundError:
            raise unreadable(
                self._path, f"the folder holds no variables/{file.name}", "Copy the whole folder"
            ) from None
        if checked and masked(crc32c(data)) != entry.checksum:
            raise unreadable(self._path, f"{quoted(name)} in {file.name} fails its checksum", DAMAGED)
        return data


def _entry(value: bytes) -> Entry:
    message = Message(value)
    shape = tuple(size.integer(1) for size in message.inner(2).messages(2))
    return Entry(
        dtype=message.integer(1),
        shape=shape,
        shard=message.integer(3),
        offset=message.integer(4),
        size=message.integer(5),
        checksum=message.fixed32(6),
        sliced=bool(list(message.messages(7))),
    )


def _table(data: bytes, path: str) -> dict[bytes, bytes]:
    """Key and value of a whole sorted table."""
    if len(data) < FOOTER or data[-8:] != MAGIC:
        raise WireError("it does not end like a table")
    footer = memoryview(data)[-FOOTER:]
    _, at = varint(footer, 0, FOOTER)
    _, at = varint(footer, at, FOOTER)
    whole = memoryview(data)
    pairs: dict[bytes, bytes] = {}
    left = len(data)
    for handle in _block(whole, footer[at:], path).values():
        left -= _span(memoryview(handle))[1]
        if left < 0:
            raise WireError("its blocks overlap")
        pairs |= _block(whole, memoryview(handle), path)
    return pairs


def _block(data: memoryview, handle: memoryview, path: str) -> dict[bytes, bytes]:
    offset, size = _span(handle)
    if offset + size + TRAILER > len(data):
        raise WireError("a block lies outside the file")
    if data[offset + size] != 0:
        raise unreadable(path, "its index is compressed, which TensorFlow does not do", "Save the model again")
    if masked(crc32c(data[offset : offset + size + 1])) != int.from_bytes(data[offset + size + 1 :][:4], "little"):
        raise WireError("a block fails its checksum")
    return dict(_pairs(data[offset : offset + size]))


def _span(handle: memoryview) -> tuple[int, int]:
    offset, at = varint(handle, 0, len(handle))
    return offset, varint(handle, at, len(handle))[0]


def _pairs(block: memoryview) -> list[tuple[bytes, bytes]]:
    """The entries of a block: each key keeps the first ``shared`` bytes of the one before."""
    if len(block) < 4:
        raise WireError("a block is too short")
    end = len(block) - 4 * (1 + int.from_bytes(block[-4:], "little"))
    at, key, left = 0, b"", LONGEST_KEYS * len(block)
    pairs: list[tuple[bytes, bytes]] = []
    while at < end:
        shared, at = varint(block, at, end)
        own, at = varint(block, at, end)
        size, at = varint(block, at, end)
        left -= shared + own
        if shared > len(key) or at + own + size > end or left < 0:
            raise WireError("an entry lies outside its block")
        key = key[:shared] + bytes(block[at : at + own])
        pairs.append((key, bytes(block[at + own : at + own + size])))
        at += own + size
    return pairs


def _polynomial_table() -> tuple[int, ...]:
    table: list[int] = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


TABLE = _polynomial_table()


def crc32c(data: bytes | memoryview) -> int:
    """Castagnoli's checksum: of vectors and of indices, which are small; a loop in Python is fast enough for them."""
    value = 0xFFFFFFFF
    for byte in data:
        value = TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """As the format stores a checksum: a checksum of data that holds checksums would be weak."""
    return (((checksum >> 15) | (checksum << 17)) + MASK) & 0xFFFFFFFF
