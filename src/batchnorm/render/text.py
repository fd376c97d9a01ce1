"""Documents as text for a terminal of 80 columns.

Strings that come from a file (layer names, above all) are printed with their control characters escaped: a name cannot
move the cursor, colour the screen or break a line.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .comparison import draw_diff
from .findings import draw_check, draw_rule
from .mending import draw_fold, draw_freeze
from .pieces import Document, add_row, named, print_notes, print_table, printable, short, table
from .recalibration import draw_recalibrate
from .verification import draw_verify

__all__ = ["WIDTH", "console", "draw", "printable", "render"]

WIDTH = 80
WIDE = 200
NAME_WIDTH = 22
"""Of the name in a table of 80 columns: a longer one is folded."""


def render(document: Document, *, wide: bool = False) -> str:
    """The document as plain text, as `draw` shows it."""
    own = io.StringIO()
    draw(document, _plain_console(own, WIDE if wide else WIDTH), wide=wide)
    return "\n".join(line.rstrip() for line in own.getvalue().splitlines()).rstrip("\n")


def _plain_console(file: io.StringIO, width: int) -> Console:
    # Nothing found out from the surroundings: FORCE_COLOR would write escapes into a document, and in a notebook rich
    # displays what it is asked to write.
    return Console(
        file=file,
        width=width,
        highlight=False,
        emoji=False,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        force_interactive=False,
        legacy_windows=False,
    )


def draw(document: Document, to: Console, *, wide: bool = False) -> None:
    """Draw the document on a console."""
    DRAWN[str(document["schema"]).split("/")[1]](document, to, wide)


def console(*, wide: bool = False) -> Console:
    """The terminal, at most 80 columns of it unless ``wide``; ``NO_COLOR`` is respected."""
    found = Console(highlight=False, emoji=False)
    return found if wide else Console(highlight=False, emoji=False, width=min(found.width, WIDTH))


def draw_list(document: Document, to: Console, wide: bool) -> None:
    """One row a layer."""
    layers = document["layers"]
    to.print(Text(_title(document), style="bold"))
    if not layers:
        _print_no_layers(document, to)
        return
    columns = _LIST_COLUMNS + (_WIDE_COLUMNS if wide else ())
    drawn = table([name for name, _ in columns], left=("layer", "worst sign", "mode", "source"), gap=1)
    if not wide:
        longest = max(cell_len(named(layer["name"])) for layer in layers)
        drawn.columns[0].width = min(max(longest, len("layer")), NAME_WIDTH)
    for layer in layers:
        add_row(drawn, (cell(layer) for _, cell in columns))
    print_table(drawn, to)
    print_notes(document, to)


def draw_explain(document: Document, to: Console, wide: bool) -> None:
    """Each layer worked through; without an input a verdict for each, then the worst one worked through."""
    layers = document["layers"]
    worked = [layer for layer in layers if layer["explained"]]
    if len(layers) > len(worked):
        to.print(Text(_title(document), style="bold"))
        drawn = table(["layer", "verdict"], left=("layer", "verdict"))
        for layer in layers:
            add_row(drawn, (named(layer["name"]), layer["verdict"]))
        print_table(drawn, to)
        to.print()
    for layer in worked:
        _draw_layer(document, layer, to)
    print_notes(document, to)


def _draw_layer(document: Document, layer: Document, to: Console) -> None:
    channels = layer["channels"]
    head = Text(named(layer["name"]), style="bold")
    size = f"{channels} channel{'' if channels == 1 else 's'}"
    head.append(f": {printable(layer['kind'])} of {size} on axis {layer['axis']}", style="not bold")
    to.print(head)
    if document["model"]["path"] not in ("arrays", layer["name"]):
        to.print(Text(f"in {printable(document['model']['path'])}", style="dim"))
    to.print()
    to.print(Text("  " + _equation(layer), style="italic"))
    to.print()
    if len(layer["explained"]) > 1:
        print_table(_channel_table(layer), to)
        to.print()
    shown = layer["explained"][:ARITHMETIC]
    for channel in shown:
        _draw_values(layer, channel, to)
    left_out = len(layer["explained"]) - len(shown) + layer["channels_truncated"]
    if left_out:
        to.print(f"  ... and {left_out} more channel{'s' if left_out > 1 else ''}: --channel K shows one.")
        to.print()
    _numbered("Why", layer["because"], to)
    _numbered("What to do", layer["remedies"], to)


ARITHMETIC = 3
"""Channels whose arithmetic is spelled out; the table above it holds the others."""


def _equation(layer: Document) -> str:
    first = layer["explained"][0]
    statistics = "batch" if layer["explain_mode"] == "training" else "moving"
    factor = "" if first["gamma"] is None else "gamma*"
    addend = "" if first["beta"] is None else " + beta"
    return f"y = {factor}(x - {statistics}_mean)/sqrt({statistics}_variance + epsilon){addend}"


def _channel_table(layer: Document) -> Table:
    names = [n for n in ("gamma", "beta", "moving_mean", "moving_variance") if layer["explained"][0][n] is not None]
    outputs = layer["explained"][0]["values"][:2]
    drawn = table(["channel", *names, *(t for _ in outputs[:1] for t in ("x", "y"))], left=())
    for channel in layer["explained"]:
        cells = [short(channel[name]) for name in names]
        first = channel["values"][0] if channel["values"] else None
        outcome = [] if first is None else [short(first["x"]), short(first["y"])]
        add_row(drawn, (channel["channel"], *cells, *outcome))
    return drawn


def _draw_values(layer: Document, channel: Document, to: Console) -> None:
    if layer["channels"] > 1:
        to.print(Text(f"  channel {channel['channel']}", style="bold"))
    values = channel["values"]
    if _width(values) <= to.width:
        _draw_beside(values, to)
    else:
        _draw_below(values, to)
    if channel["truncated"]:
        to.print(f"  ... and {channel['truncated']} more values: --limit shows more, --at picks one.")
    to.print()


def _width(values: Sequence[Document]) -> int:
    # Two columns of indent and two between; an arithmetic that does not fit stands on a line of its own.
    longest = [max((len(text) for text in texts), default=0) for texts in zip(*map(_cells, values), strict=True)]
    return 2 + sum(longest) + 2 * len(longest)


def _cells(value: Document) -> tuple[str, ...]:
    model = () if value["model_y"] is None else (f"{short(value['model_y'], 8):>13}",)
    return (short(value["x"], 8), _output(value), *model, value["formula"])


def _draw_beside(values: Sequence[Document], to: Console) -> None:
    engine = any(value["model_y"] is not None for value in values)
    drawn = table(["x", "y", *(["the model's y"] if engine else []), "arithmetic"], left=("arithmetic",))
    for value in values:
        model = [short(value["model_y"], 8)] if engine else []
        add_row(drawn, (short(value["x"], 8), _output(value), *model, value["formula"]))
    print_table(drawn, to)


def _draw_below(values: Sequence[Document], to: Console) -> None:
    for value in values:
        model = "" if value["model_y"] is None else f"   (the model: {short(value['model_y'], 8)})"
        to.print(Text(f"  x = {short(value['x'], 8)}   y = {_output(value)}{model}"))
        to.print(Padding(Text(value["formula"], style="dim"), (0, 0, 0, 4)))


def _output(value: Document) -> str:
    return "unknown" if value["y"] is None else short(value["y"], 8)


def _numbered(title: str, sentences: Iterable[str], to: Console) -> None:
    listed = list(sentences)
    if not listed:
        return
    to.print(Text(title, style="bold"))
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(justify="right", width=3)
    grid.add_column(overflow="fold")
    for number, sentence in enumerate(listed, 1):
        grid.add_row(f"{number}.", Text(printable(sentence)))
    to.print(grid)
    to.print()


def draw_demo(document: Document, to: Console, wide: bool) -> None:
    """The question, how its model was trained here, and the answer."""
    to.print(Text(f'"{document["question"]}"', style="italic"))
    to.print()
    losses = document["losses"]
    to.print(
        f"The question's model, trained here without any framework: {document['steps']} steps on random data, "
        f"loss {short(losses[0])} to {short(losses[-1])}."
    )
    to.print("Its random data is not the asker's, so its digits differ; the arithmetic and the reasons do not.")
    to.print()
    draw_explain(document["answer"], to, wide)


def draw_doctor(document: Document, to: Console, wide: bool) -> None:
    """Versions, extras, engines and processors."""
    to.print(Text(f"batchnorm {document['version']}", style="bold") + Text(f", Python {document['python']}"))
    to.print(Text(f"CPU: {printable(document['cpu'])}"))
    to.print(Text(f"GPU: {printable(document['gpu'] or 'none found')}"))
    to.print()
    engines = table(["engine", "package", "version"], left=("engine", "package", "version"))
    for engine in document["engines"]:
        add_row(engines, (engine["name"], engine["package"], engine["version"] or "not installed"))
    print_table(engines, to)
    missing = [extra for extra in document["extras"] if not extra["installed"]]
    if missing:
        to.print()
        drawn = table(["missing extra", "what it adds"], left=("missing extra", "what it adds"))
        for extra in missing:
            add_row(drawn, (f"pip install 'batchnorm[{extra['name']}]'", extra["adds"]))
        print_table(drawn, to)


def _title(document: Document) -> str:
    model = document["model"]
    count = len(document["layers"])
    return f"{printable(model['path'])} ({model['format']}): {count} batch normalization{'' if count == 1 else 's'}"


def _print_no_layers(document: Document, to: Console) -> None:
    others = document.get("other_layers", [])
    to.print("  It holds no batch normalization.")
    if others:
        names = ", ".join(named(name) for name in others[:12])
        to.print(Text(f"  Its layers: {names}{', ...' if len(others) > 12 else ''}"))
    print_notes(document, to)


def _percent(share: Any) -> str:
    return "-" if share is None else ("<0.1 %" if share < 0.0005 else f"{100 * share:.3g} %")


def _scale(layer: Document, name: str) -> str:
    return "-" if layer["scale"] is None else short(layer["scale"][name])


_LIST_COLUMNS: tuple[tuple[str, Callable[[Document], object]], ...] = (
    ("layer", lambda layer: named(layer["name"])),
    ("channels", lambda layer: layer["channels"]),
    ("epsilon", lambda layer: short(layer["epsilon"])),
    ("momentum", lambda layer: short(layer["momentum"])),
    ("updates", lambda layer: "-" if layer["updates"] is None else layer["updates"]),
    ("initial", lambda layer: "none" if layer["recalibrated"] else _percent(layer["initial_weight"])),
    ("worst sign", lambda layer: layer["signs"][0]["text"] if layer["signs"] else "none"),
)
_WIDE_COLUMNS: tuple[tuple[str, Callable[[Document], object]], ...] = (
    ("mode", lambda layer: layer["mode"] or "-"),
    ("scale min", lambda layer: _scale(layer, "min")),
    ("median", lambda layer: _scale(layer, "median")),
    ("max", lambda layer: _scale(layer, "max")),
    ("< 10 epsilon", lambda layer: "-" if layer["epsilon_dominated"] is None else layer["epsilon_dominated"]),
    ("source", lambda layer: layer["source"] or "-"),
)

DRAWN: dict[str, Callable[[Document, Console, bool], None]] = {
    "list": draw_list,
    "diff": draw_diff,
    "recalibrate": draw_recalibrate,
    "verify": draw_verify,
    "explain": draw_explain,
    "demo": draw_demo,
    "doctor": draw_doctor,
    "check": draw_check,
    "rule": draw_rule,
    "fold": draw_fold,
    "freeze": draw_freeze,
    "unfreeze": draw_freeze,
}
