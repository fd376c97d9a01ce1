"""Batch normalizations in a TensorFlow graph: the fused operator, and the one written as Rsqrt, Mul, Sub and Add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tf_graph import Constant, Frame, Node, Param, constant_of

__all__ = ["Found", "fused", "written_out"]

DEFAULT = 1e-4  # of the operator
LONGEST_WAY = 8  # of the steps that only change a shape or a type, from a reduction to its use
ADDS = ("AddV2", "Add")
KEEPS_NUMBERS = ("Squeeze", "StopGradient", "Identity", "Reshape", "Cast")
MOST_AXES = 5


@dataclass(frozen=True, slots=True)
class Found:
    """One batch normalization in a graph.

    Parameters
    ----------
    kind : str
        The operator, or ``"batchnorm"`` where it is written out.
    scope : str
        The name scope of its nodes.
    epsilon : float or None
        The shortest decimal that gives the stored float32.
    axis : int
        Where the channels lie.
    training : bool
        It normalises with the statistics of the batch.
    gamma, beta, mean, variance : Param or None
        Where its arrays come from.
    entry, exit : str, int
        The node whose input number ``place`` is the input of the layer, and the node whose first output is its output,
        with the calls that lead there.
    """

    kind: str
    scope: str
    epsilon: float | None
    axis: int
    training: bool
    gamma: Param | None
    beta: Param | None
    mean: Param | None
    variance: Param | None
    entry: str
    place: int
    exit: str


def fused(frame: Frame, node: Node) -> Found | None:
    """A FusedBatchNorm, V2 or V3; None where it lacks inputs."""
    if len(node.inputs) < 5:
        return None
    gamma, beta, mean, variance = (frame.param(reference) for reference in node.inputs[1:5])
    layout = node.attribute("data_format").content(2) or b"NHWC"
    given = node.attributes.get("is_training")
    place = frame.path + node.name
    return Found(
        kind=node.op,
        scope=_scope(frame, node.name),
        epsilon=_decimal(node.attribute("epsilon").float32(4) or DEFAULT),
        axis=1 if layout.startswith(b"NC") else -1,
        training=given is None or bool(given.integer(5)),
        gamma=gamma,
        beta=beta,
        mean=mean,
        variance=variance,
        entry=place,
        place=0,
        exit=place,
    )


def written_out(frame: Frame, root: Node) -> Found | None:
    """``x*scale + (beta - mean*scale)`` or ``(x - mean)*scale + beta`` around an Rsqrt; None where it is neither."""
    added = frame.body.node(root.inputs[0]) if root.inputs else None
    if added is None or added.op not in ADDS:
        return None
    sides = _split(frame, added)
    if sides is None:
        return _of_the_batch(frame, root, added)
    variance, epsilon = sides
    gamma, scale = _scale(frame, root)
    core = _core(frame, scale)
    if core is None:
        return None
    beta, mean, entry, place, last = core
    return Found(
        kind="batchnorm",
        scope=_scope(frame, root.name),
        epsilon=epsilon,
        axis=_axis(variance),
        training=False,
        gamma=gamma,
        beta=beta,
        mean=mean,
        variance=variance,
        entry=frame.path + entry.name,
        place=place,
        exit=frame.path + last.name,
    )


Core = tuple[Param | None, Param, Node, int, Node]
"""beta, mean, the node that takes the input and as which input, the node that gives the output."""


def _split(frame: Frame, added: Node) -> tuple[Param, float] | None:
    """The variance and the epsilon of their sum."""
    if len(added.inputs) != 2:
        return None
    for vector, number in (added.inputs, added.inputs[::-1]):
        variance, constant = frame.param(vector), frame.param(number)
        if variance is None or constant is None or not isinstance(constant.source, Constant):
            continue
        value = constant_of(constant.source.node)
        if value is not None and value.size == 1 and value.dtype.kind != "i":
            return variance, _decimal(float(value.reshape(())))
    return None


def _of_the_batch(frame: Frame, root: Node, added: Node) -> Found | None:
    """The same with the mean and variance of the batch itself, as ``training=True`` bakes them into an export."""
    sides = [(_reduction(frame, v), frame.param(e)) for v, e in (added.inputs, added.inputs[::-1])]
    axes, epsilon = next((each for each in sides if None not in each), (None, None))
    gamma, scale = _scale(frame, root)
    products = [(node, place) for node, place in frame.body.consumers(scale) if node.op == "Mul"]
    means = [node for node, place in products if _reduction(frame, node.inputs[1 - place]) == axes]
    data = [(node, 1 - place) for node, place in products if node not in means]
    if axes is None or epsilon is None or len(means) != 1 or len(data) != 1:
        return None
    value = constant_of(epsilon.source.node) if isinstance(epsilon.source, Constant) else None
    end = _with_shift(frame, data[0][0], means[0])
    if value is None or value.size != 1 or end is None:
        return None
    kept = next(axis for axis in range(len(axes) + 1) if axis not in axes)
    return Found(
        kind="batchnorm",
        scope=_scope(frame, root.name),
        epsilon=_decimal(float(value.reshape(()))),
        axis=-1 if kept == len(axes) else kept,
        training=True,
        gamma=gamma,
        beta=end[0],
        mean=None,
        variance=None,
        entry=frame.path + data[0][0].name,
        place=data[0][1],
        exit=frame.path + end[1].name,
    )


def _reduction(frame: Frame, reference: str) -> tuple[int, ...] | None:
    """The axes of the mean that a value is, where they are all but one and the batch is among them."""
    node = frame.body.node(reference)
    for _ in range(LONGEST_WAY):
        if node is None or node.op not in KEEPS_NUMBERS or not node.inputs:
            break
        node = frame.body.node(node.inputs[0])
    if node is None or node.op != "Mean" or len(node.inputs) != 2:
        return None
    over = frame.param(node.inputs[1])
    axes = constant_of(over.source.node) if over is not None and isinstance(over.source, Constant) else None
    if axes is None or axes.dtype.kind != "i" or 0 not in axes or not 1 <= axes.size <= MOST_AXES:
        return None
    found = tuple(sorted(int(axis) for axis in axes.reshape(-1)))
    return found if len(set(found) & set(range(len(found) + 1))) == len(found) else None


def _with_shift(frame: Frame, product: Node, mean_product: Node) -> tuple[Param | None, Node] | None:
    """Beta, and the sum of ``x*scale`` and ``beta - mean*scale``."""
    for after, side in frame.body.consumers(mean_product):
        if after.op != "Sub" or side != 1:
            continue
        if frame.body.node(after.inputs[0]) is product:
            return None, after
        beta = frame.param(after.inputs[0])
        for last, _ in frame.body.consumers(after):
            if last.op in ADDS and any(frame.body.node(each) is product for each in last.inputs):
                return (beta, last) if beta is not None else None
    return None


def _scale(frame: Frame, root: Node) -> tuple[Param | None, Node]:
    """Gamma, and the node that holds gamma times the inverse root.

    Without gamma the inverse root is used twice, for the input and for the mean.
    """
    users = frame.body.consumers(root)
    if len(users) == 1 and users[0][0].op == "Mul":
        product, place = users[0]
        gamma = frame.param(product.inputs[1 - place])
        if gamma is not None:
            return gamma, product
    return None, root


def _core(frame: Frame, scale: Node) -> Core | None:
    products = [(node, place) for node, place in frame.body.consumers(scale) if node.op == "Mul"]
    means = [(node, found) for node, place in products if (found := frame.param(node.inputs[1 - place])) is not None]
    data = [(node, 1 - place) for node, place in products if frame.param(node.inputs[1 - place]) is None]
    if len(data) != 1:
        return None
    product, place = data[0]
    if len(means) == 1:
        return _shifted(frame, product, place, *means[0])
    return _centred(frame, product, place) if not means else None


def _shifted(frame: Frame, product: Node, place: int, mean_product: Node, mean: Param) -> Core | None:
    """``x*scale + shift``, the shift being ``beta - mean*scale``, ``-mean*scale``, or subtracted."""
    users = frame.body.consumers(mean_product)
    if len(users) != 1:
        return None
    after, side = users[0]
    if any(frame.body.node(reference) is product for reference in after.inputs):
        fits = (after.op in ADDS and mean.negated) or (after.op == "Sub" and side == 1)
        return (None, mean, product, place, after) if fits else None
    beta = frame.param(after.inputs[1 - side]) if len(after.inputs) == 2 else None
    fits = (after.op == "Sub" and side == 1) or (after.op in ADDS and mean.negated)
    for last, _ in frame.body.consumers(after):
        if fits and last.op in ADDS and any(frame.body.node(reference) is product for reference in last.inputs):
            return (beta, mean, product, place, last) if beta is not None else None
    return None


def _centred(frame: Frame, product: Node, place: int) -> Core | None:
    """``(x - mean)*scale``, plus beta where the next node adds one."""
    centred = frame.body.node(product.inputs[place])
    if centred is None or centred.op != "Sub":
        return None
    mean = frame.param(centred.inputs[1])
    if mean is None:
        return None
    for last, side in frame.body.consumers(product):
        beta = frame.param(last.inputs[1 - side]) if last.op in ADDS else None
        if beta is not None:
            return beta, mean, centred, 0, last
    return None, mean, centred, 0, product


def _axis(variance: Param) -> int:
    """The place of the channels in the shape to which the parameters are spread; the last axis where they are not."""
    if variance.shape is None or len(variance.shape) < 2:
        return -1
    long = [place for place, length in enumerate(variance.shape) if length != 1]
    if not long:  # one channel: the layer reshapes only where the channels are not the last axis
        return 1
    return long[0] if len(long) == 1 and long[0] != len(variance.shape) - 1 else -1


def _scope(frame: Frame, name: str) -> str:
    parts = [part for part in f"{frame.path}{name}".split("/")[:-1] if not part.endswith("PartitionedCall")]
    while parts and parts[-1] in ("batchnorm", "batch_norm"):
        parts.pop()
    return "/".join(parts)


def _decimal(value: float) -> float:
    return float(str(np.float32(value)))
