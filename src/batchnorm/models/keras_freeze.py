"""``.keras`` files with frozen or thawed batch normalizations: one flag in the config, every other byte as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from .archive import Archive
from .keras_config import Config, is_norm_config, read_layers
from .keras_file import CONFIG, load_json
from .modelfile import unreadable
from .rewriting import rewritten

__all__ = ["flags", "write"]


def write(path: str, target: Path, *, frozen: bool) -> None:
    """Write a copy in which ``trainable`` of every batch normalization is ``not frozen``."""
    config = _changed(_config(path), frozen)
    rewritten(path, target, {CONFIG: json.dumps(config).encode()})


def flags(path: str, *, frozen: bool | None = None) -> dict[str, bool]:
    """Layer -> whether it is trained, with all that is around it; where ``frozen`` is given, as `write` makes it."""
    config = _config(path)
    layers = read_layers(config if frozen is None else _changed(config, frozen))
    return {"/".join(layer.names): layer.trainable for layer in layers if layer.is_norm}


def _changed(config: Config, frozen: bool) -> Config:
    for settings in _norms(config):
        settings["trainable"] = not frozen
    return config


def _config(path: str) -> Config:
    with open(path, "rb") as stream:
        archive = Archive(stream, path)
        if CONFIG not in archive.names():
            raise unreadable(path, f"a zip archive without {CONFIG}", "Give a .keras file")
        return load_json(archive.text(CONFIG), path, CONFIG)


def _norms(value: Any) -> Iterator[Config]:
    """The settings of every batch normalization, wherever in the config; a shared one may be there twice."""
    if isinstance(value, list):
        for each in cast("list[Any]", value):
            yield from _norms(each)
    elif isinstance(value, dict):
        entry = cast("Config", value)
        settings = entry.get("config")
        if isinstance(settings, dict) and "class_name" in entry and is_norm_config(cast("Config", settings)):
            yield cast("Config", settings)
            return
        for each in entry.values():
            yield from _norms(each)
