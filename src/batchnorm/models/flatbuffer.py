"""FlatBuffers, read in place: tables, vectors and strings by the number of their field, every offset checked."""

from __future__ import annotations

import struct
from typing import Any

__all__ = ["FlatError", "Table", "root"]

MOST_ITEMS = 1 << 24
U16, I32, U32 = struct.Struct("<H"), struct.Struct("<i"), struct.Struct("<I")
Buffer = Any
"""bytes, or an mmap: what can be indexed and sliced."""


class FlatError(ValueError):
    """An offset leads out of the buffer, or a vector is longer than it."""


class Table:
    """A table at a place of a buffer; an absent field reads as its default."""

    __slots__ = ("_at", "_buffer", "_fields", "_size")

    def __init__(self, buffer: Buffer, at: int) -> None:
        self._buffer = buffer
        self._at = at
        self._fields = at - self._unpack(I32, at)
        self._size = self._unpack(U16, self._fields)

    def integer(self, number: int, kind: str = "<i", default: int = 0) -> int:
        """A number; ``kind`` is its format as `struct` spells it."""
        at = self._field(number)
        return default if at is None else int(self._unpack(struct.Struct(kind), at))

    def text(self, number: int) -> str:
        """A string; empty where absent."""
        start, count = self._vector(number, 1)
        return bytes(self._buffer[start : start + count]).decode("utf-8", "backslashreplace")

    def data(self, number: int) -> tuple[int, int]:
        """Where the bytes of a vector begin, and how many there are."""
        return self._vector(number, 1)

    def numbers(self, number: int, kind: str = "i") -> list[Any]:
        """A vector of numbers."""
        size = struct.calcsize(f"<{kind}")
        start, count = self._vector(number, size)
        return list(struct.unpack(f"<{count}{kind}", self._buffer[start : start + count * size]))

    def table(self, number: int) -> Table | None:
        """A table; None where absent."""
        at = self._field(number)
        return None if at is None else Table(self._buffer, at + self._unpack(U32, at))

    def tables(self, number: int) -> list[Table]:
        """A vector of tables."""
        start, count = self._vector(number, 4)
        places = range(start, start + 4 * count, 4)
        return [Table(self._buffer, place + self._unpack(U32, place)) for place in places]

    def _field(self, number: int) -> int | None:
        slot = 4 + 2 * number
        offset = self._unpack(U16, self._fields + slot) if slot + 2 <= self._size else 0
        return self._at + offset if offset else None

    def _vector(self, number: int, size: int) -> tuple[int, int]:
        at = self._field(number)
        if at is None:
            return 0, 0
        start = at + self._unpack(U32, at)
        count = self._unpack(U32, start)
        if count * size > len(self._buffer) - start - 4 or (size > 1 and count > MOST_ITEMS):
            raise FlatError(f"the vector at byte {start:,} claims {count:,} elements, more than the file holds")
        return start + 4, count

    def _unpack(self, kind: struct.Struct, at: int) -> int:
        if at < 0 or at + kind.size > len(self._buffer):
            raise FlatError(f"an offset leads to byte {at:,}, outside of the {len(self._buffer):,} of the file")
        return int(kind.unpack(self._buffer[at : at + kind.size])[0])


def root(buffer: Buffer) -> Table:
    """The outermost table."""
    if len(buffer) < 8:
        raise FlatError("it is shorter than any model")
    return Table(buffer, int(U32.unpack(buffer[:4])[0]))
