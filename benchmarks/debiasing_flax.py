"""Accuracy in inference mode during the first steps of a training, by kind of statistics: a table of CONVENTIONS.md."""

from __future__ import annotations

import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "layers" / "scripts"))

from flax import nnx
from flax_digits import train

from batchnorm.flax import BatchNorm

STEPS = (1, 5, 20, 50, 100, 200)


def main() -> None:
    """Print the rows."""
    kinds = {".99, moving (Flax' own)": nnx.BatchNorm}
    for statistics in ("moving", "debiased", "cumulative"):
        kinds[f".99, {statistics}"] = functools.partial(BatchNorm, statistics=statistics)
    for statistics in ("moving", "debiased"):
        kinds[f".9, {statistics}"] = functools.partial(BatchNorm, statistics=statistics, momentum=0.9)
    for name, norm in kinds.items():
        _, accuracies = train(norm, max(STEPS), at=STEPS)
        print(f"| {name} | " + " | ".join(f"{accuracies[step]:.1%}" for step in STEPS) + " |")


if __name__ == "__main__":
    main()
