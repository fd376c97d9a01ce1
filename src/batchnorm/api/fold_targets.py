"""What each format needs to be folded: its model, its inputs, and a folded copy that can be run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from batchnorm.core.output import check_is_no_input, replacing
from batchnorm.engines.session import Input, inputs_of
from batchnorm.errors import ArgumentError
from batchnorm.models.change import Change
from batchnorm.models.modelfile import ModelFile

from .epsilons import Epsilon
from .loading import load
from .proving import guessed

__all__ = ["FOLDED", "Target", "place_for", "target_of"]

FOLDED = ".onnx, .keras, .h5 and .pt2 files, and live keras.Model, torch.nn.Module and onnx.ModelProto objects"


class Target(Protocol):
    """A model that can be folded."""

    model: ModelFile
    result: Any

    def inputs(self) -> list[Input] | None:
        """What it takes, where that is known."""
        ...

    def folded(self, changes: Sequence[Change], place: Path | None) -> ModelFile:
        """A folded copy, written to ``place`` where it is given."""
        ...


@dataclass(slots=True)
class OnnxTarget:
    """A file or a live ModelProto."""

    model: ModelFile
    live: Any = None
    result: Any = None

    def inputs(self) -> list[Input] | None:
        """See `Target`."""
        return inputs_of(self.model)

    def folded(self, changes: Sequence[Change], place: Path | None) -> ModelFile:
        """See `Target`."""
        from batchnorm.models import onnx_edit, onnx_live
        from batchnorm.models.registry import open_model

        original = self.live if self.live is not None else onnx_edit.loaded(self.model.path)
        made = onnx_edit.changed(original, partial(onnx_edit.fold, changes=changes))
        self.result = made if self.live is not None else None
        if place is None:
            return onnx_live.from_live(made)
        onnx_edit.save(made, place, self.in_other_files())
        return open_model(place)

    def in_other_files(self) -> set[str]:
        """The names of arrays that lie in a file beside it."""
        from batchnorm.models import onnx_edit

        return set() if self.live is not None else onnx_edit.in_other_files(self.model.path)

    def other_files(self) -> list[Path]:
        """The files beside it that hold them."""
        from batchnorm.models import onnx_beside, onnx_freeze

        folder = Path(self.model.path).parent
        return [folder / name for name in onnx_beside.locations(onnx_freeze.without_data(self.model.path))]


@dataclass(slots=True)
class KerasTarget:
    """A file, loaded with safe_mode on, or a live model."""

    model: ModelFile
    live: Any
    path: str | None = None
    result: Any = None

    def inputs(self) -> list[Input] | None:
        """See `Target`."""
        from batchnorm.engines.keras_inputs import inputs_of

        return inputs_of(self.live)

    def folded(self, changes: Sequence[Change], place: Path | None) -> ModelFile:
        """See `Target`."""
        from batchnorm.models import keras_edit, keras_live
        from batchnorm.models.registry import open_model

        made = keras_edit.folded(self.live, changes)
        self.result = made if self.path is None else None
        if place is None:
            return keras_live.from_live(made)
        keras_edit.save(made, place)
        return open_model(place)


@dataclass(slots=True)
class Pt2Target:
    """An exported program."""

    model: ModelFile
    result: Any = None

    def inputs(self) -> list[Input] | None:
        """See `Target`."""
        return inputs_of(self.model)

    def folded(self, changes: Sequence[Change], place: Path | None) -> ModelFile:
        """See `Target`."""
        from batchnorm.models import pt2_edit
        from batchnorm.models.registry import open_model

        assert place is not None
        pt2_edit.fold(self.model.path, place, changes)
        return open_model(place)


@dataclass(slots=True)
class TorchTarget:
    """A live module."""

    model: ModelFile
    live: Any
    result: Any = None

    def inputs(self) -> list[Input] | None:
        """See `Target`."""
        graph = self.model.graph
        return None if graph is None else guessed(graph) or None

    def folded(self, changes: Sequence[Change], place: Path | None) -> ModelFile:
        """See `Target`."""
        from batchnorm.models import torch_edit, torch_live

        assert place is None
        self.result = torch_edit.folded(self.live, changes)
        return torch_live.from_live(self.result)


def target_of(model: Any, epsilon: Epsilon | None, out: str | os.PathLike[str] | None) -> Target:
    """The model, read as what can be folded.

    Raises
    ------
    ArgumentError
        Another format; a file without ``out``; an ending of ``out`` that does not go with it.
    """
    read = load(model, epsilon=epsilon)
    is_file = isinstance(model, (str, os.PathLike)) or model is read
    if is_file and out is None:
        raise ArgumentError("fold: a file is folded into another one: give its path with -o (out=).")
    if not isinstance(read, ModelFile):
        raise _unfit(read.format)
    if read.format == "onnx":
        _check_ending(out, (".onnx",))
        return OnnxTarget(read, None if is_file else model)
    if read.format == "pt2":
        _check_ending(out, (".pt2",))
        return Pt2Target(read)
    if read.format in ("keras", "hdf5"):
        return _keras_target(model, read, epsilon, is_file, out)
    if read.format == "torch" and not is_file:
        if out is not None:
            raise ArgumentError(
                "fold: a live torch.nn.Module is not written to a file: take bn.fold(module).result, or export it and "
                "fold the .pt2 or .onnx file."
            )
        return TorchTarget(read, model)
    raise _unfit(read.format)


def _unfit(form: str) -> ArgumentError:
    return ArgumentError(f"fold: {form} models are not folded; what is: {FOLDED}.")


def _keras_target(model: Any, read: ModelFile, epsilon: Epsilon | None, is_file: bool, out: Any) -> Target:
    _check_ending(out, (".keras", ".h5", ".hdf5"))
    if not is_file:
        return KerasTarget(read, model)
    from batchnorm.engines.keras import load_file

    live = load_file(read.path)
    return KerasTarget(_as_file(load(live, epsilon=epsilon), read), live, read.path)


def _as_file(live: Any, read: ModelFile) -> ModelFile:
    return replace(live, path=read.path, format=read.format)


def _check_ending(out: str | os.PathLike[str] | None, endings: tuple[str, ...]) -> None:
    named = "" if out is None else os.fspath(out)
    if named and not named.lower().endswith(endings):
        raise ArgumentError(f"fold: -o {named!r} must end in {' or '.join(endings)}, as the model does.")


@contextmanager
def place_for(target: Target, out: Any, force: bool) -> Generator[Path | None]:
    """Where the folded copy is written, which takes its name when the block ends; an ONNX file may have another."""
    if out is None:
        yield None
        return
    goal = Path(out)
    source = target.model.path if Path(target.model.path).exists() else None
    if not (isinstance(target, OnnxTarget) and target.in_other_files()):
        with replacing(goal, source=source, force=force) as temporary:
            yield temporary
        return
    beside = goal.with_name(f"{goal.name}.data")
    check_is_no_input(beside, target.other_files())
    with replacing(goal, source=source, force=force) as first, replacing(beside, force=force) as second:
        folder = goal.with_name(f".{goal.name}.{os.getpid()}.parts")
        folder.mkdir()
        try:
            yield folder / goal.name  # the model names its data, so that both must have their names already
            (folder / goal.name).replace(first)
            (folder / beside.name).replace(second)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
