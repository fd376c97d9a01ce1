"""Writing statistics into copies of files: the bytes of the arrays are replaced where they lie, and nothing else."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

__all__ = ["Patch", "copied", "patched", "rewritten_zip"]

CHUNK = 1 << 20
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


def rewritten_zip(source: str | os.PathLike[str], target: Path, members: Mapping[str, list[Patch]]) -> None:
    """A copy of a zip archive: the named members patched, every other as it is, in the same order and compression."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", allowZip64=True) as new:
        new.comment = old.comment
        for info in old.infolist():
            with old.open(info) as stream, new.open(_like(info), "w", force_zip64=info.file_size >= 1 << 31) as to:
                if info.filename in members:
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
