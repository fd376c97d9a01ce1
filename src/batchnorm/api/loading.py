"""A model read: from a file, a folder or a live object; its layers listed, and one of them named."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchnorm.analysis.numbers import listed
from batchnorm.core.protocols import Model
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, NoBatchNorm, UnknownLayer

from .epsilons import Epsilon, number, with_epsilon
from .results import Listing, ModelInfo

__all__ = ["check_epsilon", "chosen", "hashed", "info", "list_layers", "load", "notes_of", "opened", "some"]

MOST_NAME = 200


def load(
    model: Any, *, epsilon: Epsilon | None = None, trust: bool = False, weights: str | os.PathLike[str] | None = None
) -> Model:
    """Read a model: a file, a folder, or a live object; nothing of a file is executed.

    Parameters
    ----------
    model : path or object
        A ``.keras``, ``.weights.h5``, ``.h5``, ``.hdf5``, ``.onnx``, ``.pt2``, ``.pt``, ``.pth``, ``.ckpt``, ``.bin``
        or ``.safetensors`` file, an unzipped ``.keras`` folder; or a live ``keras.Model``, ``torch.nn.Module``,
        ``nnx.Module``, ``onnx.ModelProto``, or a `batchnorm.BatchNormalization`. What was loaded already is returned
        as it is.
    epsilon : float, "hint" or path, optional
        The epsilon of layers for which a file holds none: a number; ``"hint"`` for the one with which the architecture
        that the names of the arrays belong to is always built; or a sibling file of the same layers that holds it. The
        model's ``notes`` say how far outputs move if it is another.
    trust : bool
        Read TorchScript archives too: PyTorch's loader runs code that lies in the file.
    weights : path, optional
        A checkpoint or ``.safetensors`` file that is loaded into ``model``, a live ``torch.nn.Module``, first. This
        alone changes the object.

    Returns
    -------
    Model
        With ``.layers`` (records with arrays) and ``.run(x, capture=[names])``.

    Raises
    ------
    ModelFileError
        It cannot be read as a model.
    ArgumentError
        An object of no known kind.

    Examples
    --------
    >>> model = load("model.keras")  # doctest: +SKIP
    >>> model.layers[0].epsilon  # doctest: +SKIP
    0.001
    """
    from batchnorm.models.registry import open_model

    check_epsilon(epsilon)
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        if not path:
            raise ArgumentError("load: the model's path is empty; give the path of a file or folder.")
        if weights is not None:
            raise ArgumentError(
                "load: weights are loaded into a live object, and the model is a file; name the object as "
                "package.module:name."
            )
        return with_epsilon(open_model(path, trust=trust), epsilon)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(model, Model):
        return model
    from .live import from_live, load_weights

    if weights is not None:
        load_weights(model, os.fspath(weights))
    found = from_live(model)
    if found is None:
        raise ArgumentError(
            f"load: cannot read an object of type {type(model).__name__}; give the path of a model file, a "
            "keras.Model, torch.nn.Module, nnx.Module, onnx.ModelProto, or a batchnorm.BatchNormalization."
        )
    return found


def opened(model: Any, epsilon: Epsilon | None) -> Model:
    """The model, read.

    Raises
    ------
    NoBatchNorm
        It holds no batch normalization.
    """
    read = load(model, epsilon=epsilon)
    if not read.layers:
        raise NoBatchNorm(f"{read.path}: there is no batch normalization in this model.")
    return read


def list_layers(model: Any, *, epsilon: Epsilon | None = None, arrays: bool = False) -> Listing:
    """Every batch normalization of a model, as `load` finds it; see there for the arguments and errors."""
    read = load(model, epsilon=epsilon)
    return Listing(info(read), read.layers, read.other_layers, notes_of(read, epsilon), arrays)


def chosen(records: Sequence[LayerRecord], layer: str | None, who: str = "explain") -> LayerRecord:
    """The layer of that name, or of an unambiguous tail of it; without a name, the only one there is.

    Raises
    ------
    UnknownLayer
        None or several; the message lists them.
    """
    names = [record.name for record in records]
    if layer is None:
        if len(records) == 1:
            return records[0]
        raise UnknownLayer(f"{who}: name one of {len(names)} layers with --layer: {some(names)}.")
    for same in (str.__eq__, _is_path_tail, str.endswith):
        found = [record for record in records if same(record.name, layer)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownLayer(f"{who}: {layer!r} is the tail of {len(found)} layers: {some([r.name for r in found])}.")
    near = difflib.get_close_matches(layer, names, n=3, cutoff=0.4) or names
    raise UnknownLayer(f"{who}: no batch normalization {layer!r}; the nearest: {some(near)}.")


def _is_path_tail(name: str, tail: str) -> bool:
    return name.endswith((f"/{tail}", f".{tail}"))


def some(names: Sequence[str]) -> str:
    """The first few of many names, quoted."""
    shown = (name if len(name) <= MOST_NAME else f"{name[:MOST_NAME]}..." for name in names[:5])
    return ", ".join(map(repr, shown)) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def info(read: Model) -> ModelInfo:
    """Path and format of a model; its file is not hashed."""
    return ModelInfo(read.path, read.format)


def notes_of(read: Model, epsilon: Epsilon | None) -> tuple[str, ...]:
    """What the reader could not read, and whether an epsilon was given in vain."""
    notes: tuple[str, ...] = tuple(getattr(read, "notes", ()))
    own = {record.epsilon for record in read.layers if record.epsilon_source == "file" and record.epsilon is not None}
    if epsilon is None or not own or any(record.epsilon_source != "file" for record in read.layers):
        return notes
    return (*notes, f"The epsilon given ({epsilon}) was not used: the model holds its own, {listed(sorted(own))}.")


def hashed(given: Any, read: Model) -> ModelInfo:
    """Path, format and SHA-256 of a model; the last None for folders and live objects."""
    from_file = isinstance(given, (str, os.PathLike, Model)) and Path(read.path).is_file()
    return ModelInfo(read.path, read.format, _sha256(Path(read.path)) if from_file else None)


def check_epsilon(epsilon: Epsilon | None) -> None:
    """Raise ArgumentError for a number that no epsilon is."""
    if epsilon is not None:
        number(epsilon)


def _sha256(place: Path) -> str:
    with place.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
