"""What a reader hands back, and the one shape its refusals have."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from batchnorm.core.calibration import Bench
from batchnorm.core.graph import Graph, LazyGraph
from batchnorm.core.output import check_same_format, replacing
from batchnorm.core.protocols import Capture
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ModelFileError, Refused, UnknownLayer

from .marker import text_of

__all__ = ["ModelFile", "Pairs", "Runner", "rounded", "unreadable"]

Runner = Callable[[Any, Sequence[str]], tuple[Any, Capture]]
"""Takes an input and the names of layers to capture; returns the outputs and what went in and out of those layers."""
Pairs = Mapping[str, tuple[Any, Any]]
"""Layer name -> its new moving mean and variance, in float64."""

QUOTED = 200
STATE_DICTS = ("torch", "safetensors")
FROM_CODE = "Give the module as package.module:name with --weights and this file, or its .pt2 or .onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A trained model, read from a file or folder.

    Parameters
    ----------
    path : str
        Where it was read from.
    format : str
        ``"keras"``, ``"weights.h5"``, ``"weights.json"``, ``"hdf5"`` or ``"hdf5 weights"``.
    layers : tuple of LayerRecord
        Every batch normalization, in the order of the model's own list of layers. A layer that is used in several
        places is there once. Names are unique: the second layer of the same path is ``left/bn#2``.
    other_layers : tuple of str
        Names of the layers that are no batch normalization and hold none; inputs are left out.
    notes : tuple of str
        Sentences a user should know about what could not be read.
    runner : callable or None
        Runs the model; None where the file holds weights and no graph.
    lazy_graph : LazyGraph or None
        Reads the graph; None where the format holds none, or no reader of it is known.
    bench : callable, optional
        Makes what measures and replaces the statistics while the model runs.
    commit : callable, optional
        Writes new statistics into a live object, all of them or none, and marks it with the method they come from.
    writer : callable, optional
        Writes a copy of the file with new statistics to a path; everything else in it stays as it is.
    marker : callable, optional
        Puts the mark of `marker.text_of` into a file that the writer has written.
    untouched : mapping of str to str
        Layers whose statistics are not to be replaced, with the reason.
    """

    path: str
    format: str
    layers: tuple[LayerRecord, ...]
    other_layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    runner: Runner | None = field(default=None, repr=False, compare=False)
    lazy_graph: LazyGraph | None = field(default=None, repr=False, compare=False)
    bench: Callable[[], Bench] | None = field(default=None, repr=False, compare=False)
    commit: Callable[[Pairs, str | None], None] | None = field(default=None, repr=False, compare=False)
    writer: Callable[[Path, Pairs], None] | None = field(default=None, repr=False, compare=False)
    untouched: Mapping[str, str] = field(default_factory=dict[str, str], repr=False, compare=False)
    marker: Callable[[Path, str], None] | None = field(default=None, repr=False, compare=False)
    method: str | None = field(default=None, repr=False, compare=False)
    changed: Pairs = field(default_factory=dict[str, tuple[Any, Any]], repr=False, compare=False)

    @property
    def graph(self) -> Graph | None:
        """Which operation feeds which, read when first asked for; None where that cannot be told."""
        return None if self.lazy_graph is None else self.lazy_graph.graph

    @property
    def no_graph(self) -> str | None:
        """Why there is no graph; None where there is one."""
        return f"{self.format} files hold no graph" if self.lazy_graph is None else self.lazy_graph.reason

    def run(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Capture]:
        """Outputs of the model in inference mode, and what went in and out of the named layers.

        Parameters
        ----------
        x : array, or list or dict of arrays
            The input of the model, batch first; a dict where its inputs have names.
        capture : sequence of str
            Names of records, as in ``layers``.

        Raises
        ------
        ModelFileError
            The file holds no graph, or its engine cannot load it.
        MissingExtra
            The engine is not installed.
        """
        if self.runner is None:
            raise unreadable(
                self.path,
                "it holds weights and no graph, so it cannot be run",
                FROM_CODE if self.format in STATE_DICTS else "Save the whole model with model.save('model.keras')",
            )
        return self.runner(x, capture)

    def with_statistics(self, statistics: Pairs, method: str | None = None) -> ModelFile:
        """The model with other moving statistics, to be saved.

        Parameters
        ----------
        statistics : mapping
            Layer name -> its new moving mean and variance, as the format stores them; rounded to its type.
        method : str, optional
            How they were recalibrated; the file then bears a mark that its counter of updates is not about them.

        Raises
        ------
        UnknownLayer
            No such layer.
        """
        records = {record.name: record for record in self.layers}
        unknown = [name for name in statistics if name not in records]
        if unknown:
            raise UnknownLayer(f"{self.path}: no batch normalization {unknown[0]!r}")
        layers = tuple(_with(record, statistics.get(record.name)) for record in self.layers)
        changed = {**self.changed, **statistics}
        return replace(self, layers=layers, changed=changed, method=method, runner=None, bench=None)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write a copy of the file with the statistics that `with_statistics` gave; nothing else in it changes.

        Parameters
        ----------
        path : path
            Another one than that of the file.
        force : bool
            Replace what is there.

        Raises
        ------
        ArgumentError
            It is the file itself; it exists; it cannot be written; its ending is that of another format.
        Refused
            The format cannot be written, or not with these statistics.
        """
        if self.writer is None:
            raise Refused(f"{self.path}: statistics cannot be written into a {self.format} model.")
        check_same_format(path, self.path)
        with replacing(path, source=self.path, force=force) as temporary:
            self.writer(temporary, self.changed)
            if self.marker is not None and self.method is not None:
                self.marker(temporary, text_of(self.layers, self.changed, self.method))


def rounded(record: LayerRecord, values: Any) -> NDArray[Any]:
    """Statistics in the type that a layer stores, flat.

    Raises
    ------
    Refused
        A finite number is not finite in that type.
    """
    wide = np.asarray(values, np.float64).reshape(-1)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.dtype(record.dtype) if record.dtype != "bfloat16" else ml_dtypes.bfloat16)
    if np.any(np.isfinite(wide) & ~np.isfinite(narrow.astype(np.float64))):
        raise Refused(
            f"{record.name}: a statistic of {np.max(np.abs(wide)):.3g} does not fit the file's {record.dtype}."
        )
    return narrow


def _with(record: LayerRecord, pair: tuple[Any, Any] | None) -> LayerRecord:
    if pair is None:
        return record
    mean, variance = (rounded(record, values) for values in pair)
    return record.replace(moving_mean=mean, moving_variance=variance)


def unreadable(path: str | os.PathLike[str], reason: str, way_out: str | None = None) -> ModelFileError:
    """The error of a file that cannot be read: one line of path, reason and way out.

    Text that comes out of the file belongs through ``repr`` before it gets here, so that a hostile name cannot bring
    a line break or a terminal escape along.
    """
    text = f"{os.fspath(path)}: {reason}."
    return ModelFileError(text if way_out is None else f"{text} {way_out}.")


def quoted(text: object) -> str:
    """``repr`` of something a file said, cut to a length that fits a message."""
    shown = ascii(text) if not str(text).isprintable() else repr(text)
    return shown if len(shown) <= QUOTED else f"{shown[:QUOTED]}...({len(shown)} characters)"
