"""Verifications as text: engines beside the reference, and two models beside each other."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from .pieces import Document, add_row, named, print_notes, print_table, printable, short, table

__all__ = ["draw_verify"]

BOUND = "4u(|gamma*inv_std|(|x| + |mean|) + |beta| + |y|)"
SOURCES = {
    "data": "the input that reaches each layer",
    "x": "the input given",
    "saved inputs": "the inputs saved before",
    "random": "numbers drawn with each layer's statistics",
}
MOST_PAIRS = 20
MANY_ULPS = 100
NEAR_ZERO = "max rel and ulp are large where an output is nearly 0: of bound says what counts."


def draw_verify(document: Document, to: Console, wide: bool) -> None:
    """The verdict, a row for each engine, what is behind each that does not agree; then the other model."""
    models = [document["model"]] if "model" in document else document["models"]
    for model in models:
        to.print(Text(f"{printable(model['path'])} ({printable(model['format'])})", style="bold"))
    count = len(document["layers"])
    to.print(f"  {count} batch normalization{'' if count == 1 else 's'} on {SOURCES[document['input']['source']]}.")
    if document["engines"]:
        _draw_engines(document, to, wide)
    if document["comparison"] is not None:
        _draw_comparison(document["comparison"], to)
    print_notes(document, to)


def _draw_engines(document: Document, to: Console, wide: bool) -> None:
    given = document["input"]
    tolerated = given["atol"] is not None or given["rtol"] is not None
    limit = f"{given['atol'] or 0:g} + {given['rtol'] or 0:g}*|y|" if tolerated else BOUND
    to.print(Padding(Text(f"Allowed beside the float64 reference: {limit}.", style="dim"), (0, 0, 0, 2)))
    to.print()
    run = document["model_run"]
    engines = [*document["engines"], *([run] if run is not None else [])]
    _say(_verdict(engines, run), to)
    names = ["engine", "version", "verdict", "max abs", "max rel", "ulp", "of bound"]
    drawn = table([*names, *(["needs tolerance"] if wide else [])], left=("engine", "version", "verdict"), gap=1)
    for engine in engines:
        numbers = [short(engine[key], 2) for key in ("max_abs", "max_rel", "max_ulp", "share_of_bound")]
        more = [short(engine["required_tolerance"], 2)] if wide else []
        add_row(drawn, (_name(engine, run), _version(engine), engine["status"], *numbers, *more))
    print_table(drawn, to)
    if any((engine["max_ulp"] or 0) > MANY_ULPS for engine in engines):
        to.print(Padding(Text(NEAR_ZERO, style="dim"), (0, 0, 0, 2)))
    for engine in engines:
        if engine["why"] is not None:
            first = engine["first_differing_layer"]
            at = "" if first is None else f" First differs at {named(first)}."
            text = f"{_name(engine, run)}: {engine['why']}.{at}"
            _say(printable(text), to)
    _draw_decades([engine for engine in engines if engine["status"] == "differs"], run, to)


def _say(text: str, to: Console) -> None:
    """A sentence, two columns in also where it goes on in the next line."""
    to.print(Padding(Text(text), (0, 0, 0, 2)))


def _verdict(engines: list[Any], run: Any) -> str:
    """How many agree, and the names of those that do not."""
    computed = [engine for engine in engines if engine is not run]
    agree = sum(engine["status"] == "agrees" for engine in computed)
    parts = [f"{'all ' if agree == len(computed) > 1 else ''}{agree} engine{'' if agree == 1 else 's'} agree"
             f"{'s' if agree == 1 else ''}"]  # fmt: skip
    for status, verb in (("differs", "differs"), ("failed", "failed"), ("unavailable", "is not installed")):
        names = [_name(engine, run) for engine in engines if engine["status"] == status]
        if names:
            plural = {"differs": "differ", "is not installed": "are not installed"}.get(verb, verb)
            parts.append(f"{', '.join(names)} {verb if len(names) == 1 else plural}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _version(engine: Any) -> str:
    """Keras names its backend; where the engine's own name does, the version is enough."""
    backend = engine["name"].partition("-")[2]
    return str(engine["version"] or "-").replace(f", {backend} ", " on ") if backend else str(engine["version"] or "-")


def _name(engine: Any, run: Any) -> str:
    return "the model itself" if engine is run else engine["name"]


def _draw_decades(engines: list[Any], run: Any, to: Console) -> None:
    for engine in engines:
        to.print()
        to.print(Text(f"  {_name(engine, run)}, by the size of the output:"))
        drawn = table(["|y| from", "outputs", "max abs", "max rel"], left=())
        for row in engine["by_decade"]:
            size = "0 or not finite" if row["decade"] is None else f"1e{row['decade']}"
            add_row(drawn, (size, row["count"], short(row["max_abs"], 2), short(row["max_rel"], 2)))
        print_table(drawn, to)


def _agreement(count: int, outputs: Document | None) -> str:
    """What to say where no layer was seen to diverge."""
    if not count:
        return "No layer could be compared by itself."
    layers = f"all {count} layers" if count > 1 else "the one layer"
    if outputs is None or outputs["agrees"]:
        return f"The models agree in {layers} compared."
    return f"The models agree in {layers} compared, and part in what lies between or after."


def _outputs(outputs: Document, layers_agree: bool) -> str:
    if not outputs["max_abs"]:
        return "The models' outputs are equal to the bit."
    verdict = "differ" if not outputs["agrees"] else ("agree" if layers_agree else "differ little")
    share = f"{short(outputs['max_rel'], 2)} of the largest"
    return f"The models' outputs {verdict}: up to {short(outputs['max_abs'], 3)} apart, {share}."


def _draw_comparison(comparison: Document, to: Console) -> None:
    to.print()
    pairs, first = comparison["pairs"], comparison["first_diverging"]
    if first is None:
        _say(_agreement(len(pairs), comparison["outputs"]), to)
    else:
        name = named(first["a"]) if first["a"] == first["b"] else f"{named(first['a'])} ({named(first['b'])})"
        _say(f"They part at {name}, cause {first['cause']}: {printable(first['why'])}.", to)
    shown = [pair for pair in pairs if pair["diverges"]][:MOST_PAIRS]
    if shown:
        drawn = table(["layer", "inputs apart", "outputs apart", "cause"], left=("layer", "cause"))
        for pair in shown:
            cells = (short(pair["input_max_abs"], 3), short(pair["max_abs"], 3), pair["cause"])
            add_row(drawn, (named(pair["a"]), *cells))
        print_table(drawn, to)
    if comparison["outputs"] is not None:
        _say(_outputs(comparison["outputs"], first is None), to)
    for side, names in (("first", comparison["only_a"]), ("second", comparison["only_b"])):
        if names:
            _say(f"Only in the {side}: {', '.join(map(named, names))}.", to)
