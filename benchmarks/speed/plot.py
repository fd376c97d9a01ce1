"""The figures as one picture (SVG, written by hand): a row a case, a dot an engine, a logarithmic axis."""

from __future__ import annotations

import math
from html import escape

from .engines import ENGINES, ROOF
from .runner import Timing
from .summary import roof

ROW, LEFT, WIDTH, TOP = 20, 430, 620, 60
COLOURS = ("#d62728", "#e377c2", "#7f7f7f", "#1f77b4", "#17becf", "#2ca02c", "#ff7f0e", "#9467bd")


def svg(timings: list[Timing]) -> str:
    """Times of every engine over the roof's: the line at 1 is a copy of the least bytes."""
    timings = [timing for timing in timings if roof(timing)]
    names = [name for name in ENGINES if name not in ROOF and any(name in timing.seconds for timing in timings)]
    colours = dict(zip(names, COLOURS, strict=False))
    rows = [_over_roof(timing, names) for timing in timings]
    top = max((value for row in rows for value in row.values()), default=10.0)
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= top * 1.5]
    height = TOP + ROW * len(rows) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 30}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="{height}" fill="white"/>',
        *_legend(colours),
        *(_tick(tick, ticks[-1], height) for tick in ticks),
    ]
    for number, (timing, row) in enumerate(zip(timings, rows, strict=True)):
        y = TOP + ROW * number + ROW // 2
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(_title(timing))}</text>')
        parts += [
            f'<circle cx="{_x(value, ticks[-1]):.1f}" cy="{y}" r="5" fill="{colours[name]}" fill-opacity=".85">'
            f"<title>{escape(ENGINES[name])}: {value:.2f} times the roof</title></circle>"
            for name, value in row.items()
        ]
    return "\n".join([*parts, "</svg>\n"])


def _over_roof(timing: Timing, names: list[str]) -> dict[str, float]:
    top = roof(timing)
    assert top is not None
    return {
        name: sorted(a / b for a, b in zip(timing.seconds[name], top, strict=True))[len(top) // 2]
        for name in names
        if name in timing.seconds
    }


def _x(value: float, most: float) -> float:
    low, high = math.log(0.4), math.log(most * 1.1)
    return LEFT + WIDTH * (math.log(max(value, 0.4)) - low) / (high - low)


def _tick(tick: float, most: float, height: int) -> str:
    x = _x(tick, most)
    colour = "#333" if tick == 1 else "#ddd"
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - 25}" stroke="{colour}"/>'
        f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{tick:g}</text>'
    )


def _legend(colours: dict[str, str]) -> list[str]:
    parts = ['<text x="10" y="18" font-weight="bold">Time over the roof (a copy of the least bytes)</text>']
    for number, (name, colour) in enumerate(colours.items()):
        x, y = 10 + 260 * (number % 4), 34 + 16 * (number // 4)
        parts.append(f'<circle cx="{x + 5}" cy="{y - 4}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 15}" y="{y}">{escape(ENGINES[name])}</text>')
    return parts


def _title(timing: Timing) -> str:
    plural = "s" if timing.threads > 1 else ""
    return f"{timing.case}, {timing.threads} thread{plural}"
