"""One process an engine, and rounds in which every engine has its turn: what disturbs one disturbs all."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cases import Case
from .engines import ENGINES, environment

BENCHMARKS = Path(__file__).parents[1]
PATH = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent / "src")])


class Engine:
    """A process that holds one engine."""

    def __init__(self, name: str, threads: int, clock: str, log: Any) -> None:
        self.name = name
        own = {**os.environ, **environment(threads), "BENCHMARK_CLOCK": clock}
        own["PYTHONPATH"] = os.pathsep.join([PATH, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "speed.worker", name],
            env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip

    def ask(self, verb: str, value: Any = True) -> dict[str, Any] | None:
        """The answer, or None from a process that has ended."""
        try:
            self.process.stdin.write(json.dumps({verb: value}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            return None
        return json.loads(line) if line else None

    def close(self) -> None:
        """Let the process end by itself, and wait for it."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@dataclass
class Timing:
    """One case on so many threads: seconds of a call by engine and round, errors, and why an engine is absent."""

    case: Case
    threads: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float | None] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What to run, and how long: ``budget`` seconds an engine and a round.

    No case is begun after ``minutes``, divided evenly among the numbers of threads; 0 is no limit.
    """

    cases: list[Case]
    engines: list[str]
    threads: tuple[int, ...]
    rounds: int
    budget: float
    clock: str = "wall"
    minutes: float = 0


def run(plan: Plan, log: Path, tell: Callable[[str], None]) -> tuple[list[Timing], dict[str, str]]:
    """All cases there is time for; and the versions of everything that ran."""
    found: list[Timing] = []
    began = time.monotonic()
    versions: dict[str, str] = {}
    for turn, threads in enumerate(plan.threads):
        end = began + plan.minutes * 60 * (turn + 1) / len(plan.threads) if plan.minutes else math.inf
        with ExitStack() as stack:
            stderr = stack.enter_context(log.open("a"))
            engines = [Engine(name, threads, plan.clock, stderr) for name in plan.engines]
            for engine in engines:
                stack.callback(engine.close)
            for number, case in enumerate(plan.cases):
                if time.monotonic() > end:
                    tell(f"{len(plan.cases) - number} cases left out on {threads} threads: {plan.minutes:g} minutes")
                    break
                tell(f"{number + 1}/{len(plan.cases)}, {threads} threads: {case}")
                found.append(_timed(plan, engines, case, threads))
            for engine in engines:
                versions |= (engine.ask("versions") or {}).get("versions", {})
    return found, versions


def _timed(plan: Plan, engines: list[Engine], case: Case, threads: int) -> Timing:
    timing = Timing(case, threads)
    ready = list(_ready(engines, case, timing))
    for _ in range(plan.rounds):
        for engine in ready:
            answer = engine.ask("time", plan.budget)
            if answer is not None:
                timing.seconds.setdefault(engine.name, []).append(answer["seconds"])
    for engine in ready:
        timing.errors[engine.name] = (engine.ask("error") or {}).get("error")
    for engine in engines:
        engine.ask("drop")
    return timing


def _ready(engines: list[Engine], case: Case, timing: Timing) -> Iterator[Engine]:
    for engine in engines:
        answer = engine.ask("prepare", case.as_dict()) or {"ready": False, "reason": "its process has ended"}
        if answer["ready"]:
            yield engine
        else:
            timing.absent[engine.name] = answer["reason"]


def label(engine: str) -> str:
    """What an engine is called in a table."""
    return ENGINES[engine]
