"""Backends without gradients (NumPy, OpenVINO): the forward pass alone."""

from __future__ import annotations

from typing import Any

from keras import ops

from batchnorm.layers.keras.apply import Fixed, How, Outputs, forward

COUNTED_IN_STATE = False
CHOOSE: Any = None


def train(how: How, x: Any, gamma: Any, beta: Any, fixed: Fixed) -> Outputs:
    """Normalise with the batch's statistics."""
    return forward(how, x, gamma, beta, fixed)[0]


def updated(update: Any, rule: Any, state: Any, batch: Any) -> Any:
    """``update`` of `core.training` over `keras.ops`."""
    return update(ops, rule, state, batch)


def collectives() -> tuple[None, None]:
    """No replicas."""
    return None, None
