"""Documents as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .text import render as as_text

__all__ = ["render"]


def render(document: Mapping[str, Any]) -> str:
    """The text of a document as a fenced block: a comment on a pull request shows it as a terminal does."""
    text = as_text(document).replace("```", "'''")
    return f"```text\n{text}\n```"
