"""What is fed to each layer: the model's own activations, values given, numbers drawn, or what was saved before.

Every source yields one batch of one layer after another, so that memory does not grow with the number of samples.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.analysis.arrange import arrange
from batchnorm.core.protocols import Model
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, UnknownLayer

from .batches import Batches
from .padding import Apart

__all__ = ["Fed", "Saver", "batches", "captured", "drawn", "given", "in_order", "loaded", "table"]

Array = NDArray[Any]
NAMES = "layers"


@dataclass(frozen=True, slots=True, eq=False)
class Fed:
    """One batch of one layer.

    ``x`` has rank 2 or more and its channels on ``axis``; ``y`` is what the model itself made of it, in the same
    layout, or None where the model did not run.
    """

    record: LayerRecord
    x: Array
    axis: int
    y: Array | None = None


def batches(data: Any, size: int, run: Callable[[Any], Any]) -> Iterator[Any]:
    """The data in batches: an array or a dict of arrays is cut along axis 0, any other iterable yields its own.

    ``mask`` and ``lengths`` that ``run`` does not take are left out: padding is computed like any other position.

    Raises
    ------
    ArgumentError
        Nothing to iterate, no batch, no real numbers, or arrays of a dict that differ in length.
    """
    apart = Apart(run, "verify")
    return (apart(batch).inputs for batch in Batches(data, size, who="verify", nonfinite="keep"))


def captured(model: Model, records: Sequence[LayerRecord], data: Iterable[Any]) -> Iterator[Fed]:
    """Every call of every layer while the model runs on the data, batch by batch."""
    names = [record.name for record in records]
    for batch in data:
        _, calls = model.run(batch, capture=names)
        for record in records:
            for x, y in calls.pop(record.name, []):
                yield table(record, x, y)


def table(record: LayerRecord, x: Array, y: Array | None = None) -> Fed:
    """A layer's input with its channels on one axis: several axes are joined, and moved to the end.

    Raises
    ------
    ArgumentError
        The input has no such axis, or other lengths there.
    """
    axes = record.axis if isinstance(record.axis, tuple) else (record.axis,)
    fits = all(-x.ndim <= axis < x.ndim for axis in axes)
    kept = tuple(sorted(axis % x.ndim for axis in axes)) if fits else ()
    if not fits or tuple(x.shape[axis] for axis in kept) != record.channel_shape:
        raise ArgumentError(
            f"{record.name}: its input must have length {record.channel_shape} on axis {record.axis}; got the shape "
            f"{x.shape}."
        )
    if x.ndim > 1 and len(kept) == 1:
        return Fed(record, x, kept[0], y)
    end = tuple(range(-len(kept), 0))
    flat = [None if array is None else np.moveaxis(array, kept, end).reshape(-1, record.channels) for array in (x, y)]
    assert flat[0] is not None
    return Fed(record, flat[0], 1, flat[1])


def given(record: LayerRecord, x: Any) -> Iterator[Fed]:
    """The values a user gave for one layer, as `batchnorm.explain` takes them, as a table (n, channels)."""
    yield Fed(record, np.ascontiguousarray(arrange(x, record).rows.T), 1)


def drawn(records: Sequence[LayerRecord], count: int, seed: int, size: int) -> Iterator[Fed]:
    """For each layer ``count`` samples of each channel, normal with the layer's own mean and variance.

    A layer's numbers depend on the seed and its place in ``records`` alone, not on the size of a batch.
    """
    for place, record in enumerate(records):
        rng = np.random.default_rng([seed, place])
        mean, sd = _statistics(record)
        for start in range(0, count, size):
            noise = rng.standard_normal((min(size, count - start), record.channels))
            yield Fed(record, (mean + sd * noise).astype(_dtype(record)), 1)


def _statistics(record: LayerRecord) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    zeros = np.zeros(record.channels)
    mean = zeros if record.moving_mean is None else record.moving_mean.astype(np.float64)
    variance = zeros + 1 if record.moving_variance is None else record.moving_variance.astype(np.float64)
    usable = np.isfinite(variance) & (variance >= 0)  # a damaged statistic is not drawn from
    return np.where(np.isfinite(mean), mean, 0.0), np.sqrt(np.where(usable, variance, 1.0))


def _dtype(record: LayerRecord) -> Any:
    return np.float64 if record.dtype == "float64" else np.float32


class Saver:
    """Writes what is fed to a .npz file, array by array; under a temporary name until `finish`.

    Raises
    ------
    ArgumentError
        The file exists and is not to be replaced, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], records: Sequence[LayerRecord], *, force: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not force:
            raise ArgumentError(f"--save-inputs: {self.path} exists; pass --force to replace it.")
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            self._archive = zipfile.ZipFile(self._temporary, "x", allowZip64=True)
        except OSError as error:
            raise ArgumentError(f"--save-inputs: cannot write {self.path} ({error.strerror}).") from None
        self._places = {record.name: place for place, record in enumerate(records)}
        self._counts = dict.fromkeys(self._places, 0)
        self._store(NAMES, np.array(list(self._places)))

    def add(self, fed: Fed) -> None:
        """One batch of one layer: ``x<layer>_<number>``, its channels last."""
        name = fed.record.name
        x = np.moveaxis(fed.x, fed.axis, -1)
        plain = x if x.dtype.kind == "f" and x.dtype.isbuiltin == 1 else x.astype(np.float32)  # .npy knows no bfloat16
        self._store(f"x{self._places[name]}_{self._counts[name]}", plain)
        self._counts[name] += 1

    def _store(self, name: str, array: Array) -> None:
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)

    def finish(self) -> None:
        """Everything was fed: give the file its name."""
        self._archive.close()
        self._temporary.replace(self.path)

    def discard(self) -> None:
        """Leave nothing behind; without effect after `finish`."""
        self._archive.close()
        self._temporary.unlink(missing_ok=True)


