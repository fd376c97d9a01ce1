"""Writing statistics into copies of files: the bytes of the arrays are replaced where they lie, and nothing else."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

__all__ = ["Patch", "copied", "data_start", "patched", "patched_zip", "with_member", "with_other_member"]

CHUNK = 1 << 20
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
CENTRAL_ENTRY = struct.Struct("<4s6H3I5H2I")
DESCRIPTOR = 8
"""Flag of a member whose checksum lies behind its bytes."""
Patch = tuple[int, bytes]
"""Where bytes begin, and what is written there."""


def copied(source: str | os.PathLike[str], target: Path, patches: list[Patch]) -> None:
    """A copy of a file with patches."""
    shutil.copyfile(source, target)
    with target.open("r+b") as stream:
        patched(stream, patches)


def patched(stream: IO[bytes], patches: list[Patch]) -> None:
    """Write patches into an open file."""
    for start, data in patches:
        stream.seek(start)
        stream.write(data)


def patched_zip(source: str | os.PathLike[str], target: Path, members: Mapping[str, list[Patch]]) -> None:
    """A copy of a zip archive with patches in the named members: nothing else changes but their checksums.

    Members that are compressed are written anew, with the rest of the archive as it is.
    """
    with zipfile.ZipFile(source) as archive:
        infos = {info.filename: (number, info) for number, info in enumerate(archive.infolist())}
        entries = _entries(source, archive)
    if any(infos[name][1].compress_type != zipfile.ZIP_STORED for name in members):
        _rewritten(source, target, members)
        return
    shutil.copyfile(source, target)
    with target.open("r+b") as stream:
        for name, patches in members.items():
            number, info = infos[name]
            start = data_start(stream, info)
            patched(stream, [(start + at, data) for at, data in patches])
            _put_checksum(stream, info, start, entries[number])


def with_member(place: Path, name: str, data: bytes) -> None:
    """Add a member to a zip archive, behind all others; one of that name is replaced."""
    with zipfile.ZipFile(place) as archive:
        there = name in archive.namelist()
    if there:
        with_other_member(place, name, data)
        return
    with zipfile.ZipFile(place, "a", allowZip64=True) as archive:
        archive.writestr(zipfile.ZipInfo(name), data)  # of 1980: the same statistics give the same bytes


def with_other_member(place: Path, name: str, data: bytes) -> None:
    """Replace a member of a zip archive by one of another length: the archive is written anew beside itself."""
    new = place.with_name(f"{place.name}.new")
    try:
        _rewritten(place, new, {}, {name: data})
        os.replace(new, place)
    finally:
        new.unlink(missing_ok=True)


def data_start(stream: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin in the archive."""
    stream.seek(info.header_offset)
    header = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
    return info.header_offset + LOCAL_HEADER.size + header[-2] + header[-1]


def _entries(source: str | os.PathLike[str], archive: zipfile.ZipFile) -> list[int]:
    """Where each member's entry in the central directory begins, in the order of ``infolist``."""
    found: list[int] = []
    place = int(archive.start_dir)  # type: ignore[attr-defined]
    with open(source, "rb") as stream:
        for _ in archive.infolist():
            found.append(place)
            stream.seek(place)
            entry = CENTRAL_ENTRY.unpack(stream.read(CENTRAL_ENTRY.size))
            place += CENTRAL_ENTRY.size + sum(entry[10:13])
    return found


def _put_checksum(stream: IO[bytes], info: zipfile.ZipInfo, start: int, entry: int) -> None:
    stream.seek(start)
    checksum, left = 0, info.file_size
    while left:
        chunk = stream.read(min(CHUNK, left))
        checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
    packed = checksum.to_bytes(4, "little")
    patches = [(entry + 16, packed)]
    if info.flag_bits & DESCRIPTOR:
        stream.seek(start + info.file_size)
        signed = stream.read(4) == b"PK\x07\x08"
        patches.append((start + info.file_size + (4 if signed else 0), packed))
    else:
        patches.append((info.header_offset + 14, packed))
    patched(stream, patches)


def _rewritten(
    source: str | os.PathLike[str],
    target: Path,
    members: Mapping[str, list[Patch]],
    others: Mapping[str, bytes] | None = None,
) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", allowZip64=True) as new:
        new.comment = old.comment
        for info in old.infolist():
            with old.open(info) as stream, new.open(_like(info), "w", force_zip64=info.file_size >= 1 << 31) as to:
                if others is not None and info.filename in others:
                    to.write(others[info.filename])
                elif info.filename in members:
                    whole = io.BytesIO(stream.read())
                    patched(whole, members[info.filename])
                    to.write(whole.getbuffer())
                else:
                    shutil.copyfileobj(stream, to, CHUNK)


def _like(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(info.filename, info.date_time)
    for name in ("compress_type", "comment", "extra", "create_system", "external_attr", "internal_attr"):
        setattr(made, name, getattr(info, name))
    return made
