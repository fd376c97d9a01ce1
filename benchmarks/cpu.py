"""Batch normalization on the CPU: batchnorm beside torch, torch.compile, JAX, TensorFlow, onnxruntime and NumPy.

    python benchmarks/cpu.py --short            two minutes or so
    python benchmarks/cpu.py                    every layer of the matrix, every variant of two of them
    python benchmarks/cpu.py --all              every variant of every layer: hours
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
    which.add_argument("--all", action="store_true", help="every combination of the matrix")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--match", action="append", default=[], help="only cases whose name has all these words in it")
    parser.add_argument("--threads", type=int, nargs="+", help="default: one and all; with --short: all")
    parser.add_argument("--rounds", type=int, help="default: 21; with --short: 7")
    parser.add_argument("--budget", type=float, default=0.03, help="seconds an engine and a round")
    parser.add_argument(
        "--clock", choices=("wall", "processor"), default="wall",
        help="processor: what other programs take does not count; with one thread only",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "out")
    return parser.parse_args()


def planned(given: argparse.Namespace) -> runner.Plan:
    """What the command line asks for."""
    chosen = cases.short() if given.short else cases.everything() if given.all else cases.long()
    chosen = [case for case in chosen if all(word in str(case) for words in given.match for word in words.split())]
    most = len(os.sched_getaffinity(0))
    threads = tuple(given.threads or ([most] if given.short else sorted({1, most})))
    return runner.Plan(
        chosen, given.engines, threads, given.rounds or (7 if given.short else 21), given.budget, given.clock
    )


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
