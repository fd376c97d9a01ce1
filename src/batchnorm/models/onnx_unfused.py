"""Batch normalization that an exporter wrote as arithmetic: Sub, Mul, Div and Add with one constant a channel.

What the graph still spells out is known: the root of a variance and an epsilon, a mean that is subtracted. What was
folded into one constant is not, and the record says so by leaving it out. The patterns are kept narrow, because
scaling by channel is also what layer normalization, group normalization and the scaling of an image end in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord

from .onnx_folding import Folded, Root, fold
from .onnx_graph import Node, Scope, is_standard

__all__ = ["unfused_record"]

LETTERS = {"Sub": "S", "Mul": "M", "Div": "D", "Add": "A"}
PATTERN = re.compile("S[MD]{1,3}A?|[MD]{1,2}[AS]")
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv")
PASSING = ("Identity", "Cast", "Transpose")
NAMED = re.compile(r"batch_?norm|(^|[/_.])bn\d*($|[/_.])", re.IGNORECASE)
MOST_DEPTH = 12
MOST_CHAIN = 8

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a value with a constant."""

    letter: str
    node: Node
    x: str
    constant: Folded
    name: str


def unfused_record(scope: Scope, node: Node) -> tuple[LayerRecord, str, str] | None:
    """The batch normalization that begins with this node, its input and its output; None where there is none."""
    if node.op not in LETTERS:
        return None
    chain = _chain(scope, node)
    found = PATTERN.match("".join(step.letter for step in chain))
    if found is None or _continues(scope, node):
        return None
    steps = chain[: found.end()]
    record = _with_mean(scope, steps) if steps[0].letter == "S" else _folded(scope, steps)
    return None if record is None else (record, steps[0].x, steps[-1].node.outputs[0])


def _continues(scope: Scope, node: Node) -> bool:
    """Whether a chain that began earlier has taken this node in."""
    step = _step(scope, node)
    before = None if step is None else scope.graph.makers.get(step.x)
    seen = 0
    while before is not None and seen < MOST_CHAIN:
        seen += 1
        chain = _chain(scope, before)
        found = PATTERN.match("".join(each.letter for each in chain))
        if found is not None and any(each.node is node for each in chain[: found.end()]):
            return True
        if not chain:
            return False
        before = scope.graph.makers.get(chain[0].x)
    return False


def _chain(scope: Scope, node: Node) -> list[Step]:
    """The operations with constants that begin with a node and feed only each other."""
    chain: list[Step] = []
    at: Node | None = node
    while at is not None and len(chain) < MOST_CHAIN:
        step = _step(scope, at)
        if step is None or (chain and step.x != chain[-1].node.outputs[0]):
            break
        chain.append(step)
        users = scope.graph.users(at.outputs[0])
        at = users[0] if len(users) == 1 and at.outputs[0] not in scope.graph.outputs else None
    return chain


def _step(scope: Scope, node: Node) -> Step | None:
    if node.op not in LETTERS or not is_standard(node.domain) or len(node.inputs) != 2 or not node.outputs:
        return None
    left, right = (fold(scope, name) for name in node.inputs)
    if (left is None) == (right is None) or (left is not None and node.op in ("Sub", "Div")):
        return None
    constant = left if left is not None else right
    assert constant is not None
    at = 1 if left is None else 0
    return Step(LETTERS[node.op], node, node.inputs[1 - at], constant, node.inputs[at])


def _with_mean(scope: Scope, steps: list[Step]) -> LayerRecord | None:
    """``(x - mean)*scale + beta``."""
    root = _root(steps)
    if root is None and not _is_named(steps) and _reaches_input(scope, steps[0].x):
        return None  # the scaling of an image
    beta = steps[-1].constant.value if steps[-1].letter == "A" else None
    return _record(scope, steps, steps[0].constant.value, beta, root)


def _folded(scope: Scope, steps: list[Step]) -> LayerRecord | None:
    """``x*scale + shift``, where mean and beta may still be told apart in the constant expression of the shift."""
    root = _root(steps)
    if root is not None:
        parts = _parts_of_shift(scope, steps)
        if parts is not None:
            return _record(scope, steps, parts[0], parts[1], root)
    both_vectors = all(step.constant.value.size > 1 for step in (steps[0], steps[-1]))
    if not both_vectors or not (_is_named(steps) or _follows_linear(scope, steps[0].x)):
        return None
    shift = steps[-1].constant.value
    return _record(scope, steps, None, -shift if steps[-1].letter == "S" else shift, None)


