"""A call of a Keras model that leaves its variables and the random state as they were, also after an error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import Any, cast

import numpy as np

from batchnorm.errors import ArgumentError, BatchnormError

from .randomness import random_state_kept
from .session import printable

__all__ = ["called", "same_variables"]


@contextlib.contextmanager
def same_variables(model: Any) -> Generator[None]:
    """What a run may write to, statistics and states of random generators, holds the same bits after it."""
    keras: Any = sys.modules["keras"]
    trainable = {id(variable) for variable in model.trainable_variables}
    held = [variable for variable in model.variables if id(variable) not in trainable]
    tracker: Any = getattr(sys.modules.get("keras.src.backend.common.global_state"), "GLOBAL_STATE_TRACKER", None)
    drawn: Any = getattr(tracker, "global_seed_generator", None)  # of layers without a generator of their own
    kept = [(each, np.array(keras.ops.convert_to_numpy(each))) for each in (*held, *([drawn.state] if drawn else []))]
    try:
        yield
    finally:
        for variable, before in kept:
            if np.array(keras.ops.convert_to_numpy(variable)).tobytes() != before.tobytes():
                variable.assign(before)


def called(model: Any, inputs: Any) -> Any:
    """The model's outputs in inference mode.

    Raises
    ------
    ArgumentError
        Keras refuses the input, or a layer fails; their own words are in the message.
    """
    try:
        with random_state_kept():
            return model(inputs, training=False)
    except BatchnormError:
        raise
    except Exception as error:
        shapes = ", ".join(str(array.shape) for array in _listed(inputs))
        raise ArgumentError(
            f"{model.name}: Keras refuses an input of shape {shapes} ({type(error).__name__}: {printable(error)})"
        ) from error


def _listed(inputs: Any) -> list[Any]:
    if isinstance(inputs, dict):
        return list(cast("dict[Any, Any]", inputs).values())
    return cast("list[Any]", inputs) if isinstance(inputs, list) else [inputs]
