"""Padding in an ONNX graph that is recalibrated: masks are inputs of it, one for each call of a layer."""

# pyright: reportUnknownMemberType=false
# onnx' messages are generated, and have no types.

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.padding import LeftOut, Told
from batchnorm.errors import Refused

from .calls import not_along
from .onnx_namespace import Builder, Value

__all__ = ["Shapes", "along", "counted", "empty", "masks_of", "require_masks"]

OLDEST_MASKED = 11
"""The first operator set with CumSum, by which the first counted element is found."""
Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[Shape]]
"""Layer -> the shape of its input at each of its calls."""


def require_masks(path: str, opset: int, told: Told | None) -> None:
    """A graph that can leave padding out.

    Raises
    ------
    Refused
        Its operators are too old.
    """
    if told is not None and opset < OLDEST_MASKED:
        raise Refused(
            f"recalibrate: {path}: its operators are those of version {opset}, and leaving padding out takes "
            f"{OLDEST_MASKED} or newer. Convert it with onnx.version_converter, or take mask or lengths out of "
            "the data."
        )


def along(told: Told | None, shapes: Shapes) -> frozenset[str] | None:
    """The layers along whose inputs the padding lies in all their calls."""
    if told is None:
        return None
    return frozenset(name for name, calls in shapes.items() if all(_at(told, shape) is not None for shape in calls))


def masks_of(left_out: LeftOut | None, shapes: Shapes, layers: Collection[str]) -> dict[str, NDArray[np.bool_]]:
    """Name of an input -> what counts of a call's input, for those of the layers whose padding is left out.

    Raises
    ------
    Refused
        It does not lie along the input of one of them.
    """
    found: dict[str, NDArray[np.bool_]] = {}
    for name in () if left_out is None else sorted(left_out.layers & set(layers)):
        for call, shape in enumerate(shapes[name]):
            mask = _at(left_out.told, shape)  # type: ignore[union-attr]
            if mask is None:
                raise not_along(name, shape)
            found[f"{name}:{call}:kept"] = mask
    return found


def _at(told: Told, shape: Shape) -> NDArray[np.bool_] | None:
    """The mask at the rank of an input, whose channels are on axis 1."""
    mask = told.at((shape[0], *shape[2:]))
    return None if mask is None else np.expand_dims(mask, 1)


def empty(masks: Mapping[str, NDArray[np.bool_]]) -> set[str]:
    """The layers of which a call gets nothing but padding."""
    return {name.rpartition(":")[0].rpartition(":")[0] for name, mask in masks.items() if not mask.any()}


def counted(onnx: Any, graph: Any, builder: Builder, name: str, rank: int) -> tuple[Value, Value, Value]:
    """A mask as a new input of the graph: itself, how many elements of each channel it counts, and their divisor."""
    graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, [None] * rank))
    mask = Value(builder, name, rank)
    number = builder.sum(builder.where(mask, 1, 0), axis=tuple(range(rank)), keepdims=True)
    flat = Value(builder, builder.node("Reshape", [number.name, builder.constant([], np.int64)]), 0)
    return mask, flat, Value(builder, builder.node("Max", [flat.name, builder.constant(1)]), 0)
