"""How far a long run has come."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

__all__ = ["Progress", "Silent", "Terminal"]

PATIENCE = 1.0
"""Seconds before anything is drawn."""
PERIOD = 0.2
WIDTH = 30


class Progress(Protocol):
    """What is told of a run."""

    def begin(self, text: str, total: int | None) -> None:
        """What will be done, and on how many samples in all; None where that is not known."""
        ...

    def step(self, samples: int) -> None:
        """So many more are done."""
        ...

    def end(self) -> None:
        """The run is over, however it went."""
        ...


class Silent:
    """Tells nobody."""

    def begin(self, text: str, total: int | None) -> None:
        """See `Progress`."""

    def step(self, samples: int) -> None:
        """See `Progress`."""

    def end(self) -> None:
        """See `Progress`."""


class Terminal:
    """A line on stderr; a bar after a second, where stderr is a terminal. It is drawn between batches, by no thread."""

    def __init__(self, to: TextIO | None = None) -> None:
        self._to = to or sys.stderr
        self._total: int | None = None
        self._done = 0
        self._start = self._drawn = time.monotonic()
        self._shown = False

    def begin(self, text: str, total: int | None) -> None:
        """See `Progress`."""
        print(text, file=self._to, flush=True)
        self._total, self._start = total, time.monotonic()

    def step(self, samples: int) -> None:
        """See `Progress`."""
        self._done += samples
        now = time.monotonic()
        if now - self._start < PATIENCE or now - self._drawn < PERIOD or not self._to.isatty():
            return
        self._drawn, self._shown = now, True
        self._to.write(f"\r{self._line(now - self._start)}\x1b[K")
        self._to.flush()

    def end(self) -> None:
        """See `Progress`."""
        if self._shown:
            self._to.write("\r\x1b[K")
            self._to.flush()

    def _line(self, seconds: float) -> str:
        if self._total is None:
            return f"{self._done:,} samples, {seconds:.0f} s"
        share = min(self._done / max(self._total, 1), 1.0)
        bar = "━" * round(WIDTH * share) + "╌" * (WIDTH - round(WIDTH * share))
        left = seconds * (1 - share) / max(share, 1e-9)
        return f"{bar} {share:4.0%} {self._done:,}/{self._total:,} samples, {left:.0f} s left"
