"""Batch normalization on the CPU: batchnorm beside torch, torch.compile, JAX, TensorFlow, onnxruntime and NumPy.

    python benchmarks/cpu.py --short                two minutes or so on a quiet machine
    python benchmarks/cpu.py                        what the goals are about, then every layer of the matrix, then every
                                                    variant of two of them: until the 20 minutes are over
    python benchmarks/cpu.py --minutes 0            all of it: hours, most of them the variants
    python benchmarks/cpu.py --subset table         what the goals are about; also: plain, crossed, all
    python benchmarks/cpu.py --engines ours torch_eager --match "8x64x56x56 first"

Every engine has a process of its own, and in every round each of them has its turn. What is quoted are ratios of times
within one round, and their median over the rounds: to the roof, which is the faster of a plain copy and one past the
caches, of the bytes that the operation must touch at least once; and to ours. Errors are against float64.

Prints tables in Markdown; writes cpu.json, cpu.md and cpu.svg under --output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from speed import cases, machine, plot, runner, summary, tables
from speed.engines import ENGINES


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--short", action="store_true", help="a few cases, few rounds")
    which.add_argument("--subset", choices=list(cases.SUBSETS), default="long", help="which cases (default: long)")
    parser.add_argument("--minutes", type=float, help="begin no case after so many; 0: no limit; default: 20")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--match", action="append", default=[], help="only cases whose name has all these words in it")
    parser.add_argument("--threads", type=int, nargs="+", help="default: one and all; with --short: all")
    parser.add_argument("--rounds", type=int, help="default: 11; with --short: 5")
    parser.add_argument("--budget", type=float, default=0.03, help="seconds an engine and a round")
    parser.add_argument(
        "--clock", choices=("wall", "processor"), default="wall",
        help="processor: what other programs take does not count; with one thread only",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "out")
    return parser.parse_args()


def planned(given: argparse.Namespace) -> runner.Plan:
    """What the command line asks for."""
    chosen = cases.SUBSETS["short" if given.short else given.subset]()
    chosen = [case for case in chosen if all(word in str(case) for words in given.match for word in words.split())]
    most = len(os.sched_getaffinity(0))
    threads = tuple(given.threads or ([most] if given.short else sorted({1, most})))
    rounds = given.rounds or (5 if given.short else 11)
    minutes = 20 if given.minutes is None else given.minutes
    return runner.Plan(chosen, given.engines, threads, rounds, given.budget, given.clock, minutes)


def main() -> None:
    """See the module."""
    given = arguments()
    plan = planned(given)
    given.output.mkdir(parents=True, exist_ok=True)
    began, before = time.perf_counter(), machine.load()

    def tell(line: str) -> None:
        print(f"{time.perf_counter() - began:5.0f} s  {line}", file=sys.stderr)

    log = given.output / "cpu.log"
    log.write_text("")
    timings, versions = runner.run(plan, log, tell)
    where = machine.describe() | {"load": [before, machine.load()]}
    how = {
        "rounds": plan.rounds,
        "minutes": {"allowed": plan.minutes, "taken": (time.perf_counter() - began) / 60},
        "left out": len(plan.cases) * len(plan.threads) - len(timings),
        "budget": plan.budget,
        "clock": plan.clock,
        "engines": plan.engines,
        "threads": plan.threads,
    }
    text = "\n".join(tables.tables(timings)) + "\n"
    document = summary.document(timings, where, versions, how)
    (given.output / "cpu.json").write_text(json.dumps(document, indent=1) + "\n")
    (given.output / "cpu.md").write_text(text)
    (given.output / "cpu.svg").write_text(plot.svg(timings))
    print(text)
    print(f"Details, picture and what the engines said: {given.output}/cpu.json, cpu.svg, cpu.log", file=sys.stderr)


if __name__ == "__main__":
    main()
