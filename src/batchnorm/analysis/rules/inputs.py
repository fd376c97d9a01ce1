"""Ways in which people feed a model otherwise than it was trained, as changes that would put it right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHANGES", "EXPLAINS", "changed"]

Array = NDArray[Any]
EXPLAINS = 1 / 3
"""Of the gap at most that much is left where a change explains it."""
IMAGENET = (np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32))
"""The mean and standard deviation that models trained on ImageNet in PyTorch subtract and divide by."""

CHANGES: dict[str, tuple[str, str]] = {
    "x / 255": ("it lies a factor of 255 too high (0 to 255 for 0 to 1)", "Divide the input by 255"),
    "x * 255": ("it lies a factor of 255 too low (0 to 1 for 0 to 255)", "Multiply the input by 255"),
    "x / 127.5": ("it lies a factor of 127.5 too high", "Divide the input by 127.5"),
    "x * 127.5": ("it lies a factor of 127.5 too low", "Multiply the input by 127.5"),
    "x / 127.5 - 1": ("it runs from 0 to 255 and should run from -1 to 1", "Feed x/127.5 - 1"),
    "(x + 1) * 127.5": ("it runs from -1 to 1 and should run from 0 to 255", "Feed (x + 1)*127.5"),
    "2 * x - 1": ("it runs from 0 to 1 and should run from -1 to 1", "Feed 2*x - 1"),
    "(x + 1) / 2": ("it runs from -1 to 1 and should run from 0 to 1", "Feed (x + 1)/2"),
    "channels reversed": ("its channels are in the other order (RGB for BGR)", "Reverse the channels"),
    "mean subtracted": ("its mean was not subtracted", "Subtract the training data's mean of each channel"),
    "standardised": (
        "its mean was not subtracted, nor was it divided by its standard deviation",
        "Subtract the training data's mean of each channel and divide by its standard deviation",
    ),
    "ImageNet's mean and deviation": (
        "ImageNet's mean and standard deviation were not applied",
        "Subtract (0.485, 0.456, 0.406) and divide by (0.229, 0.224, 0.225)",
    ),
    "ImageNet's mean and deviation undone": (
        "ImageNet's mean and standard deviation were applied, and it was trained without",
        "Feed the input as it is, without subtracting (0.485, 0.456, 0.406) or dividing by (0.229, 0.224, 0.225)",
    ),
    "x / 255, then ImageNet's mean and deviation": (
        "it runs from 0 to 255 without ImageNet's mean and standard deviation",
        "Divide by 255, subtract (0.485, 0.456, 0.406) and divide by (0.229, 0.224, 0.225)",
    ),
}
"""A change -> what is wrong where it helps, and what to do."""


def changed(x: Array, change: str) -> Array | None:
    """An input with the change applied, in float32; None where it does not apply to such an input."""
    wide = np.asarray(x, np.float32)
    if wide.ndim < 2:
        return None
    return MAKERS[change](wide)


def _affine(factor: float, addend: float = 0.0) -> Callable[[Array], Array]:
    return lambda x: x * np.float32(factor) + np.float32(addend)


def _channel_axis(x: Array) -> int:
    """Where the channels lie: the last axis of tables, sequences and channels-last images."""
    return 1 if x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[-1] not in (1, 3, 4) else -1


def _colours(x: Array) -> bool:
    return x.ndim == 4 and x.shape[_channel_axis(x)] == 3


def _reversed(x: Array) -> Array | None:
    return np.ascontiguousarray(np.flip(x, _channel_axis(x))) if _colours(x) else None


def _others(x: Array) -> tuple[int, ...]:
    kept = _channel_axis(x) % x.ndim
    return tuple(axis for axis in range(x.ndim) if axis != kept)


def _centred(x: Array) -> Array:
    return x - x.mean(axis=_others(x), keepdims=True, dtype=np.float64).astype(np.float32)


def _standardised(x: Array) -> Array:
    sd = x.std(axis=_others(x), keepdims=True, dtype=np.float64).astype(np.float32)
    return _centred(x) / np.where(sd > 0, sd, np.float32(1))


def _imagenet(factor: float) -> Callable[[Array], Array | None]:
    def change(x: Array) -> Array | None:
        if not _colours(x):
            return None
        shape = (3, 1, 1) if _channel_axis(x) == 1 else (3,)
        mean, sd = (each.reshape(shape) for each in IMAGENET)
        return (x * np.float32(factor) - mean) / sd

    return change


def _imagenet_undone(x: Array) -> Array | None:
    if not _colours(x):
        return None
    shape = (3, 1, 1) if _channel_axis(x) == 1 else (3,)
    mean, sd = (each.reshape(shape) for each in IMAGENET)
    return x * sd + mean


MAKERS: dict[str, Callable[[Array], Array | None]] = {
    "x / 255": _affine(1 / 255),
    "ImageNet's mean and deviation undone": _imagenet_undone,
    "x * 255": _affine(255),
    "x / 127.5": _affine(1 / 127.5),
    "x * 127.5": _affine(127.5),
    "x / 127.5 - 1": _affine(1 / 127.5, -1),
    "(x + 1) * 127.5": _affine(127.5, 127.5),
    "2 * x - 1": _affine(2, -1),
    "(x + 1) / 2": _affine(0.5, 0.5),
    "channels reversed": _reversed,
    "mean subtracted": _centred,
    "standardised": _standardised,
    "ImageNet's mean and deviation": _imagenet(1.0),
    "x / 255, then ImageNet's mean and deviation": _imagenet(1 / 255),
}
