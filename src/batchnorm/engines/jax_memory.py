"""Arrays of JAX as this processor's memory, for Keras on JAX and for Flax; JAX is not imported for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["memory_of_jax"]


def memory_of_jax(x: Any) -> NDArray[Any] | None:
    """An array's numbers where they lie, shared; None where they lie on another device, or on several."""
    devices = x.devices()
    if len(devices) != 1 or next(iter(devices)).platform != "cpu":
        return None
    return np.asarray(x)
