"""Comparisons of two models as text."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from .pieces import Document, add_row, named, print_notes, print_table, printable, short, table

__all__ = ["draw_diff"]

MOST_NAMED = 5


def draw_diff(document: Document, to: Console, wide: bool) -> None:
    """Each pair that differs, with its constants; then the layers without a partner."""
    pairs = document["pairs"]
    unknown = [pair for pair in pairs if _epsilon_unknown(pair)]
    differing = [pair for pair in pairs if pair["differences"] and pair not in unknown]
    _title(document, to)
    counted = f"{len(pairs)} pair{'' if len(pairs) == 1 else 's'} of layers"
    to.print(f"  {counted}, {len(differing) or 'none'} of them differ{'s' if len(differing) == 1 else ''}.")
    if unknown:
        _draw_unknown(unknown, to)
    for pair in differing:
        to.print()
        _draw_pair(pair, to)
    for side, names in (("the first", document["only_a"]), ("the second", document["only_b"])):
        if names:
            to.print()
            to.print(Text(f"Only in {side}: {', '.join(map(named, names))}"))
    print_notes(document, to)


def _epsilon_unknown(pair: Document) -> bool:
    """Whether all that is to be said of a pair is that one side holds no epsilon, nor anything that tells it."""
    (one, *others) = pair["differences"] or [None]
    return (
        one is not None
        and not others
        and one["what"] == "epsilon"
        and None in (one["a"], one["b"])
        and (one["max_output_change"] is None and "does not hold" in one["detail"])
    )


def _draw_unknown(pairs: list[Document], to: Console) -> None:
    """One paragraph for all layers whose epsilon one file does not hold."""
    sides = sorted({"a" if pair["differences"][0]["a"] is None else "b" for pair in pairs})
    known = {value(one) for pair in pairs for one in (pair["differences"][0]["a"], pair["differences"][0]["b"])}
    names = ", ".join(named(pair["a"]) for pair in pairs[:MOST_NAMED]) + (", ..." if len(pairs) > MOST_NAMED else "")
    told = ", ".join(sorted(known - {"none"}))
    text = (
        f"The epsilon of {names} is not in {' and '.join(sides)}; the other side has {told}. Nothing else differs there"
        f"{'' if len(pairs) == 1 else ' in any of these ' + str(len(pairs))}. Pass --eps to compare it."
    )
    to.print(Padding(Text(text), (0, 0, 0, 2)))


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
