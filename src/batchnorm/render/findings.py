"""Findings as text: by rule, worst first, each with the layers it was found in and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .pieces import Document, add_row, named, print_notes, print_table, printable, table

__all__ = ["draw_check", "draw_rule"]

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
MOST_LAYERS = 5
"""Of one rule and level; a network that was trained too briefly shows the same in each of its layers."""
KEYS = ("rule", "level", "remedy", "model")


def draw_check(document: Document, to: Console, wide: bool) -> None:
    """Each rule that found something, its places and its remedy; then the count."""
    models = [document["model"]] if "model" in document else document["models"]
    for model, layers in zip(models, document["layers"], strict=True):
        of = (
            document["findings"]
            if len(models) == 1
            else [f for f in document["findings"] if f["model"] == model["path"]]
        )
        _draw_model(model, layers, of, to, wide)
    _draw_data(document, to)
    to.print(Text(_summary(document), style="bold"))
    _draw_skipped(document["skipped"], to)
    print_notes(document, to)


def _draw_model(model: Document, layers: int, findings: list[Any], to: Console, wide: bool) -> None:
    plural = "" if layers == 1 else "s"
    head = f"{printable(model['path'])} ({printable(model['format'])}): {layers} batch normalization{plural}"
    to.print(Text(head, style="bold"))
    to.print()
    for group in _grouped(findings):
        _draw_group(group, to, wide)


def _grouped(findings: Iterable[Any]) -> list[list[Any]]:
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for finding in findings:
        groups.setdefault(tuple(finding[key] for key in KEYS), []).append(finding)
    return list(groups.values())


def _draw_group(group: list[Any], to: Console, wide: bool) -> None:
    first = group[0]
    head = Text(f"{first['level']} {first['rule']} {first['name']}", style=STYLES[first["level"]])
    to.print(head)
    shown = group if wide else group[:MOST_LAYERS]
    for finding in shown:
        text = Text("" if finding["layer"] is None else f"{_layer(finding['layer'])}: ", style="bold")
        text.append(printable(finding["message"]), style="not bold")
        to.print(Padding(text, (0, 0, 0, 2)))
    if len(group) > len(shown):
        names = [named(finding["layer"]) for finding in group[len(shown) :]]
        more = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        to.print(Padding(Text(f"... and the same in {len(names)} more: {more} (--wide lists them)."), (0, 0, 0, 2)))
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row("  ->", Text(printable(first["remedy"]), style="italic"))
    to.print(grid)
    to.print()


def _draw_data(document: Document, to: Console) -> None:
    seen, accuracy = document["data"], document["accuracy"]
    if seen is not None:
        to.print(_seen(seen))
    if accuracy is not None:
        training = "" if accuracy["training"] is None else f", {_share(accuracy['training'])} in training mode"
        to.print(f"Accuracy {_share(accuracy['inference'])} in inference mode{training}.")


def _seen(seen: Document) -> str:
    samples, wanted, skipped = seen["samples"], seen["samples_needed"], seen["skipped"]
    enough = "" if wanted is None or samples < wanted else f" ({wanted} would do)"
    if seen["first_gap"] is not None:
        found = f"On {samples} samples{enough} training and inference mode part, first in {_layer(seen['first_gap'])}."
    elif wanted is not None and samples < wanted:
        found = f"{samples} samples are too few to tell a gap of 0.3 standard deviations: it takes {wanted}."
    else:
        found = f"On {samples} samples{enough} training and inference mode agree in every layer{_most(seen)}."
    left_out = f" {skipped} more {'is' if skipped == 1 else 'are'} not finite and left out." if skipped else ""
    return found + left_out


def _most(seen: Document) -> str:
    largest = seen["largest"]
    if largest is None:
        return ""
    return f", to {float(largest['effect']):.2g} standard deviations (most in {_layer(largest['layer'])})"


def _layer(name: str) -> str:
    """A name in a sentence: that of a layer in PyTorch's Sequential is a number."""
    return f"layer {name}" if name.isdecimal() else named(name)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _summary(document: Document) -> str:
    summary = document["summary"]
    parts = [f"{n} {level}{'' if n == 1 else 's'}" for level, n in summary.items() if n]
    if not parts:
        return "Nothing found."
    verdict = "" if document["failed"] else f" Nothing as bad as {document['fail_on']}: passed."
    return f"{', '.join(parts)}.{verdict} batchnorm rule CODE explains one."


def _draw_skipped(skipped: list[Any], to: Console) -> None:
    reasons: dict[str, list[str]] = {}
    for one in skipped:
        reasons.setdefault(one["why"], []).append(one["rule"])
    for why, codes in reasons.items():
        shown = f"{codes[0]} to {codes[-1]}" if len(codes) > 2 else " and ".join(codes)
        to.print(Text(f"not looked at: {shown} ({why})", style="dim"))


def draw_rule(document: Document, to: Console, wide: bool) -> None:
    """One rule's page, or all rules in a table."""
    rules = document["rules"]
    if len(rules) == 1:
        to.print(Text(rules[0]["page"]))
        return
    drawn = table(["code", "level", "needs", "name"], left=("code", "level", "needs", "name"))
    for rule in rules:
        add_row(drawn, (rule["code"], rule["level"], rule["needs"], rule["name"]))
    print_table(drawn, to)
    to.print(Text("batchnorm rule CODE explains one.", style="dim"))
