"""The constructor's arguments that only the Keras layer has; every message names the layer, the value, the way out."""

from __future__ import annotations

from typing import Any

import keras

from batchnorm.errors import ArgumentError
from batchnorm.layers import arguments

__all__ = ["check_initial", "check_parts", "check_synchronized"]


def check_initial(statistics: str, mean: Any, variance: Any, who: str) -> None:
    """Debiasing takes 0 and 1 out of the averages, so that is what they must start from."""
    if statistics == "debiased" and not (
        isinstance(mean, keras.initializers.Zeros) and isinstance(variance, keras.initializers.Ones)
    ):
        raise ArgumentError(
            f"{who}: statistics='debiased' takes the initial values 0 and 1 out of the moving statistics, so "
            "moving_mean_initializer must be 'zeros' and moving_variance_initializer 'ones'; got "
            f"{type(mean).__name__} and {type(variance).__name__}. Leave them at their defaults, or pass "
            "statistics='moving'."
        )


def check_parts(size: Any, axis: int | tuple[int, ...], synchronized: bool, who: str) -> int | None:
    """A whole number of samples, of which each part of a batch is made; None takes the batch as a whole."""
    size = arguments.positive_int_or_none(who, "virtual_batch_size", size)
    if size is not None and synchronized:
        raise ArgumentError(
            f"{who}: virtual_batch_size splits a batch and synchronized joins batches; got both, "
            f"virtual_batch_size={size} and synchronized=True. Pass one of them."
        )
    if size is not None and 0 in (axis if isinstance(axis, tuple) else (axis,)):
        raise ArgumentError(
            f"{who}: virtual_batch_size splits axis 0, which holds the channels here (axis={axis}). Put the samples "
            "on axis 0, or leave virtual_batch_size out."
        )
    return size


def check_synchronized(synchronized: Any, backend: str, who: str) -> bool:
    """Possible where there are replicas to join."""
    if synchronized and backend not in ("tensorflow", "torch", "jax"):
        raise ArgumentError(
            f"{who}: synchronized must be False on the {backend} backend; got {synchronized!r}. It joins the replicas "
            "of TensorFlow or PyTorch, and is how JAX works anyway."
        )
    return bool(synchronized)
