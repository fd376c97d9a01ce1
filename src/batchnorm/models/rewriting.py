"""Copies of zip archives in which some members are other bytes, and all the rest is as it was."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["rewritten"]

CHUNK = 1 << 20
KEPT = ("compress_type", "comment", "create_system", "external_attr", "internal_attr")
LARGE = 1 << 31


def rewritten(source: str, target: Path, members: Mapping[str, bytes]) -> None:
    """Write a copy of an archive.

    Parameters
    ----------
    source : str
        The archive.
    target : Path
        Where the copy is written.
    members : mapping of str to bytes
        What takes the place of the members of these names, or is added behind all others.
    """
    left = dict(members)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", allowZip64=True) as new:
        new.comment = old.comment
        for info in old.infolist():
            if info.filename in left:
                new.writestr(_like(info), left.pop(info.filename))
                continue
            with old.open(info) as stream, new.open(_like(info), "w", force_zip64=info.file_size >= LARGE) as to:
                shutil.copyfileobj(stream, to, CHUNK)
        for name, data in left.items():
            new.writestr(name, data)


def _like(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(info.filename, info.date_time)
    for name in KEPT:
        setattr(made, name, getattr(info, name))
    return made
