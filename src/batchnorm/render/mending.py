"""Folding, freezing and thawing as text."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from .pieces import Document, add_row, named, print_notes, print_table, printable, short, table

__all__ = ["draw_fold", "draw_freeze"]


def draw_fold(document: Document, to: Console, wide: bool) -> None:
    """What went where, what stayed and why, and the proof."""
    folded, refused = document["folded"], document["refused"]
    title = f"{printable(document['model']['path'])} ({printable(document['model']['format'])})"
    holds = document["proof"] is not None and document["proof"]["holds"]
    done = len(folded) if holds else 0
    to.print(Text(f"{title}: {done} of {_norms(len(folded) + len(refused))} folded", style="bold"))
    if folded:
        if not holds:
            to.print(Text("Tried, and not kept", style="bold"))
        drawn = table(["layer", "into", "the layer stands"], left=("layer", "into", "the layer stands"))
        for each in folded:
            where = "after it" if each["where"] == "after" else "before it"
            add_row(drawn, (named(each["layer"]), named(each["into"]), where))
        print_table(drawn, to)
    _draw_reasons("Left as they are", refused, to)
    if document["proof"] is not None:
        _draw_proof(document["proof"], to)
    _draw_end(document, to)


def _norms(number: int) -> str:
    return f"{number} batch normalization{'' if number == 1 else 's'}"


def _draw_reasons(title: str, reasons: list[Document], to: Console) -> None:
    """Each reason once, with the layers that it holds for."""
    if not reasons:
        return
    by_reason: dict[str, list[str]] = {}
    for each in reasons:
        by_reason.setdefault(each["why"], []).append(named(each["layer"]))
    to.print()
    to.print(Text(title, style="bold"))
    for why, names in by_reason.items():
        to.print(Padding(Text(f"{', '.join(names)}: {printable(why)}."), (0, 0, 0, 2)))


def _draw_proof(proof: Document, to: Console) -> None:
    to.print()
    to.print(Text("Proof" if proof["holds"] else "Proof: failed", style="bold"))
    drawn = table(["inputs", "samples", "largest difference", "of the largest output", ""], left=("inputs", ""))
    for each in proof["inputs"]:
        numbers = (_number(each["max_abs"]), _number(each["max_rel"]))
        add_row(drawn, (each["source"], each["samples"], *numbers, "" if each["tells"] else "tells nothing"))
    print_table(drawn, to)
    depth = f"{proof['depth']} operation{'' if proof['depth'] == 1 else 's'} with new weights"
    to.print(
        Padding(
            Text(f"Allowed: {_number(proof['tolerance'])}. Rounding alone, {depth}: {_number(proof['bound'])}."),
            (0, 0, 0, 2),
        )
    )


def _number(value: Any) -> str:
    return value if isinstance(value, str) else short(value, 3)


def draw_freeze(document: Document, to: Console, wide: bool) -> None:
    """Which layers changed, and which did not."""
    done = "thawed" if document["schema"].startswith("batchnorm/unfreeze") else "frozen"
    changed, unchanged = document["changed"], document["unchanged"]
    title = f"{printable(document['model']['path'])} ({printable(document['model']['format'])})"
    to.print(Text(f"{title}: {len(changed)} of {_norms(len(changed) + len(unchanged))} {done}", style="bold"))
    if changed:
        to.print(Padding(Text(", ".join(map(named, changed))), (0, 0, 0, 2)))
    _draw_reasons("Left as they are", unchanged, to)
    _draw_end(document, to)


def _draw_end(document: Document, to: Console) -> None:
    if document["output"] is not None:
        to.print()
        to.print(Text(f"Written to {printable(document['output'])}"))
    if document["notes"]:
        to.print()
    print_notes(document, to)