def _parts_of_shift(scope: Scope, steps: list[Step]) -> tuple[Array, Array | None] | None:
    """Mean and beta of a shift that is written ``beta - mean*scale``."""
    found = scope.maker(steps[-1].name)
    beta: Array | None = None
    if found is not None and found[1].op == "Sub" and steps[-1].letter == "A":
        left = fold(found[0], found[1].inputs[0])
        beta = None if left is None else left.value
        found = found[0].maker(found[1].inputs[1])
    elif steps[-1].letter != "S":
        return None
    if found is None or found[1].op != "Mul" or len(found[1].inputs) != 2:
        return None
    scale = _scale(steps)
    factors = [fold(found[0], name) for name in found[1].inputs]
    for mean, other in (factors, factors[::-1]):
        if mean is not None and other is not None and np.array_equal(np.ravel(other.value), np.ravel(scale)):
            return mean.value, beta
    return None


def _record(
    scope: Scope, steps: list[Step], mean: Array | None, beta: Array | None, root: Root | None
) -> LayerRecord | None:
    arrays = {"beta": beta, "moving_mean": mean}
    if root is None:
        arrays["gamma"] = _scale(steps)
    else:
        arrays |= {"moving_variance": root.variance, "gamma": root.factor}
    shapes = [array.shape for array in arrays.values() if array is not None] + [s.constant.value.shape for s in steps]
    shape = max(shapes, key=lambda each: (np.prod(each, dtype=int), len(each)))
    channels = int(np.prod(shape, dtype=int))
    wide = [each for each in shape if each > 1]
    if len(wide) > 1 or any(np.prod(each, dtype=int) not in (1, channels) for each in shapes):
        return None
    vectors: dict[str, Any] = {role: _vector(array, channels, steps) for role, array in arrays.items()}
    spelled = "/".join(step.node.op for step in steps)
    known = root is not None and mean is not None
    node = next((step.node for step in steps if step.node.name), steps[-1].node)
    return LayerRecord(
        name="/".join((*scope.names, node.title)),
        kind=f"{spelled} (un-fused)" if known else f"{spelled} (folded)",
        channels=channels,
        axis=_axis(shape),
        dtype=steps[0].constant.dtype,
        epsilon=None if root is None else root.epsilon,
        epsilon_source="unknown" if root is None else "file",
        mode="inference",
        **vectors,
    )


def _vector(array: Array | None, channels: int, steps: list[Step]) -> Array | None:
    if array is None:
        return None
    stored = np.dtype(steps[0].constant.dtype)
    return np.broadcast_to(np.ravel(array), (channels,)).astype(stored)


def _axis(shape: tuple[int, ...]) -> int:
    at = next((number for number, length in enumerate(shape) if length > 1), len(shape) - 1)
    return 1 if at == 1 and len(shape) > 2 else (at - len(shape) if shape else -1)


def _scale(steps: list[Step]) -> Array:
    scale: Array = np.ones(())
    for step in steps:
        if step.letter in "MD":
            scale = scale * step.constant.value if step.letter == "M" else scale / step.constant.value
    return scale


def _root(steps: list[Step]) -> Root | None:
    """The root that the steps divide by, with all other factors; None where none of them spells it out."""
    root: Root | None = None
    factor: Array | None = None
    for step in steps:
        if step.letter not in "MD":
            continue
        here = step.constant.inverse if step.letter == "M" else step.constant.deviation
        if here is not None and root is None:
            root, other = here, here.factor
        else:
            other = step.constant.value if step.letter == "M" else 1 / step.constant.value
        if other is not None:
            factor = other if factor is None else factor * other
    return None if root is None else Root(root.variance, root.epsilon, factor)


def _is_named(steps: list[Step]) -> bool:
    return any(NAMED.search(name) for step in steps for name in (step.node.name, *step.node.outputs))


def _source(scope: Scope, name: str) -> tuple[Scope, Node] | None:
    """What makes a value, before casts, transposes and biases."""
    found = scope.maker(name)
    for _ in range(MOST_DEPTH):
        if found is None or not found[1].inputs:
            return found
        step = _step(found[0], found[1]) if found[1].op == "Add" else None
        if found[1].op not in PASSING and step is None:
            return found
        found = found[0].maker(found[1].inputs[0] if step is None else step.x)
    return found


def _follows_linear(scope: Scope, name: str) -> bool:
    source = _source(scope, name)
    return source is not None and source[1].op in LINEAR


def _reaches_input(scope: Scope, name: str) -> bool:
    return _source(scope, name) is None
