"""The NumPy layer's passes over a large batch, by the compiled kernels: what `passes` does, without copies in float64.

The tape keeps the input itself, not a copy: it must not be changed before the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.core.equations import Moments
from batchnorm.core.training import Rule, State, inference_statistics
from batchnorm.kernels import cpu
from batchnorm.kernels.on_arrays import Call
from batchnorm.kernels.operands import readable

__all__ = ["SMALLEST", "FusedTape", "backward", "call_of", "infer", "train"]

Array = NDArray[Any]
SMALLEST = 32768
"""Elements from which the kernels take a batch; smaller ones are computed in float64 throughout."""


@dataclass(frozen=True, slots=True, eq=False)
class FusedTape:
    """What the way back needs: the call and what it was given.

    ``count`` is that of the batch, and 0 where the statistics did not come from it.
    """

    call: Call
    gamma: Array | None
    mean: Array
    variance: Array
    epsilon: float
    count: int


def call_of(x: ArrayLike, axis: Any, mask: ArrayLike | None, rule: Rule, name: str) -> Call | None:
    """The call, if the kernels take it."""
    if not isinstance(x, np.ndarray) or rule.renorm is not None:
        return None
    array: Any = x  # pyright: ignore[reportUnknownVariableType]
    return None if array.size < SMALLEST else Call.of(array, axis, mask, name)


def train(call: Call, rule: Rule, gamma: Array | None, beta: Array | None) -> tuple[Array, FusedTape, Moments] | None:
    """Output, tape and moments where the batch normalises itself; None where `passes` must."""
    target = call.target(None, "")
    mean, variance = np.empty((2, call.channels))
    into = (*target.views()[:2], cpu.view_of(mean), cpu.view_of(variance))
    given = call.views({"gamma": gamma, "beta": beta})
    count = cpu.forward(*into, axis=call.axis, epsilon=rule.epsilon, mask=call.mask, **given)
    if call.failed(count, variance):
        return None
    tape = FusedTape(call, gamma, mean, variance, rule.epsilon, count)
    return target.done(), tape, Moments(count, mean, 0.0, variance)


def infer(call: Call, rule: Rule, state: State, gamma: Array | None, beta: Array | None) -> tuple[Array, FusedTape]:
    """Output and tape where the layer's own statistics normalise."""
    target = call.target(None, "")
    wide = {name: one.astype(np.float64) for name, one in state.items()}
    mean, variance = (np.ascontiguousarray(one, np.float64) for one in inference_statistics(np, rule, wide))
    into = (*target.views()[:2], cpu.view_of(mean), cpu.view_of(variance))
    cpu.inference(*into, axis=call.axis, epsilon=rule.epsilon, **call.views({"gamma": gamma, "beta": beta}))
    return target.done(), FusedTape(call, gamma, mean, variance, rule.epsilon, 0)


def backward(tape: FusedTape, grad: Array) -> tuple[Array, Array, Array]:
    """Gradients of the input, gamma and beta."""
    call = tape.call
    target = call.target(None, "", readable(grad.astype(call.x.dtype, copy=False)))
    source, place, (upstream,) = target.views()
    sums = np.empty((2, call.channels))
    statistics = [cpu.view_of(one) for one in (tape.mean, tape.variance, *sums)]
    given = {"axis": call.axis, "epsilon": tape.epsilon, "training": tape.count > 0}
    mask = call.mask if tape.count else None
    cpu.backward(upstream, source, place, *statistics, mask=mask, **given, **call.views({"gamma": tape.gamma}))
    return target.done(), sums[1], sums[0]
