"""Which reader opens a file: decided by what the file holds, never by its name alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

from .archive import Archive
from .hdf5 import SIGNATURE
from .modelfile import ModelFile, quoted, unreadable
from .state_dict import Tensor

__all__ = ["FORMATS", "Format", "named_arrays", "open_model"]

HEAD = 4096
Takes = Literal["path", "stream", "trust"]


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
    """A format: how it is recognised, and the function ``module:name`` of this package that reads it, if one does.

    Beside the path it takes an open stream, or whether the caller trusts the file.
    """

    name: str
    recognises: Callable[[Found], bool]
    reader: str | None
    takes: Takes = "path"


def _is_zip(found: Found) -> bool:
    return found.head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def _is_hdf5(found: Found) -> bool:
    return any(found.head[at : at + len(SIGNATURE)] == SIGNATURE for at in (0, 512, 1024, 2048))


def _has_member(found: Found, *endings: str) -> bool:
    return any(f"/{name}".endswith(endings) for name in found.members)


def _is_exported(found: Found) -> bool:
    return _has_member(found, "/archive_format", "/models/model.json", "/serialized_exported_program.json")


def _is_script(found: Found) -> bool:
    return _has_member(found, "/constants.pkl") and any("/code/" in name for name in found.members)


def _is_torch_zip(found: Found) -> bool:
    return _has_member(found, "/data.pkl")


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
    Format("PyTorch program", _is_exported, "pt2_file:read", "stream"),
    Format("TorchScript", _is_script, "torch_file:read_script", "trust"),
    Format("PyTorch", _is_torch_zip, "torch_file:read_zip"),
    Format("Keras", _is_zip, "keras_file:read_zip", "stream"),
    Format("HDF5", _is_hdf5, "hdf5_model:read", "stream"),
    Format("safetensors index", _is_safetensors_index, "safetensors:read_index"),
    Format("sharded Keras weights", lambda found: found.head.lstrip()[:1] == b"{", "keras_file:read_shards"),
    Format("safetensors", _is_safetensors, "safetensors:read"),
    Format("older PyTorch", _is_pickle, "torch_file:read_pickle"),
    Format("TensorFlow Lite", lambda found: found.head[4:8] == b"TFL3", "tflite:read"),
    Format("ONNX", _is_onnx, "onnx_file:read"),
)
# Those that are named arrays and nothing else, and what gives them all.
ARRAYS = {
    "safetensors": "safetensors:named_arrays",
    "safetensors index": "safetensors:arrays_of_shards",
    "PyTorch": "torch_file:arrays_of_zip",
    "older PyTorch": "torch_file:arrays_of_pickle",
}
READ = (
    "a .keras file or its unzipped folder, .weights.h5, .weights.json, .h5, .hdf5, .onnx, .pt2, .pt, .pth, .ckpt, "
    ".bin, .safetensors, .tflite or a SavedModel folder"
)


def open_model(path: str | os.PathLike[str], *, epsilon: float | None = None, trust: bool = False) -> ModelFile:
    """Read the batch normalizations of a model file; nothing of the file is executed, unless it is trusted.

    Parameters
    ----------
    path : path
        A file, or the folder of an unzipped ``.keras``. What it holds decides how it is read; its name does not.
    epsilon : float or None
        The epsilon of layers for which the file holds none.
    trust : bool
        Read TorchScript archives too, whose loader runs code of the file. No other format needs it.

    Returns
    -------
    ModelFile
        With no layers where the model has no batch normalization.

    Raises
    ------
    ModelFileError
        It cannot be read as a model. One line: the path, the reason, the way out.
    MissingExtra
        A checkpoint of PyTorch, and PyTorch is not installed.

    Examples
    --------
    >>> model = open_model("model.keras")  # doctest: +SKIP
    >>> [layer.name for layer in model.layers]  # doctest: +SKIP
    ['stem/bn', 'head/bn']
    """
    shown = os.fspath(path)
    try:
        model = _read(shown, trust)
    except (OSError, RecursionError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise unreadable(shown, f"cannot be read ({reason})") from None
    if epsilon is None:
        return model
    return replace(model, layers=tuple(record.with_epsilon(epsilon) for record in model.layers))


def named_arrays(path: str) -> list[Mapping[str, Tensor]]:
    """Every state dict of a ``.safetensors`` file or checkpoint; its arrays are read when they are asked for.

    Raises
    ------
    ModelFileError
        It cannot be read, or holds no state dict.
    """
    place = Path(path)
    if not place.is_file():
        raise unreadable(path, "no such file", "Give a state dict")
    found = _found(place, path)
    known = next((each.name for each in FORMATS if each.recognises(found)), None)
    if known not in ARRAYS:
        raise unreadable(path, f"{known or 'it'} is no state dict", "Give a .safetensors file or a checkpoint of torch")
    module, _, function = ARRAYS[known].partition(":")
    held: list[Mapping[str, Tensor]] = getattr(import_module(f".{module}", __package__), function)(path)
    return held


def _read(path: str, trust: bool) -> ModelFile:
    place = Path(path)
    if place.is_dir():
        found = Found(place, names=frozenset(os.listdir(place)))
        return _reader(path, found)[0](path)
    if not place.exists():
        raise unreadable(path, "no such file", f"Give {READ}")
    found = _found(place, path)
    with place.open("rb") as stream:
        read, takes = _reader(path, found)
        if takes == "stream":
            return read(path, stream)
    return read(path, trust=trust) if takes == "trust" else read(path)


def _found(place: Path, path: str) -> Found:
    with place.open("rb") as stream:
        found = Found(place, head=stream.read(HEAD))
        return replace(found, members=Archive(stream, path).names()) if _is_zip(found) else found


def _reader(path: str, found: Found) -> tuple[Callable[..., ModelFile], Takes]:
    for known in FORMATS:
        if known.recognises(found):
            if known.reader is None:
                raise unreadable(path, f"{known.name} files are not read", f"Give {READ}")
            module, _, function = known.reader.partition(":")
            reader: Callable[..., ModelFile] = getattr(import_module(f".{module}", __package__), function)
            return reader, known.takes
    raise _unknown(path, found)


def _unknown(path: str, found: Found) -> Exception:
    if found.names or found.path.is_dir():
        inside = ", ".join(quoted(name) for name in sorted(found.names)[:5]) or "nothing"
        return unreadable(path, f"a folder that holds no model, only {inside}", "An unzipped .keras holds config.json")
    if not found.head:
        return unreadable(path, "the file is empty", "Save or download it again")
    return unreadable(path, f"no known format (it begins with {quoted(found.head[:8])})", f"Give {READ}")
