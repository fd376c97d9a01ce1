"""Which reader opens a file: decided by what the file holds, never by its name alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from .archive import Archive
from .hdf5 import SIGNATURE
from .modelfile import ModelFile, quoted, unreadable

__all__ = ["FORMATS", "Format", "open_model"]

HEAD = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a path before a reader is chosen: its first bytes, the names in a folder or zip."""

    path: Path
    head: bytes = b""
    names: frozenset[str] = frozenset()
    members: tuple[str, ...] = ()

    def has(self, *endings: str) -> bool:
        """Whether the name of the file ends so."""
        return self.path.name.lower().endswith(endings)


@dataclass(frozen=True, slots=True)
class Format:
    """A format: how it is recognised, and the function ``module:name`` of this package that reads it, if one does."""

    name: str
    recognises: Callable[[Found], bool]
    reader: str | None


def _is_zip(found: Found) -> bool:
    return found.head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def _is_hdf5(found: Found) -> bool:
    return any(found.head[at : at + len(SIGNATURE)] == SIGNATURE for at in (0, 512, 1024, 2048))


def _has_member(found: Found, *endings: str) -> bool:
    return any(f"/{name}".endswith(endings) for name in found.members)


def _is_exported(found: Found) -> bool:
    return _has_member(found, "/archive_format", "/models/model.json", "/serialized_exported_program.json")


def _is_torch_zip(found: Found) -> bool:
    return _has_member(found, "/data.pkl", "/constants.pkl")


def _is_safetensors(found: Found) -> bool:
    return found.head[8:9] == b"{" and int.from_bytes(found.head[:8], "little") < 1 << 40


def _is_safetensors_index(found: Found) -> bool:
    return found.head.lstrip()[:1] == b"{" and b'.safetensors"' in found.head and b"weight_map" in found.head


def _is_pickle(found: Found) -> bool:
    return found.head[:1] == b"\x80" and found.head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _is_onnx(found: Found) -> bool:
    return found.has(".onnx") or (found.head[:1] == b"\x08" and b"onnx" in found.head[:64].lower())


# The first that recognises a path reads it. A reader of None is a format that is known and not read.
FORMATS = (
    Format("Keras folder", lambda found: "config.json" in found.names, "keras_file:read_folder"),
    Format("SavedModel", lambda found: "saved_model.pb" in found.names, "saved_model:read_folder"),
    Format("PyTorch program", _is_exported, "pt2_file:read"),
    Format("PyTorch", _is_torch_zip, None),
    Format("Keras", _is_zip, "keras_file:read_zip"),
    Format("HDF5", _is_hdf5, "hdf5_model:read"),
    Format("safetensors", _is_safetensors_index, "safetensors:read_index"),
    Format("sharded Keras weights", lambda found: found.head.lstrip()[:1] == b"{", "keras_file:read_shards"),
    Format("safetensors", _is_safetensors, "safetensors:read"),
    Format("PyTorch", _is_pickle, None),
    Format("TensorFlow Lite", lambda found: found.head[4:8] == b"TFL3", "tflite:read"),
    Format("ONNX", _is_onnx, "onnx_file:read"),
)
READ = (
    "a .keras file or its unzipped folder, .weights.h5, .weights.json, .h5, .hdf5, .onnx, .pt2, .safetensors, .tflite "
    "or a SavedModel folder"
)


def open_model(path: str | os.PathLike[str], *, epsilon: float | None = None) -> ModelFile:
    """Read the batch normalizations of a model file; nothing of the file is executed.

    Parameters
    ----------
    path : path
        A file, or the folder of an unzipped ``.keras``. What it holds decides how it is read; its name does not.
    epsilon : float or None
        The epsilon of layers for which the file holds none.

    Returns
    -------
    ModelFile
        With no layers where the model has no batch normalization.

    Raises
    ------
    ModelFileError
        It cannot be read as a model. One line: the path, the reason, the way out.

    Examples
    --------
    >>> model = open_model("model.keras")  # doctest: +SKIP
    >>> [layer.name for layer in model.layers]  # doctest: +SKIP
    ['stem/bn', 'head/bn']
    """
    shown = os.fspath(path)
    try:
        model = _read(shown)
    except (OSError, RecursionError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise unreadable(shown, f"cannot be read ({reason})") from None
    if epsilon is None:
        return model
    return replace(model, layers=tuple(record.with_epsilon(epsilon) for record in model.layers))


def _read(path: str) -> ModelFile:
    place = Path(path)
    if place.is_dir():
        found = Found(place, names=frozenset(os.listdir(place)))
        return _reader(path, found)(path)
    if not place.exists():
        raise unreadable(path, "no such file", f"Give {READ}")
    with place.open("rb") as stream:
        found = Found(place, head=stream.read(HEAD))
        if _is_zip(found):
            found = replace(found, members=Archive(stream, path).names())
        read = _reader(path, found)
        takes_stream = _is_zip(found) or _is_hdf5(found)
        return read(path, stream) if takes_stream else read(path)


def _reader(path: str, found: Found) -> Callable[..., ModelFile]:
    for known in FORMATS:
        if known.recognises(found):
            if known.reader is None:
                raise unreadable(path, f"{known.name} files are not read", f"Give {READ}")
            module, _, function = known.reader.partition(":")
            reader: Callable[..., ModelFile] = getattr(import_module(f".{module}", __package__), function)
            return reader
    raise _unknown(path, found)


def _unknown(path: str, found: Found) -> Exception:
    if found.names or found.path.is_dir():
        inside = ", ".join(quoted(name) for name in sorted(found.names)[:5]) or "nothing"
        return unreadable(path, f"a folder that holds no model, only {inside}", "An unzipped .keras holds config.json")
    if not found.head:
        return unreadable(path, "the file is empty", "Save or download it again")
    return unreadable(path, f"no known format (it begins with {quoted(found.head[:8])})", f"Give {READ}")
