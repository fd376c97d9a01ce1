"""Random state that is left as it was: loading a model draws initial values, which then are replaced."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Generator
from typing import Any

import numpy as np

__all__ = ["random_state_kept"]


@contextlib.contextmanager
def random_state_kept() -> Generator[None]:
    """Restore the random state of Python, NumPy and, where it is loaded, PyTorch, also after an error."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is what could change
    torch: Any = sys.modules.get("torch")
    own: Any = torch.get_rng_state() if hasattr(torch, "get_rng_state") else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        if own is not None:
            torch.set_rng_state(own)
