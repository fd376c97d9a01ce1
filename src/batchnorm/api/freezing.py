"""Freezing and thawing: live models in place, files into copies."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from batchnorm.analysis.fold_plan import Refusal
from batchnorm.core.output import check_same_format, replacing
from batchnorm.core.protocols import Model
from batchnorm.errors import ArgumentError, NoBatchNorm

from .folded import Freezing
from .loading import hashed, load, notes_of

__all__ = ["freeze", "unfreeze"]

FORMATS = "what is: .keras and .onnx files, live Keras models, and PyTorch and NNX modules of this package's layers"
# Where live objects come from, as sys.modules knows it -> the door of this package, and the class that is meant.
DOORS = (
    ("keras", "layers.Layer", "batchnorm.keras"),
    ("torch", "nn.Module", "batchnorm.torch"),
    ("flax.nnx", "Module", "batchnorm.flax"),
)
OPTIMIZER_NOTE = (
    "The optimizer's state in the file was made for another set of trained weights: Keras warns when it loads the "
    "file, and training goes on with a new state."
)
NOTHING = "Nothing was changed, and nothing was written."


def freeze(model: Any, out: str | os.PathLike[str] | None = None, *, force: bool = False) -> Freezing:
    """Let every batch normalization keep its statistics, and normalise with them, for good.

    Parameters
    ----------
    model : path or object
        A ``.keras`` file: ``trainable`` of its batch normalizations becomes False. A ``.onnx`` file: its nodes leave
        training mode. Both into a copy in which nothing else is changed. A live Keras model, or a PyTorch or NNX module
        with layers of this package: changed in place, as ``batchnorm.keras.freeze`` and its siblings do.
    out : path, optional
        Where the copy is written; required for files.
    force : bool
        Replace an existing ``out``.

    Returns
    -------
    Freezing
        Which layers were changed, and which were not, each with its reason.

    Raises
    ------
    ArgumentError
        Another format; a file without ``out``.
    NoBatchNorm
        There is no batch normalization.

    Notes
    -----
    Frozen means in Keras: inference statistics even under ``training=True``, no update, no gradient for gamma and beta.
    PyTorch has no such mode: ``requires_grad=False`` still updates, and ``eval()`` ends with the next ``train()``;
    the layers of ``batchnorm.torch`` and ``batchnorm.flax`` have one. In ONNX it is inference mode.
    """
    return _set(model, out, force, frozen=True)


def unfreeze(model: Any, out: str | os.PathLike[str] | None = None, *, force: bool = False) -> Freezing:
    """Undo `freeze`; see there. An ``.onnx`` file cannot be thawed: its graph holds no training."""
    return _set(model, out, force, frozen=False)


def _set(model: Any, out: str | os.PathLike[str] | None, force: bool, *, frozen: bool) -> Freezing:
    who = "freeze" if frozen else "unfreeze"
    if not isinstance(model, (str, os.PathLike, Model)):
        return _live(model, out, frozen, who)
    read = load(model)
    if not read.layers:
        raise NoBatchNorm(f"{read.path}: there is no batch normalization in this model.")
    if out is None:
        raise ArgumentError(f"{who}: a file is changed in a copy: give its path with -o (out=).")
    place = Path(read.path)
    is_file = place.is_file()
    check_same_format(out, place)
    if read.format == "keras" and is_file:
        return _keras(read, hashed(model, read), Path(out), force, frozen)
    if read.format == "onnx" and is_file:
        if not frozen:
            raise ArgumentError(f"unfreeze: {read.path}: an ONNX graph holds no training to go back to.")
        return _onnx(read, hashed(model, read), Path(out), force)
    kind = f"{read.format} models are" if is_file else "folders are"
    raise ArgumentError(f"{who}: {kind} not changed; {FORMATS}.")


def _live(model: Any, out: Any, frozen: bool, who: str) -> Freezing:
    if out is not None:
        raise ArgumentError(f"{who}: a live model is changed in place; save it yourself, without -o (out=).")
    for name, kind, door in DOORS:
        found: Any = sys.modules.get(name)
        for part in kind.split("."):
            found = getattr(found, part, None)
        if found is not None and isinstance(model, found):
            read = load(model)
            if not read.layers:
                raise NoBatchNorm(f"{who}: there is no batch normalization in this model.")
            before = {record.name: record.mode for record in read.layers}
            getattr(import_module(door), who)(model)
            names = tuple(record.name for record in read.layers)
            unchanged = tuple(
                Refusal(name, "it is frozen already" if frozen else "it was not frozen")
                for name in names
                if (before[name] == "frozen") is frozen
            )
            left = {each.layer for each in unchanged}
            return Freezing(hashed(model, read), frozen, tuple(name for name in names if name not in left), unchanged)
    raise ArgumentError(f"{who}: a {type(model).__name__} is not changed; {FORMATS}.")


def _keras(read: Any, info: Any, out: Path, force: bool, frozen: bool) -> Freezing:
    from batchnorm.models import keras_freeze
    from batchnorm.models.registry import open_model

    before, after = keras_freeze.flags(read.path), keras_freeze.flags(read.path, frozen=frozen)
    changed = tuple(name for name, trained in before.items() if trained is frozen and after[name] is not frozen)
    unchanged = {name: _state(frozen) for name in before if name not in changed}
    unchanged |= {
        name: "a model around it is frozen, which wins over its own flag" for name in unchanged if after[name] is frozen
    }
    notes = list(notes_of(read, None))
    if not changed:
        return Freezing(info, frozen, (), _refusals(unchanged), notes=(*notes, NOTHING))
    with replacing(out, source=read.path, force=force) as place:
        keras_freeze.write(read.path, place, frozen=frozen)
        open_model(place)
    if any(record.updates is not None or record.updates_doubt for record in read.layers):
        notes.append(OPTIMIZER_NOTE)
    return Freezing(info, frozen, changed, _refusals(unchanged), os.fspath(out), tuple(notes))


def _onnx(read: Any, info: Any, out: Path | None, force: bool) -> Freezing:
    from batchnorm.models import onnx_freeze
    from batchnorm.models.registry import open_model

    assert out is not None
    notes = notes_of(read, None)
    try:
        with replacing(out, source=read.path, force=force) as place:
            model = onnx_freeze.without_data(read.path)
            found = onnx_freeze.freeze(model)
            if None not in found.values():
                raise _NothingError
            onnx_freeze.write(model, read.path, out, place)
            open_model(place)
    except _NothingError:
        found, out, notes = onnx_freeze.freeze(onnx_freeze.without_data(read.path)), None, (*notes, NOTHING)
    changed = tuple(name for name, why in found.items() if why is None)
    reasons = {name: why for name, why in found.items() if why is not None}
    unchanged = {
        record.name: reasons.get(record.name, "it is in inference mode already")
        for record in read.layers
        if record.name not in changed
    }
    return Freezing(info, True, changed, _refusals(unchanged), None if out is None else os.fspath(out), tuple(notes))


class _NothingError(Exception):
    """Leaves the block that would give the file its name."""


def _state(frozen: bool) -> str:
    return "it is frozen already" if frozen else "it was not frozen"


def _refusals(reasons: dict[str, str]) -> tuple[Refusal, ...]:
    return tuple(Refusal(name, why) for name, why in reasons.items())
