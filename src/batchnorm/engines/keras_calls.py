"""What a Keras layer is called with: another ``call`` for the time of a run, and the masks that a model makes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.protocols import Masked

__all__ = ["mask_of", "padding_seen", "replaced_call"]


@contextlib.contextmanager
def replaced_call(layer: Any, call: Callable[..., Any]) -> Generator[None]:
    """For the time of a run another ``call`` of one layer; its class and its other instances stay as they are."""
    own = cast("dict[str, Any]", vars(layer)).get("call")
    # Straight into the instance: Keras' own __setattr__ tracks and locks what it is given.
    object.__setattr__(layer, "call", call)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(layer, "call")
        else:
            object.__setattr__(layer, "call", own)


def mask_of(given: tuple[Any, ...], named: dict[str, Any], array_of: Callable[[Any], Any]) -> NDArray[Any] | None:
    """The mask among the arguments of a batch normalization's ``call(inputs, training=None, mask=None)``."""
    mask = named.get("mask", given[2] if len(given) > 2 else None)
    return None if mask is None else np.asarray(array_of(mask), bool)


@contextlib.contextmanager
def padding_seen(model: Any, captured: Masked, array_of: Callable[[Any], Any]) -> Generator[None]:
    """For the time of a run, note which positions the model's own masks leave out.

    Keras destroys a mask in layers that do not know it (convolutions, Flatten), so that what reaches a batch
    normalization does not tell.
    """
    with contextlib.ExitStack() as stack:
        for layer in model._flatten_layers(include_self=False, recursive=True):
            if type(layer).__name__ == "Masking" or getattr(layer, "mask_zero", False):
                stack.enter_context(_noted(layer, captured, array_of))
        yield


def _noted(layer: Any, captured: Masked, array_of: Callable[[Any], Any]) -> AbstractContextManager[None]:
    original: Callable[..., Any] = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        mask = np.asarray(array_of(layer.compute_mask(args[0] if args else kwargs["inputs"])), bool)
        if captured.padding is None or captured.padding.shape == mask.shape:
            captured.padding = mask if captured.padding is None else captured.padding & mask
        return original(*args, **kwargs)

    return replaced_call(layer, call)
