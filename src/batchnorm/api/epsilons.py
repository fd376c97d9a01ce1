"""The epsilon of files that hold none: given, suggested by names, or taken from a sibling file; never guessed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from batchnorm.analysis.epsilon import sensitivity
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError
from batchnorm.models.hints import hinted_epsilon
from batchnorm.models.modelfile import ModelFile

__all__ = ["HINT", "Epsilon", "number", "with_epsilon"]

HINT = "hint"
Epsilon = float | str | os.PathLike[str]
"""A number; ``"hint"``, which stands for what the names of the arrays suggest; or the path of a sibling file."""


def with_epsilon(model: ModelFile, epsilon: Epsilon | None) -> ModelFile:
    """The model with an epsilon where its file holds none, and a note on how much that matters.

    Raises
    ------
    ArgumentError
        No finite number that is not negative; names that suggest nothing; a sibling without an epsilon.
    ModelFileError
        The sibling cannot be read.
    """
    if all(record.epsilon is not None for record in model.layers):
        return model
    layers = model.layers
    value = None if epsilon is None else number(epsilon)
    if value is not None:
        layers = tuple(record.with_epsilon(value) for record in layers)
    elif epsilon == HINT:
        layers = _hinted(model)
    elif epsilon is not None:
        layers = _of_sibling(model, str(epsilon))
    said = sensitivity(layers)
    notes = model.notes if said is None else (*model.notes, said)
    return dataclasses.replace(model, layers=layers, notes=notes)


def number(epsilon: Any) -> float | None:
    """The number that an epsilon is; None where it names where to take it from.

    Raises
    ------
    ArgumentError
        A number that no epsilon is.
    """
    if isinstance(epsilon, (str, os.PathLike)):
        return None
    if not 0 <= epsilon < float("inf"):
        raise ArgumentError(f"--eps must be a finite number that is not negative; got {epsilon:g}.")
    return float(epsilon)


def _hinted(model: ModelFile) -> tuple[LayerRecord, ...]:
    hinted = hinted_epsilon(f"{record.name}.running_mean" for record in model.layers)
    if hinted is None:
        raise ArgumentError(f"--eps hint: the names of the layers of {model.path} suggest no epsilon; give a number.")
    return tuple(record.with_epsilon(hinted, "hint") for record in model.layers)


def _of_sibling(model: ModelFile, path: str) -> tuple[LayerRecord, ...]:
    from batchnorm.analysis.diff import compare
    from batchnorm.models.registry import open_model

    from .comparing import kindred

    other = open_model(path)
    # By order alone only the same model goes together: as many layers of as many channels.
    same = [record.channels for record in model.layers] == [record.channels for record in other.layers]
    found = compare(model.layers, other.layers, kindred=kindred(model, other)).pairs
    pairs = {pair.a: pair.b for pair in found if same or pair.paired_by != "order"}
    theirs: Mapping[str, LayerRecord] = {record.name: record for record in other.layers}
    known = {name: theirs[like].epsilon for name, like in pairs.items() if theirs[like].epsilon_source == "file"}
    if not any(record.epsilon is None and known.get(record.name) is not None for record in model.layers):
        raise ArgumentError(f"--eps: {path} holds no epsilon of a layer of {model.path}; give a number.")
    return tuple(record.with_epsilon(known.get(record.name), "sibling") for record in model.layers)
