"""Statistics into a copy of an HDF5 file, alone or inside a ``.keras``: their bytes change, and no others."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from batchnorm.core.record import LayerRecord
from batchnorm.errors import Refused

from .hdf5 import Dataset, Group, Hdf5File
from .modelfile import Pairs, rounded
from .patching import Patch, copied, patched, patched_zip

__all__ = ["Hdf5Writer", "Wheres"]

Wheres = list[tuple[str, ...]]
"""Paths in the file of the moving mean, the moving variance and, where there is one, the share of the initial value."""
WEIGHTS = "model.weights.h5"


@dataclass(frozen=True, slots=True, eq=False)
class Hdf5Writer:
    """Writes a copy of the file, or folder, at ``path``; ``places`` belong to ``records`` one by one."""

    path: str
    records: Sequence[LayerRecord]
    places: Sequence[Wheres]

    def __call__(self, target: Path, statistics: Pairs) -> None:
        """See `ModelFile.writer`.

        Raises
        ------
        Refused
            The statistics are compressed or chunked in the file, or lie in several files.
        """
        place = Path(self.path)
        if place.is_dir():
            shutil.copytree(place, target)
            with (target / WEIGHTS).open("r+b") as stream:
                patched(stream, self._patches(stream, statistics))
        elif zipfile.is_zipfile(place):
            with zipfile.ZipFile(place) as archive, archive.open(WEIGHTS) as member:
                patches = self._patches(io.BytesIO(member.read()), statistics)
            patched_zip(place, target, {WEIGHTS: patches})
        else:
            with place.open("rb") as stream:
                patches = self._patches(stream, statistics)
            copied(place, target, patches)

    def _patches(self, stream: BinaryIO, statistics: Pairs) -> list[Patch]:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        root = Hdf5File(stream, size, self.path).root
        found: list[Patch] = []
        for record, wheres in zip(self.records, self.places, strict=True):
            if record.name not in statistics:
                continue
            values = (*statistics[record.name], np.zeros(record.channels))
            for where, value in zip(wheres, values, strict=False):
                found.append(_patch(root, where, record, value))
        return found


def _patch(root: Group, where: tuple[str, ...], record: LayerRecord, value: object) -> Patch:
    dataset = root.find(where)
    place = dataset.place() if isinstance(dataset, Dataset) else None
    if place is None:
        raise Refused(
            f"{record.name}: its statistics are compressed or chunked in the file, and cannot be replaced where they "
            "lie. Save the model with Keras, which stores them plainly."
        )
    narrow = rounded(record, value)
    stored = np.dtype(place.dtype)
    if stored.itemsize != narrow.itemsize:
        raise Refused(f"{record.name}: the file stores its statistics as {stored}, not {narrow.dtype}.")
    data = narrow.tobytes() if stored.kind != "f" else narrow.astype(stored).tobytes()
    return place.start, data
