"""A file that is either written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Generator, Iterable
from pathlib import Path

from batchnorm.errors import ArgumentError

__all__ = ["check", "check_is_no_input", "check_same_format", "replacing"]

Place = str | os.PathLike[str]
FORMATS = (
    (".keras",), (".h5", ".hdf5"), (".onnx",), (".pt2",), (".pt", ".pth", ".ckpt", ".bin"), (".safetensors",),
    (".tflite",),
)  # fmt: skip


@contextlib.contextmanager
def replacing(path: Place, *, source: Place | None = None, force: bool = False, option: str = "-o") -> Generator[Path]:
    """A temporary path beside ``path``, which gets its name when the block ends, and is removed when it fails.

    Parameters
    ----------
    path : path
        What is to be written, a file or a folder.
    source : path, optional
        What it was made from, which is never overwritten.
    force : bool
        Replace what is there.
    option : str
        What a user gave the path with; it begins the messages.

    Raises
    ------
    ArgumentError
        It is the source, a folder or a device; it exists and ``force`` is not given; its folder cannot be written, or
        is full.
    """
    check(path, source=source, force=force, option=option)
    place = Path(path)
    # The ending stays, as some writers choose by it.
    temporary = place.with_name(f".{place.stem}.{os.getpid()}.part{place.suffix}")
    try:
        yield temporary
        temporary.replace(place)
    except OSError as error:
        raise ArgumentError(f"{option}: cannot write {place} ({error.strerror or error}).") from error
    finally:
        _remove(temporary)


def check(path: Place, *, source: Place | None = None, force: bool = False, option: str = "-o") -> None:
    """Refuse what `replacing` would refuse, before any work is done for it; ``option`` begins the message.

    Raises
    ------
    ArgumentError
        It is the source, a folder or a device; it exists and ``force`` is not given; its folder is not there or
        cannot be written.
    """
    place = Path(path)
    check_is_no_input(place, () if source is None else (source,))
    if place.is_dir():
        raise ArgumentError(f"{option}: {place} is a folder, which is never replaced; give a name that is not there.")
    if place.exists() and not place.is_file():
        raise ArgumentError(f"{option}: {place} is a device or pipe, which is never replaced; give the name of a file.")
    if place.exists() and not force:
        raise ArgumentError(f"{option}: {place} exists; pass --force to replace it.")
    folder = place.parent
    if not folder.is_dir():
        raise ArgumentError(f"{option}: cannot write {place} (No such file or directory: {folder}).")
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"{option}: cannot write {place} (the folder {folder} is not writable).")


def check_is_no_input(path: Place, sources: Iterable[Place]) -> None:
    """Refuse to write over what is read, whatever name or link leads there.

    Raises
    ------
    ArgumentError
        The path is one of the sources.
    """
    place = Path(path)
    for source in sources if place.exists() else ():
        if Path(source).exists() and place.samefile(source):
            raise ArgumentError(f"-o: {place} is the input, which is never overwritten; give another path.")


def check_same_format(path: Place, source: Place, option: str = "-o") -> None:
    """Refuse a name that says another format than that of the source, of which a changed copy is written.

    Raises
    ------
    ArgumentError
        The endings are those of two formats.
    """
    given, own = (_family(each) for each in (path, source))
    if given and own and given != own:
        raise ArgumentError(f"{option}: {os.fspath(path)} must end in {' or '.join(own)}, as the model does.")


def _family(path: Place) -> tuple[str, ...]:
    """The endings of the format that a name tells; none where it tells none."""
    name = os.fspath(path).lower()
    return next((each for each in FORMATS if name.endswith(each)), ())


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
