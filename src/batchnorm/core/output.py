"""A file that is either written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from batchnorm.errors import ArgumentError

__all__ = ["check", "replacing"]


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], *, source: str | os.PathLike[str] | None = None, force: bool = False
) -> Generator[Path]:
    """A temporary path beside ``path``, which gets its name when the block ends, and is removed when it fails.

    Parameters
    ----------
    path : path
        What is to be written, a file or a folder.
    source : path, optional
        What it was made from, which is never overwritten.
    force : bool
        Replace what is there.

    Raises
    ------
    ArgumentError
        It is the source; it exists and ``force`` is not given; its folder cannot be written, or is full.
    """
    check(path, source=source, force=force)
    place = Path(path)
    # The ending stays, as some writers choose by it.
    temporary = place.with_name(f".{place.stem}.{os.getpid()}.part{place.suffix}")
    try:
        yield temporary
        _put(temporary, place)
    except OSError as error:
        raise ArgumentError(f"-o: cannot write {place} ({error.strerror or error}).") from error
    finally:
        _remove(temporary)


def check(path: str | os.PathLike[str], *, source: str | os.PathLike[str] | None = None, force: bool = False) -> None:
    """Refuse what `replacing` would refuse, before any work is done for it.

    Raises
    ------
    ArgumentError
        It is the source; it exists and ``force`` is not given; its folder is not there or cannot be written.
    """
    place = Path(path)
    if source is not None and place.exists() and Path(source).exists() and place.samefile(source):
        raise ArgumentError(f"-o: {place} is the input, which is never overwritten; give another path.")
    if place.exists() and not force:
        raise ArgumentError(f"-o: {place} exists; pass --force to replace it.")
    folder = place.parent
    if not folder.is_dir():
        raise ArgumentError(f"-o: cannot write {place} (No such file or directory: {folder}).")
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"-o: cannot write {place} (the folder {folder} is not writable).")


def _put(temporary: Path, place: Path) -> None:
    if place.is_dir():  # a folder cannot be replaced in one step
        _remove(place)
    temporary.replace(place)


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