def loaded(path: str | os.PathLike[str], records: Sequence[LayerRecord]) -> Iterator[Fed]:
    """What `Saver` wrote, for the layers that are asked for: by their names, or see `in_order`.

    Raises
    ------
    ArgumentError
        No such file, or it is damaged or no file of inputs.
    UnknownLayer
        It holds no input of a layer.
    """
    # NumPy does not close a damaged file that it opened itself.
    with _readable(path), Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        names = [str(name) for name in archive[NAMES]]
        members = set(archive.files)
        ordered = _other_names(names, records)
        for place, record in enumerate(records):
            if not ordered and record.name not in names:
                raise UnknownLayer(f"--load-inputs: {os.fspath(path)} holds no input of {record.name!r}.")
            at, number = place if ordered else names.index(record.name), 0
            while (key := f"x{at}_{number}") in members:
                yield _last_axis(record, archive[key])
                number += 1


def in_order(path: str | os.PathLike[str], records: Sequence[LayerRecord]) -> bool:
    """Whether saved inputs are those of as many layers of other names, as another format has: taken in their order."""
    with _readable(path), Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return _other_names([str(name) for name in archive[NAMES]], records)


def _other_names(names: Sequence[str], records: Sequence[LayerRecord]) -> bool:
    return len(names) == len(records) > 1 and not any(record.name in names for record in records)


def _last_axis(record: LayerRecord, x: Array) -> Fed:
    if x.ndim < 2 or x.shape[-1] != record.channels or x.dtype.kind != "f":
        raise ArgumentError(
            f"--load-inputs: the input of {record.name!r} must hold numbers of {record.channels} channels on its last "
            f"axis; got shape {x.shape}, {x.dtype}."
        )
    return Fed(record, x, x.ndim - 1)


@contextlib.contextmanager
def _readable(path: str | os.PathLike[str]) -> Generator[None]:
    shown = os.fspath(path)
    if not Path(path).is_file():
        raise ArgumentError(f"--load-inputs: no file {shown!r}.")
    try:
        yield
    except (ArgumentError, UnknownLayer):
        raise
    except Exception as error:  # NumPy's reader meets damage in many ways
        raise ArgumentError(
            f"--load-inputs: {shown!r} is no file that --save-inputs wrote ({type(error).__name__})."
        ) from None
