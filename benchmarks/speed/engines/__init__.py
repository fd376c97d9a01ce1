"""One adapter a rival: ``prepare(case, data)``, ``versions()``, and ``environment(threads)`` for its process.

An adapter takes its library in as it comes from its users' hands: the fastest public way to run the operation that
writes into given memory (``buffers="out"``), and the usual call that returns a new array (``"allocated"``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

ENGINES = {
    "copy": "a plain copy",
    "copy:past": "a copy past the caches",
    "ours": "batchnorm's kernels",
    "ours_torch": "batchnorm.torch",
    "numpy_core": "batchnorm on NumPy alone",
    "torch_eager": "torch, eager",
    "torch_compiled": "torch.compile",
    "jax_jit": "JAX, jit",
    "tensorflow_fused": "TensorFlow's fused operation",
    "onnx_runtime": "onnxruntime",
}
"""Adapters (with a variant after a colon), and what each one stands for."""
ROOF = ("copy", "copy:past")


class Unsupported(Exception):
    """The engine has no such operation."""


class Prepared(NamedTuple):
    """``call()`` runs the operation once and waits for it; ``result()`` gives its output as it lies in memory."""

    call: Callable[[], Any]
    result: Callable[[], np.ndarray] | None


def environment(threads: int) -> dict[str, str]:
    """Variables that hold every engine to so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC")
    return dict.fromkeys((*names, "BENCHMARK_THREADS"), str(threads))


def need(condition: bool, reason: str) -> None:
    """Raise `Unsupported` with the reason unless the condition holds."""
    if not condition:
        raise Unsupported(reason)
