"""What list and explain cost as whole processes, beside importing Keras.

    python benchmarks/startup.py [--rounds 7]

Each round runs every command once, so that a busy machine is busy for all of them; medians over the rounds, after one
round that is not counted. Prints the share of ``KERAS_BACKEND=tensorflow python -c "import keras"``; the exit status is
1 if a share is over 0.15 or a command brought a framework along.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOAL = 0.15
FRAMEWORKS = ("keras", "tensorflow", "torch", "jax", "flax", "h5py")
PLAIN = [sys.executable, "-c", "pass"]
KERAS = [sys.executable, "-c", "import keras"]
COMMANDS = {
    "list digits.keras": ["list", "examples/digits.keras"],
    "explain digits.keras": ["explain", "examples/digits.keras"],
    "explain question.keras --x 1,5": ["explain", "examples/question.keras", "--x", "1,5", "--expect", "-1,1"],
}
CHECK = f"""
import sys
from batchnorm.cli import run
status = run(sys.argv[1:])
found = sorted(set({FRAMEWORKS!r}) & set(sys.modules))
sys.exit(f"imports {{found}}" if found or status else 0)
"""


def environment() -> dict[str, str]:
    """The package of this checkout; TensorFlow on the CPU, and quiet."""
    own = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | own | {"PYTHONPATH": str(ROOT / "src")}


def seconds(command: list[str]) -> float:
    """Wall-clock time of one whole process."""
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, check=True)
    return time.perf_counter() - started


def measured(rounds: int) -> dict[str, list[float]]:
    """Times of every command, one of each a round."""
    commands = {"import keras": KERAS, "python -c pass": PLAIN}
    commands |= {name: [sys.executable, "-m", "batchnorm", *words] for name, words in COMMANDS.items()}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            taken = seconds(command)
            if number:
                times[name].append(taken)
    return times


def light(words: list[str]) -> bool:
    """Whether a command ends with no framework imported."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *words], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"batchnorm {' '.join(words)}: {done.stderr.strip()}")
    return done.returncode == 0


def main() -> int:
    """Measure, print, and say whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    times = measured(parser.parse_args().rounds)
    whole = statistics.median(times["import keras"])
    met = True
    print(f"{'process':32} {'median':>9} {'fastest':>9} {'of import keras':>16}")
    for name, taken in times.items():
        share = statistics.median(taken) / whole
        missed = name in COMMANDS and share > GOAL
        met = met and not missed
        print(
            f"{name:32} {statistics.median(taken):8.3f}s {min(taken):8.3f}s {share:15.3f}{' > 0.15' if missed else ''}"
        )
    unasked = [name for name, words in COMMANDS.items() if not light(words)]
    return 0 if met and not unasked else 1


if __name__ == "__main__":
    sys.exit(main())
