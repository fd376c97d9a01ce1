"""Protocol buffers, read from their wire format: fields by number, and nothing that was not asked for.

A model file of gigabytes is mostly raw arrays; here a message is a span of the file, and an array that nobody asks for
is never touched. The pure-Python decoder also bounds what a damaged file can do: every field read is counted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Message", "WireError", "varint"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MOST_FIELDS = 2_000_000
FLOAT32, FLOAT64 = struct.Struct("<f"), struct.Struct("<d")
Span = tuple[int, int]
Buffer = Any
"""bytes, or an mmap: what can be indexed and sliced."""


class WireError(ValueError):
    """The bytes are no protocol buffer."""


class Message:
    """A message: one or, where the writer split it, several spans of a buffer.

    Every accessor takes a field's number. A field of another wire type than the accessor's is unknown, as the format
    demands, and so counts as absent; of a repeated scalar the last one holds.
    """

    __slots__ = ("_budget", "_buffer", "_fields", "spans")

    def __init__(self, buffer: Buffer, spans: tuple[Span, ...] | None = None, budget: list[int] | None = None) -> None:
        self._buffer = buffer
        self.spans = ((0, len(buffer)),) if spans is None else spans
        self._budget = [MOST_FIELDS] if budget is None else budget
        self._fields: dict[int, list[tuple[int, Any]]] | None = None

    def integer(self, number: int, default: int = 0) -> int:
        """A signed 64-bit number, or an enum."""
        found = self._of(number, VARINT)
        return _signed(found[-1]) if found else default

    def integers(self, number: int) -> list[int]:
        """A repeated one, packed or not."""
        numbers: list[int] = []
        for kind, value in self._all().get(number, ()):
            if kind == VARINT:
                numbers.append(_signed(value))
            elif kind == BYTES:
                numbers.extend(self._packed(value))
        return numbers

    def float32(self, number: int) -> float | None:
        """A 32-bit float; None where absent."""
        found = self._of(number, FIXED32)
        return float(FLOAT32.unpack(found[-1])[0]) if found else None

    def fixed32(self, number: int) -> int:
        """An unsigned number of four bytes; 0 where absent."""
        found = self._of(number, FIXED32)
        return int.from_bytes(found[-1], "little") if found else 0

    def floats(self, number: int, dtype: str) -> NDArray[Any]:
        """A repeated 32- or 64-bit float (``"<f4"``, ``"<f8"``), packed or not."""
        size = np.dtype(dtype).itemsize
        parts: list[bytes] = []
        for kind, value in self._all().get(number, ()):
            if kind == (FIXED32 if size == 4 else FIXED64):
                parts.append(value)
            elif kind == BYTES and (value[1] - value[0]) % size == 0:
                parts.append(bytes(self._buffer[value[0] : value[1]]))
        return np.frombuffer(b"".join(parts), dtype)

    def span(self, number: int) -> Span | None:
        """Where the bytes of a field lie; None where absent."""
        found = self._of(number, BYTES)
        return found[-1] if found else None

    def data(self, span: Span) -> bytes:
        """The bytes of a span."""
        return bytes(self._buffer[span[0] : span[1]])

    def content(self, number: int) -> bytes:
        """The bytes of a field; none where absent."""
        span = self.span(number)
        return b"" if span is None else self.data(span)

    def text(self, number: int) -> str:
        """A string; empty where absent."""
        span = self.span(number)
        return "" if span is None else self.data(span).decode("utf-8", "backslashreplace")

    def texts(self, number: int) -> list[str]:
        """A repeated string."""
        return [self.data(span).decode("utf-8", "backslashreplace") for span in self._of(number, BYTES)]

    def message(self, number: int) -> Message | None:
        """A message; None where absent. Several of them are one that was split."""
        found = self._of(number, BYTES)
        return Message(self._buffer, tuple(found), self._budget) if found else None

    def inner(self, number: int) -> Message:
        """A message; an empty one where absent, as the format defines it."""
        return self.message(number) or Message(b"")

    def messages(self, number: int) -> Iterator[Message]:
        """A repeated message."""
        for span in self._of(number, BYTES):
            yield Message(self._buffer, (span,), self._budget)

    def map(self, number: int) -> Iterator[tuple[str, Message]]:
        """A repeated message of a key (1) and a message (2)."""
        return ((entry.text(1), entry.inner(2)) for entry in self.messages(number))

    def pairs(self, number: int) -> dict[str, str]:
        """A repeated message of a key (1) and a value (2)."""
        return {entry.text(1): entry.text(2) for entry in self.messages(number)}

    def _of(self, number: int, kind: int) -> list[Any]:
        return [value for found, value in self._all().get(number, ()) if found == kind]

    def _all(self) -> dict[int, list[tuple[int, Any]]]:
        if self._fields is None:
            fields: dict[int, list[tuple[int, Any]]] = {}
            for start, end in self.spans:
                self._read(start, end, fields)
            self._fields = fields
        return self._fields

    def _read(self, at: int, end: int, fields: dict[int, list[tuple[int, Any]]]) -> None:
        buffer = self._buffer
        most = self._budget[0]
        count = 0
        while at < end:
            count += 1
            if count > most:
                raise WireError(f"it has more than {MOST_FIELDS:,} fields")
            key, at = buffer[at], at + 1
            if key > 127:
                key, at = varint(buffer, at - 1, end)
            kind, value = key & 7, None
            if kind == VARINT:
                value, at = varint(buffer, at, end)
            elif kind == BYTES:
                length = buffer[at] if at < end else 128
                if length > 127:
                    length, at = varint(buffer, at, end)
                else:
                    at += 1
                value, at = (at, at + length), at + length
            elif kind in (FIXED32, FIXED64):
                length = 4 if kind == FIXED32 else 8
                value, at = buffer[at : at + length], at + length
            if value is None or key >> 3 == 0:
                raise WireError(f"byte {at:,} begins no field")
            if at > end:
                raise WireError(f"a field ends at byte {at:,}, behind the {end:,} of what holds it: truncated")
            fields.setdefault(key >> 3, []).append((kind, value))
        self._budget[0] -= count

    def _packed(self, span: Span) -> Iterator[int]:
        at, end = span
        self._budget[0] -= end - at
        if self._budget[0] < 0:
            raise WireError("its lists of numbers are longer than any graph needs")
        while at < end:
            value, at = varint(self._buffer, at, end)
            yield _signed(value)


def varint(buffer: Buffer, at: int, end: int) -> tuple[int, int]:
    """The unsigned number that begins at a place, and the place after it."""
    shift = value = 0
    while at < end and shift < 70:
        byte = buffer[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise WireError(f"byte {at:,} ends no number")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
