"""The process of one engine: ``python -m speed.worker ENGINE``. One JSON object a line in, one out.

``{"prepare": case}`` -> ``{"ready": true}`` or ``{"ready": false, "reason": ...}``; ``{"time": seconds}`` ->
``{"seconds": of one call}``; ``{"error": true}`` -> ``{"error": of the output}``; ``{"versions": true}``;
``{"drop": true}``.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

from . import data
from .cases import Case, data_of, from_dict
from .engines import Prepared, Unsupported

SAMPLES = 5
CLOCK = time.process_time if os.environ.get("BENCHMARK_CLOCK") == "processor" else time.perf_counter
"""Processor time leaves out what other programs on a busy machine take; it is the time of one thread, or of all."""


class Worker:
    """An engine, and the case it is ready for."""

    def __init__(self, engine: str) -> None:
        name, _, variant = engine.partition(":")
        self.engine = importlib.import_module(f"speed.engines.{name}")
        if variant:
            self.engine.VARIANT = variant
        self.ready: Prepared | None = None
        self.case: Case | None = None
        self.given: data.Data | None = None
        self.of: tuple[object, ...] | None = None

    def prepare(self, case: dict[str, Any]) -> dict[str, Any]:
        """Lay out the data and compile; the first call of it is made here."""
        self.case = from_dict(case)
        if self.of != data_of(self.case):
            self.given, self.of = None, None  # room for the next
            self.given, self.of = data.make(self.case), data_of(self.case)
        try:
            self.ready = self.engine.prepare(self.case, self.given)
            self.ready.call()
        except Unsupported as reason:
            return {"ready": False, "reason": str(reason)}
        except Exception as failure:  # one engine that cannot must not end the run for the others
            traceback.print_exc()
            return {"ready": False, "reason": f"{type(failure).__name__}: {str(failure)[:200]}"}
        return {"ready": True}

    def time(self, budget: float) -> dict[str, Any]:
        """Seconds of one call: the fastest of some samples that together take about ``budget``.

        The first call, with caches that the other engines have emptied and threads asleep, does not count.
        """
        call = self.ready.call
        call()
        once = _seconds(call, 1)
        calls = max(1, int(budget / SAMPLES / max(once, 1e-7)))
        count = max(2, min(SAMPLES, int(budget / (calls * once)))) if calls == 1 else SAMPLES
        return {"seconds": min(_seconds(call, calls) for _ in range(count))}

    def error(self, _: Any) -> dict[str, Any]:
        """How far the output is off; None where the engine only copies."""
        if self.ready.result is None:
            return {"error": None}
        return {"error": data.error(self.case, self.given, self.ready.result())}

    def versions(self, _: Any) -> dict[str, Any]:
        """Of what the engine runs on; nothing where it is not installed."""
        try:
            return {"versions": self.engine.versions()}
        except ImportError:
            return {"versions": {}}

    def drop(self, _: Any) -> dict[str, Any]:
        """Free the case's memory, but for the data: the next case may be about the same."""
        self.ready = self.case = None
        gc.collect()
        return {}


def _seconds(call: Any, calls: int) -> float:
    started = CLOCK()
    for _ in range(calls):
        call()
    return (CLOCK() - started) / calls


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints must not end up between the answers
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        ((verb, value),) = json.loads(line).items()
        answers.write(json.dumps(getattr(worker, verb)(value)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
