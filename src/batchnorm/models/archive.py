"""Zip archives, read in place: nothing is extracted, and no claimed size is trusted."""

from __future__ import annotations

import io
import struct
import tempfile
import zipfile
from typing import IO, BinaryIO, cast

from .modelfile import quoted, unreadable

__all__ = ["Archive"]

MOST_TEXT = 256 << 20
FREE_EXPANSION = 256 << 20
MOST_RATIO = 20
IN_MEMORY = 32 << 20
CHUNK = 1 << 20
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
ENCRYPTED = 1


class Window(io.RawIOBase):
    """Part of a file as a file: a member that the archive stores without compression."""

    def __init__(self, stream: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self._stream = stream
        self._start = start
        self._size = size
        self._position = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, (0, self._position, self._size)[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        self._stream.seek(self._start + self._position)
        data = self._stream.read(left if size is None or size < 0 else min(size, left))
        self._position += len(data)
        return data


class Archive:
    """An open zip file whose members are read within limits.

    Parameters
    ----------
    stream : binary file
        The whole archive; stays open.
    path : str
        How messages call it.
    """

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self.path = path
        self._stream = stream
        try:
            self._zip = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, OverflowError) as error:
            raise unreadable(
                path, f"damaged zip archive ({quoted(str(error))[1:-1]})", "Save or download the file again"
            ) from None

    def names(self) -> tuple[str, ...]:
        """Names of the members."""
        return tuple(self._zip.namelist())

    def compressed(self) -> str | None:
        """The first member that is not stored as it is; None where all are."""
        return next((quoted(i.filename) for i in self._zip.infolist() if i.compress_type != zipfile.ZIP_STORED), None)

    def text(self, name: str) -> bytes:
        """A whole member, for those that are small by nature (JSON)."""
        info = self._checked(name)
        if info.file_size > MOST_TEXT:
            raise unreadable(self.path, f"{name} claims {info.file_size:,} bytes, more than any configuration needs")
        return self._guarded_read(info)

    def stream(self, name: str) -> tuple[IO[bytes], int]:
        """A seekable file over a member, and its size; nothing of a stored member is read before it is asked for."""
        info = self._checked(name)
        if info.compress_type == zipfile.ZIP_STORED:
            return cast("IO[bytes]", Window(self._stream, self._data_start(info), info.file_size)), info.file_size
        spool: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)
        self._guarded_copy(info, spool)
        return spool, info.file_size

    def _checked(self, name: str) -> zipfile.ZipInfo:
        try:
            info = self._zip.getinfo(name)
        except KeyError:
            raise unreadable(self.path, f"the zip archive holds no {name}") from None
        if info.flag_bits & ENCRYPTED:
            raise unreadable(
                self.path, f"{name} is encrypted", "Decrypt the archive first: no framework encrypts its models"
            )
        claimed, stored = info.file_size, info.compress_size
        if claimed > FREE_EXPANSION and claimed > MOST_RATIO * stored:
            raise unreadable(
                self.path, f"{name} claims to expand from {stored:,} to {claimed:,} bytes; weights do not: a zip bomb"
            )
        return info

    def _data_start(self, info: zipfile.ZipInfo) -> int:
        self._stream.seek(info.header_offset)
        raw = self._stream.read(LOCAL_HEADER.size)
        if len(raw) < LOCAL_HEADER.size or raw[:4] != b"PK\x03\x04":
            raise unreadable(self.path, f"the zip entry of {info.filename} is damaged", "Save the file again")
        fields = LOCAL_HEADER.unpack(raw)
        start = info.header_offset + LOCAL_HEADER.size + fields[-2] + fields[-1]
        if start + info.file_size > self._stream.seek(0, io.SEEK_END):
            raise unreadable(self.path, f"truncated inside {info.filename}", "Save or download the file again")
        return start

    def _guarded_read(self, info: zipfile.ZipInfo) -> bytes:
        target = io.BytesIO()
        self._guarded_copy(info, target)
        return target.getvalue()

    def _guarded_copy(self, info: zipfile.ZipInfo, target: IO[bytes]) -> None:
        # ZipExtFile stops at the claimed size, which was checked, and compares the checksum at the end.
        try:
            with self._zip.open(info) as member:
                while chunk := member.read(CHUNK):
                    target.write(chunk)
        except Exception as error:
            target.close()
            detail = quoted(f"{type(error).__name__}: {error}")[1:-1]
            raise unreadable(
                self.path, f"{info.filename} is damaged ({detail})", "Save or download the file again"
            ) from None
        target.seek(0)
