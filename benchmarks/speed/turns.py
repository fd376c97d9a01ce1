"""Calls that take turns, so that a busy machine is unfair to none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

WARM = 5
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def turns(calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Milliseconds of each call in each round, by the clock that the environment's CLOCK names; "wall" if none.

    The processor's clock counts all threads, and leaves out what other programs took.
    """
    clock = CLOCKS[os.environ.get("CLOCK", "wall")]
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + WARM):
        for call, record in zip(calls, times, strict=True):
            begin = clock()
            call()
            if turn >= WARM:
                record.append(1e3 * (clock() - begin))
    return times
