"""Arrays that an ONNX model keeps in other files: copied beside a copy of it, or not at all."""

# onnx' generated protocol buffers are partly unknown to a type checker.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

from batchnorm.errors import ArgumentError, Refused, require

__all__ = ["copied", "locations"]


def locations(model: Any) -> list[str]:
    """The other files that a ModelProto, loaded without them, names."""
    helper: Any = require("onnx.external_data_helper", "onnx", "Changing .onnx files")
    tensors = [each for each in helper._get_all_tensors(model) if helper.uses_external_data(each)]
    found = {entry.value: None for each in tensors for entry in each.external_data if entry.key == "location"}
    return list(found)


@contextlib.contextmanager
def copied(model: Any, source: Path, target: Path) -> Generator[None]:
    """Copy the other files of the model at ``source`` beside ``target``; where the block fails they vanish again.

    Raises
    ------
    Refused
        One lies outside the model's folder.
    ArgumentError
        Another file of that name is beside the target already.
    """
    made: list[Path] = []
    try:
        for name in locations(model):
            if os.path.isabs(name) or ".." in Path(name).parts:
                raise Refused(f"{source}: its data lie at {name!r}, outside its folder, and are not copied.")
            old, new = source.parent / name, target.parent / name
            if new.exists():
                if not new.samefile(old) and not filecmp.cmp(old, new, shallow=False):
                    raise ArgumentError(
                        f"-o: {new} is in the way: {source} keeps its data in a file of that name. "
                        "Write into an empty folder."
                    )
                continue
            new.parent.mkdir(parents=True, exist_ok=True)
            made.append(new)
            shutil.copyfile(old, new)
        yield
    except BaseException:
        for each in made:
            each.unlink(missing_ok=True)
        raise
