"""New statistics as text."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.text import Text

from .pieces import Document, add_row, named, print_notes, print_table, printable, short, table

__all__ = ["draw_recalibrate"]

MOST_LAYERS = 60


def draw_recalibrate(document: Document, to: Console, wide: bool) -> None:
    """One row a layer: how far its statistics moved; then what that changed."""
    model, layers = document["model"], document["layers"]
    done = [layer for layer in layers if layer["skipped"] is None]
    to.print(Text(f"{printable(model['path'])} ({printable(model['format'])}): {_what(document, len(done))}", "bold"))
    drawn = table(["layer", "elements", "mean moved", "variance times", "left alone"], left=("layer", "left alone"))
    for layer in layers[:MOST_LAYERS]:
        count = "-" if layer["count"] is None else f"{layer['count']:,.0f}"
        add_row(drawn, (named(layer["name"]), count, *_moved(layer), layer["skipped"] or ""))
    print_table(drawn, to)
    if len(layers) > MOST_LAYERS:
        to.print(f"  ... and {len(layers) - MOST_LAYERS} more layers, in --json.")
    _draw_sides("outputs of training and inference mode apart by", document["gap"], to)
    _draw_sides("accuracy in inference mode", document["accuracy"], to)
    if document["output"] is not None:
        to.print(Text(f"written to {printable(document['output'])}"))
    print_notes(document, to)


def _what(document: Document, done: int) -> str:
    layers = f"{done} of {len(document['layers'])} batch normalizations recalibrated"
    if document["method"] == "debias":
        return f"{layers}, their initial value taken out"
    passes = f"{document['passes']} pass{'es' if document['passes'] > 1 else ''}"
    samples = "" if document["samples"] is None else f" over {document['samples']:,} samples"
    return f"{layers}, {document['method']}, {passes}{samples}"


def _moved(layer: Document) -> tuple[str, str]:
    """The largest shift of a mean in new standard deviations, and the range of the ratios of variances."""
    if layer["skipped"] is not None:
        return "-", "-"
    before, after = layer["before"], layer["after"]
    shifts = [
        abs(new - old) / math.sqrt(variance)
        for old, new, variance in zip(before["mean"], after["mean"], after["variance"], strict=True)
        if variance > 0
    ]
    ratios = [new / old for old, new in zip(before["variance"], after["variance"], strict=True) if old > 0]
    shift = f"{short(max(shifts), 3)} sd" if shifts else "-"
    return shift, f"{short(min(ratios), 3)} to {short(max(ratios), 3)}" if ratios else "-"


def _draw_sides(what: str, sides: Any, to: Console) -> None:
    if sides is not None:
        to.print(f"  {what}: {_share(sides['before'])} before, {_share(sides['after'])} after")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g} %"
