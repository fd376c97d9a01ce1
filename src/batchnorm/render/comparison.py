"""Comparisons of two models as text."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from .pieces import Document, add_row, named, print_notes, print_table, printable, short, table

__all__ = ["draw_diff"]


def draw_diff(document: Document, to: Console, wide: bool) -> None:
    """Each pair that differs, with its constants; then the layers without a partner."""
    pairs = document["pairs"]
    differing = [pair for pair in pairs if pair["differences"]]
    _title(document, to)
    counted = f"{len(pairs)} pair{'' if len(pairs) == 1 else 's'} of layers"
    to.print(f"  {counted}, {len(differing) or 'none'} of them differ{'s' if len(differing) == 1 else ''}.")
    for pair in differing:
        to.print()
        _draw_pair(pair, to)
    for side, names in (("the first", document["only_a"]), ("the second", document["only_b"])):
        if names:
            to.print()
            to.print(Text(f"Only in {side}: {', '.join(map(named, names))}"))
    print_notes(document, to)


def _title(document: Document, to: Console) -> None:
    first, second = document["models"]
    for letter, model in (("a", first), ("b", second)):
        to.print(Text(f"{letter}: {printable(model['path'])} ({printable(model['format'])})", style="bold"))


def _draw_pair(pair: Document, to: Console) -> None:
    names = named(pair["a"]) if pair["a"] == pair["b"] else f"{named(pair['a'])} and {named(pair['b'])}"
    how = "" if pair["paired_by"] == "values" else f" (paired by {pair['paired_by']})"
    to.print(Text(names, style="bold") + Text(how, style="not bold"))
    drawn = table(["what", "a", "b", "output moves by", "where"], left=("what", "where"))
    for one in pair["differences"]:
        change = "unknown" if one["max_output_change"] is None else short(one["max_output_change"])
        add_row(drawn, (one["what"], value(one["a"]), value(one["b"]), change, _where(one)))
    print_table(drawn, to)
    for one in pair["differences"]:
        if one["detail"]:
            to.print(Padding(Text(f"{one['what']}: {printable(one['detail'])}."), (0, 0, 0, 2)))


def value(one: Any) -> str:
    """A constant as it stands in a table."""
    if isinstance(one, list):
        return ", ".join(value(item) for item in one)  # pyright: ignore[reportUnknownVariableType]
    if one is None:
        return "none"
    return one if isinstance(one, str) else short(one, 7)


def _where(one: Document) -> str:
    if one["channels"] is None:
        return ""
    return f"channel {one['channel']}" if one["channels"] == 1 else f"{one['channels']} channels"
