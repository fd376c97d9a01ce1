"""What every drawing is made of: tables, numbers and names for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["Document", "add_row", "named", "print_notes", "print_table", "printable", "short", "table"]

MOST_NAME = 200
Document = Mapping[str, Any]


def printable(text: object) -> str:
    """The text with control characters, line breaks and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def named(name: object) -> str:
    """A layer's name, printable; one of thousands of characters keeps its beginning and its end."""
    text = printable(name)
    if len(text) <= MOST_NAME:
        return text
    return f"{text[: MOST_NAME // 2]} ... {text[-MOST_NAME // 2 :]} ({len(str(name))} characters)"


def table(names: Iterable[str], left: tuple[str, ...], gap: int = 2) -> Table:
    """An empty table without lines; its columns are flush right save those in ``left``."""
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, gap, 0, 0))
    for name in names:
        made.add_column(Text(name), justify="left" if name in left else "right", overflow="fold")
    return made


def add_row(to: Table, cells: Iterable[object]) -> None:
    """One row; its cells printable."""
    to.add_row(*(Text(printable(cell)) for cell in cells))  # Text: "[red]" in a name is no markup


def print_table(drawn: Table, to: Console) -> None:
    """The table, two columns in."""
    to.print(Padding(drawn, (0, 0, 0, 2)))


def short(value: Any, significant: int = 4) -> str:
    """A number to so many digits; ``-`` for None."""
    if value is None:
        return "-"
    return f"{float(value):.{significant}g}"


def print_notes(document: Document, to: Console) -> None:
    """The document's notes, a paragraph each."""
    for note in document.get("notes", []):
        to.print(Text(f"note: {printable(note)}", style="dim"))
