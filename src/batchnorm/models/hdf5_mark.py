"""An attribute more at the root of an HDF5 file, without the HDF5 library, which crashes on damage and full disks.

The header of the root group is written anew behind all else, with the attribute in it, and the superblock led there;
the old one stays behind unused. So it is with the layout that Keras writes (superblock 0 or 1, headers of version 1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from batchnorm.errors import require

from .modelfile import unreadable

__all__ = ["mark_hdf5"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SIZES = b"\x08\x08"  # bytes of an offset, and of a length
START = 24
"""Where the addresses of a superblock of version 0 begin: base, free space, end, driver, the root's name and header."""
NOTHING, ATTRIBUTE, CONTINUATION = 0x00, 0x0C, 0x10
PREFIX = struct.Struct("<BxHII4x")  # of a header: version, messages, references, bytes of messages
MESSAGE = struct.Struct("<HHB3x")  # type, bytes, flags
TEXT = 0x13  # a string of fixed length, encoded as version 1
MOST = 0xFFF8
"""Bytes of one message, in whole words."""
MOST_CHUNKS = 1 << 10


class Message(NamedTuple):
    """One message of an object's header."""

    kind: int
    flags: int
    data: bytes


def mark_hdf5(place: Path, name: str, text: str) -> None:
    """Set an attribute of the root group, in place.

    Raises
    ------
    ModelFileError
        The file is damaged.
    MissingExtra
        It is of a newer layout, and h5py is not installed.
    """
    with place.open("r+b") as stream:
        head = stream.read(START + 4 + 48)
        attribute = _attribute(name, text.encode("ascii"))
        if _is_classic(head) and len(attribute) <= MOST:
            _append(stream, str(place), head, name, attribute)
            return
    h5py: Any = require("h5py", "keras", "Marking an .h5 file of this layout as recalibrated")
    with h5py.File(place, "r+") as file:
        file.attrs[name] = text


def _is_classic(head: bytes) -> bool:
    """Whether addresses are as here: of eight bytes, from the first byte of the file on."""
    classic = len(head) == START + 4 + 48 and head.startswith(SIGNATURE) and head[8] in (0, 1) and head[13:15] == SIZES
    return classic and _addresses(head)[0] == 0


def _addresses(head: bytes) -> tuple[int, ...]:
    return struct.unpack_from("<6Q", head, _start(head))


def _start(head: bytes) -> int:
    return START + 4 * head[8]  # version 1 has four bytes more before them


def _append(stream: BinaryIO, path: str, head: bytes, name: str, attribute: bytes) -> None:
    try:
        references, messages = _header(stream, _addresses(head)[5])
    except (struct.error, ValueError) as error:
        raise unreadable(path, f"the header of its root group is damaged ({error})", "Save the model again") from None
    kept = [each for each in messages if not (each.kind == ATTRIBUTE and _name_of(each.data) == name.encode())]
    body = b"".join(
        MESSAGE.pack(each.kind, len(each.data), each.flags) + each.data
        for each in (*kept, Message(ATTRIBUTE, 0, attribute))
    )
    end = -(-stream.seek(0, 2) // 8) * 8
    stream.seek(end)
    stream.write(PREFIX.pack(1, len(kept) + 1, references, len(body)) + body)
    start = _start(head)
    for address, value in ((start + 16, stream.tell()), (start + 40, end)):
        stream.seek(address)
        stream.write(struct.pack("<Q", value))


def _header(stream: BinaryIO, address: int) -> tuple[int, list[Message]]:
    """How often an object is referred to, and the messages of its header."""
    most = stream.seek(0, 2)
    stream.seek(min(address, most))
    version, _, references, size = PREFIX.unpack(stream.read(PREFIX.size))
    if version != 1:
        raise ValueError(f"version {version}")
    chunks, found = [(address + PREFIX.size, size)], list[Message]()
    for start, length in chunks:  # grows on the way
        if start + length > most:
            raise ValueError("it is longer than the file")
        stream.seek(start)
        for message in _messages(stream.read(length)):
            if message.kind == CONTINUATION:
                chunks.append(struct.unpack_from("<QQ", message.data))
            elif message.kind != NOTHING:
                found.append(message)
        if len(chunks) > MOST_CHUNKS:
            raise ValueError("it goes on without end")
    return references, found


def _messages(chunk: bytes) -> Iterator[Message]:
    place = 0
    while place + MESSAGE.size <= len(chunk):
        kind, size, flags = MESSAGE.unpack_from(chunk, place)
        place += MESSAGE.size + size
        if place > len(chunk):
            raise ValueError("a message is longer than it")
        yield Message(kind, flags, chunk[place - size : place])


def _name_of(attribute: bytes) -> bytes:
    version, length = struct.unpack_from("<BxH", attribute)
    start = 9 if version == 3 else 8
    return attribute[start : start + length].rstrip(b"\0")


def _attribute(name: str, text: bytes) -> bytes:
    """A message of version 1: a scalar string."""
    datatype = struct.pack("<BBHI", TEXT, 0x01, 0, max(len(text), 1))  # padded with zeros, ASCII
    dataspace = bytes([1, 0, 0, 0, 0, 0, 0, 0])
    named = name.encode() + b"\0"
    head = struct.pack("<BxHHH", 1, len(named), len(datatype), len(dataspace))
    return _padded(head + _padded(named) + datatype + dataspace + (text or b"\0"))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
