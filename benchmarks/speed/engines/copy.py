"""The roof: a copy of the input into the output on all threads, plain or past the caches (``VARIANT = "past"``)."""

from __future__ import annotations

import os

import numpy as np

from . import Prepared, need

VARIANT = ""


def versions() -> dict[str, str]:
    """Whose copy it is."""
    return {"copy": "compiled" if _compiled() else "torch"}


def _compiled() -> bool:
    try:
        from batchnorm.kernels import cpu
    except ImportError:
        return False
    return cpu.available()


def prepare(case, data):
    """Only the bytes count: one copy for every operation; see `Case.passes`."""
    if _compiled():
        from . import copy_kernel

        return copy_kernel.prepare(data.x, bool(VARIANT))
    need(not VARIANT, "no compiled kernels: only the plain copy")
    import torch

    torch.set_num_threads(int(os.environ.get("BENCHMARK_THREADS", "2")))
    x, y = (torch.from_numpy(each.view(np.uint8)) for each in (data.x, np.zeros_like(data.x)))
    return Prepared(lambda: y.copy_(x), None)
