"""Documents as HTML, for notebooks."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from .text import render

__all__ = ["fragment"]


def fragment(document: Mapping[str, Any]) -> str:
    """The text of a document as an escaped block; safe whatever the names in it."""
    return f'<pre style="line-height:1.3">{html.escape(render(document, wide=False))}</pre>'
