"""Readers: one module a file format, one record for every batch normalization they find."""

from __future__ import annotations

from .modelfile import ModelFile
from .registry import open_model

__all__ = ["ModelFile", "open_model"]
