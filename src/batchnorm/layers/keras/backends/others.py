"""Backends without gradients (NumPy, OpenVINO): the forward pass alone."""

from __future__ import annotations

from typing import Any

from keras import ops

from batchnorm.layers.keras.apply import Fixed, How, Outputs, forward

COUNTED_IN_STATE = False
CHOOSE: Any = None
XP: Any = ops


def train(how: How, x: Any, gamma: Any, beta: Any, fixed: Fixed) -> Outputs:
    """Normalise with the batch's statistics."""
    return forward(how, x, gamma, beta, fixed)[0]


def compiled(step: Any) -> Any:
    """``step`` as it is."""
    return step


def once(batch: Any) -> Any:
    """``batch``: nothing is computed a second time."""
    return batch


def collectives() -> tuple[None, None]:
    """No replicas."""
    return None, None
