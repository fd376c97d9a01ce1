"""An HDF5 file of either layout: Keras' older formats, or the numbered variables of Keras 3 weights."""

from __future__ import annotations

import os
from typing import BinaryIO

from .hdf5 import Group, Hdf5File
from .keras_file import read_weights
from .keras_legacy import is_legacy, read_legacy
from .modelfile import ModelFile, quoted, unreadable

__all__ = ["read"]

LAYOUT = ("layers", "vars", "optimizer", "_layer_checkpoint_dependencies")


def read(path: str, stream: BinaryIO) -> ModelFile:
    """The model, or the weights, of an HDF5 file."""
    root = Hdf5File(stream, os.fstat(stream.fileno()).st_size, path).root
    if is_legacy(root):
        return read_legacy(path, root)
    if not _has_variables(root):
        found = ", ".join(quoted(name) for name in root.names()[:5]) or "nothing"
        raise unreadable(path, f"an HDF5 file of no Keras layout (it holds {found})", "Save the model with Keras")
    return read_weights(path, root)


def _has_variables(root: Group, depth: int = 0) -> bool:
    """Whether some group has ``vars``; the shallow ones tell."""
    names = root.names()
    if any(name in LAYOUT for name in names):
        return True
    groups = (member for name in names if isinstance(member := root.get(name), Group))
    return depth < 4 and any(_has_variables(group, depth + 1) for group in groups)
