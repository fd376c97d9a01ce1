"""Engines as a caller sees them: compute here or in a worker, one process a framework, each started once."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import batchnorm

from .norms import BACKENDS, ENGINES, Array, Engine, NormCall, backend_of_ops
from .worker import ARRAYS, compute, version

__all__ = ["EngineFailed", "Workers"]

TIMEOUT = 300.0
"""Seconds for one answer; the first includes the import of the framework, a minute on a slow disk."""
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
LAST_WORDS = 300


class EngineFailed(Exception):
    """An engine gave no result; the message is why, in a line."""


class Workers:
    """The processes of one verification; a context manager that ends them.

    Parameters
    ----------
    timeout : float
        Seconds that an engine may take for one answer before its process is ended.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self.versions: dict[str, str] = {}
        self._processes: dict[str, Worker] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="batchnorm-")
        self._held: NormCall | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._processes.values():
            worker.end()
        self._folder.cleanup()

    def compute(self, name: str, call: NormCall) -> Array:
        """The output of the engine ``name``.

        Raises
        ------
        EngineFailed
            It raised an error, died, or took longer than the timeout. A process that died is started anew for the next
            engine that it serves.
        """
        engine = ENGINES[name]
        if engine.process is None:
            self.versions[name] = version(engine) if name != "reference" else batchnorm.__version__
            return compute(engine, call)
        place = Path(self._folder.name)
        if self._held is not call:  # one file of inputs serves all engines
            arrays = {key: getattr(call, key) for key in ("x", *ARRAYS) if getattr(call, key) is not None}
            np.savez(place / "inputs.npz", allow_pickle=False, **arrays)
            self._held = call
        asked = {"engine": name, "inputs": str(place / "inputs.npz"), "outputs": str(place / "outputs.npy")}
        self.versions[name] = self._ask(engine, asked | {"epsilon": call.epsilon, "axis": call.axis})
        return np.load(place / "outputs.npy", allow_pickle=False)

    def _ask(self, engine: Engine, asked: dict[str, Any]) -> str:
        process = backend_of_ops() if engine.name == "keras-ops" else engine.process
        assert process is not None
        worker = self._processes.get(process)
        if worker is None:
            worker = self._processes[process] = Worker(process)
        try:
            answer = worker.ask(asked, self.timeout)
        except EngineFailed:
            worker.end()
            del self._processes[process]
            raise
        if "error" in answer:
            raise EngineFailed(str(answer["error"]))
        return str(answer["version"])


class Worker:
    """One process of `batchnorm.engines.worker`."""

    def __init__(self, framework: str) -> None:
        self._errors = tempfile.TemporaryFile()
        # -P: a torch.py in the current directory is not PyTorch.
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, a module of this package
            [sys.executable, "-P", "-m", "batchnorm.engines.worker", framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=_environment(framework),
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, asked: dict[str, Any], timeout: float) -> dict[str, Any]:
        """One question and its answer; `EngineFailed` if the process dies or stays silent."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a process that is gone answers with an empty line
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise EngineFailed(f"no answer within {timeout:g} seconds; its process was ended") from None
        if not line:
            raise EngineFailed(f"its process died with exit status {self._process.wait()}{self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1].strip()[:LAST_WORDS]}" if lines else ""

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._errors.close()


def _environment(framework: str) -> dict[str, str]:
    source = str(Path(batchnorm.__file__).parents[1])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**QUIET, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if framework in BACKENDS:
        environment["KERAS_BACKEND"] = framework
    return environment | {"JAX_ENABLE_X64": "true"}  # without it JAX computes float64 in float32
