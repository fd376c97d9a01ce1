"""Constant expressions of an ONNX graph, computed; the root of a variance and an epsilon in them is kept in sight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .onnx_graph import Node, Scope, is_standard

__all__ = ["Folded", "Root", "fold"]

SHAPING = ("Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Expand")
FLOATS = ("float64", "float32", "float16", "bfloat16")
MOST_CHANNELS = 1 << 17
MOST_DEPTH = 12
MOST_RANK = 12
LARGEST_EPSILON = 0.1

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Root:
    """``factor/sqrt(variance + epsilon)``, or its inverse before it divides."""

    variance: Array
    epsilon: float
    factor: Array | None = None


@dataclass(frozen=True, slots=True)
class Folded:
    """A constant expression: its value, and the root in it."""

    value: Array
    dtype: str
    sum: Root | None = None  # variance + epsilon
    deviation: Root | None = None  # its root
    inverse: Root | None = None  # what divides


def fold(scope: Scope, name: str, depth: int = 0) -> Folded | None:
    """The value of a constant expression; None where it is none, or larger than the channels of any layer."""
    key = (id(scope), name)
    if key not in scope.folded:
        scope.folded[key] = None
        scope.folded[key] = _folded_value(scope, name, depth)
    return scope.folded[key]


def _folded_value(scope: Scope, name: str, depth: int) -> Folded | None:
    constant = scope.constant(name)
    if constant is not None:
        if constant.size > MOST_CHANNELS or constant.dtype not in FLOATS:
            return None
        return Folded(constant.read().astype(np.float64), constant.dtype)
    found = scope.maker(name)
    if found is None or depth >= MOST_DEPTH or not is_standard(found[1].domain) or not found[1].inputs:
        return None
    inner, node = found
    first = fold(inner, node.inputs[0], depth + 1)
    if first is None:
        return None
    with np.errstate(all="ignore"):
        if node.op in SHAPING:
            return _reshaped(first, inner, node)
        if len(node.inputs) == 1:
            return _unary(node.op, first)
        second = fold(inner, node.inputs[1], depth + 1)
        return None if second is None or len(node.inputs) > 2 else _binary(node.op, first, second)


def _reshaped(given: Folded, scope: Scope, node: Node) -> Folded | None:
    """Only the shapes of (1, C, 1, 1) and the like are told apart, by what the node is asked for."""
    if node.op not in ("Reshape", "Unsqueeze") or len(node.inputs) < 2 or given.value.ndim > 1:
        return given
    asked = scope.constant(node.inputs[1])
    if asked is None or asked.size > MOST_RANK or "int" not in asked.dtype:
        return given
    numbers = [int(each) for each in asked.read().reshape(-1)]
    try:
        shape = np.expand_dims(given.value, tuple(numbers)).shape if node.op == "Unsqueeze" else tuple(numbers)
        return Folded(given.value.reshape(shape), given.dtype, given.sum, given.deviation, given.inverse)
    except ValueError:
        return None


def _unary(op: str, given: Folded) -> Folded | None:
    if op == "Sqrt":
        return Folded(np.sqrt(given.value), given.dtype, deviation=given.sum)
    if op == "Reciprocal":
        return Folded(1 / given.value, given.dtype, inverse=given.deviation)
    return Folded(-given.value, given.dtype) if op == "Neg" else None


def _binary(op: str, left: Folded, right: Folded) -> Folded | None:
    try:
        return _computed(op, left, right)
    except ValueError:  # shapes that do not go together
        return None


def _computed(op: str, left: Folded, right: Folded) -> Folded | None:
    a, b, dtype = left.value, right.value, left.dtype
    if op == "Add":
        return Folded(a + b, dtype, sum=_variance_and_epsilon(left, right))
    if op == "Sub":
        return Folded(a - b, dtype)
    if op == "Mul":
        root = _times(left.inverse, b) or _times(right.inverse, a)
        return Folded(a * b, dtype, inverse=root)
    if op == "Div":
        return Folded(a / b, dtype, inverse=_times(right.deviation, a) or _times(left.inverse, 1 / b))
    if op == "Pow" and b.size == 1 and float(b.reshape(())) in (0.5, -0.5):
        is_inverse = float(b.reshape(())) < 0
        return Folded(a**b, dtype, deviation=None if is_inverse else left.sum, inverse=left.sum if is_inverse else None)
    return None


def _variance_and_epsilon(left: Folded, right: Folded) -> Root | None:
    variance, epsilon = (left, right) if right.value.size == 1 else (right, left)
    if epsilon.value.size != 1:
        return None
    value = float(str(np.dtype(epsilon.dtype).type(epsilon.value.reshape(()))))
    return Root(variance.value, value) if 0 < value <= LARGEST_EPSILON else None


def _times(root: Root | None, factor: Array) -> Root | None:
    if root is None:
        return None
    if factor.size == 1 and float(factor.reshape(())) == 1:
        return root
    return Root(root.variance, root.epsilon, factor if root.factor is None else root.factor * factor)
