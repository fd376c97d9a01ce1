"""A process that computes batch normalization in one framework: ``python -m batchnorm.engines.worker PROCESS``.

It reads one JSON object a line, ``{"engine", "inputs", "outputs", "epsilon", "axis"}``, computes what the .npz file
``inputs`` holds, writes the .npy file ``outputs`` and answers with one line: ``{"version"}``, or ``{"error"}``. Nothing
is pickled. What the framework prints goes to stderr: stdout is for the answers.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any, TextIO

import numpy as np

from .norms import ENGINES, Engine, NormCall

__all__ = ["main"]

ARRAYS = ("gamma", "beta", "mean", "variance")
LONGEST = 300


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        _say(answers, _answer(json.loads(line)))


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    engine = ENGINES[asked["engine"]]
    try:
        y = compute(engine, _read(asked))
        np.save(asked["outputs"], y, allow_pickle=False)
        return {"version": version(engine)}
    except Exception as error:  # whatever an engine raises is the answer, not the end of the process
        text = " ".join(str(error).split())[:LONGEST]
        return {"error": f"{type(error).__name__}: {text}" if text else type(error).__name__}


def _read(asked: dict[str, Any]) -> NormCall:
    with np.load(asked["inputs"], allow_pickle=False) as held:
        arrays = {name: held[name] if name in held.files else None for name in ARRAYS}
        return NormCall(x=held["x"], **arrays, epsilon=asked["epsilon"], axis=asked["axis"])  # pyright: ignore[reportArgumentType]


def compute(engine: Engine, call: NormCall) -> Any:
    """The output of one engine, computed in this process."""
    module, _, function = engine.place.partition(":")
    return getattr(importlib.import_module(f".norms.{module}", __package__), function)(call)


def version(engine: Engine) -> str:
    """The version of an engine's package, as the imported package says it; Keras with its backend."""
    found = importlib.import_module(engine.packages[0])
    text = str(getattr(found, "__version__", "unknown"))
    if engine.packages[0] != "keras":
        return text
    backend = found.backend.backend()
    return f"{text}, {backend} {getattr(importlib.import_module(backend), '__version__', 'unknown')}"


if __name__ == "__main__":
    main()
