"""A live ``onnx.ModelProto`` as a ModelFile; onnx is found in the process, never imported."""

from __future__ import annotations

import sys
from typing import Any

from .modelfile import ModelFile
from .onnx_file import from_bytes

__all__ = ["from_live", "is_live"]


def is_live(value: Any) -> bool:
    """Whether an object is an ONNX model."""
    proto: Any = getattr(sys.modules.get("onnx"), "ModelProto", None)
    return proto is not None and isinstance(value, proto)


def from_live(model: Any) -> ModelFile:
    """Read an ``onnx.ModelProto``; data that it keeps in other files are looked for in the working directory."""
    return from_bytes(str(model.graph.name or "ModelProto"), model.SerializeToString())
