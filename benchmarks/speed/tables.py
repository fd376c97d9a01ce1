"""Tables in Markdown: kernels that write into given memory apart from calls that return new arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import cases
from .engines import ENGINES, ROOF
from .runner import Timing
from .summary import share_of_roof, times_faster

TITLES = {
    "out": "Kernels: outputs in memory that the caller holds",
    "allocated": "With allocation: every call returns a new array",
}


def tables(timings: list[Timing]) -> Iterator[str]:
    """A table for each way to get memory, then one of accuracy."""
    for buffers in cases.BUFFERS:
        chosen = [timing for timing in timings if timing.case.buffers == buffers]
        if chosen:
            ours = "ours" if any("ours" in timing.seconds for timing in chosen) else "numpy_core"
            yield from _speed(TITLES[buffers], chosen, ours)
    yield from _accuracy(timings)


def _speed(title: str, timings: list[Timing], ours: str) -> Iterator[str]:
    rivals = _present(timings, leave=(ours, *ROOF))
    yield f"\n### {title}\n"
    yield f"Share of the roof that {ENGINES[ours]} reach, and how many times as long the others take."
    yield "Medians over the rounds ± half the distance of the quartiles; in brackets the fastest over the fastest.\n"
    yield _row(["case", "threads", "of the roof", *(ENGINES[name] for name in rivals)])
    yield _row(["---"] * (3 + len(rivals)))
    for timing in timings:
        share = share_of_roof(timing, ours)
        others = [times_faster(timing, ours, name) for name in rivals]
        cells = ["" if share is None else f"{share.median:.0%} ± {share.spread:.0%} ({share.best:.0%})"]
        cells += ["" if each is None else f"{each.median:.2f} ± {each.spread:.0%} ({each.best:.2f})" for each in others]
        yield _row([_name(timing), str(timing.threads), *cells])


def _accuracy(timings: list[Timing]) -> Iterator[str]:
    engines = _present(timings, leave=ROOF)
    yield "\n### Accuracy\n"
    yield "Largest error of the output, or of the input's gradient, over its largest value, for N(1, 1).\n"
    yield _row(["case", "threads", *(ENGINES[name] for name in engines)])
    yield _row(["---"] * (2 + len(engines)))
    for timing in timings:
        errors = [timing.errors.get(name) for name in engines]
        yield _row([_name(timing), str(timing.threads), *("" if each is None else f"{each:.1e}" for each in errors)])


def _present(timings: list[Timing], leave: Iterable[str]) -> list[str]:
    left = set(leave)
    return [name for name in ENGINES if name not in left and any(name in timing.seconds for timing in timings)]


def _name(timing: Timing) -> str:
    case = timing.case
    words = [" x ".join(map(str, case.shape)), case.layout, case.dtype, case.operation]
    return ", ".join([*words, *([case.fused] if case.fused != "plain" else [])])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
