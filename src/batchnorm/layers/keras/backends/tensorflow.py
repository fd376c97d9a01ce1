"""TensorFlow: `tf.custom_gradient`; its inner operations are on the outer tape too, so second derivatives are right."""

# TensorFlow ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import itertools
from typing import Any

import tensorflow as tf
from keras import ops
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from batchnorm.layers.keras.apply import Collective, Fixed, How, Outputs, backward, forward

COUNTED_IN_STATE = False
CHOOSE: Any = tf.cond
XP: Any = ops
EAGER_CALLS = 4
"""Eager steps of one kind of layer before they are made one function."""


def train(how: How, x: Any, gamma: Any, beta: Any, fixed: Fixed) -> Outputs:
    """Normalise with the batch's statistics, gradients in closed form."""
    present = [gamma is not None, beta is not None]

    @tf.custom_gradient
    def apply(x: Any, *parameters: Any) -> Any:
        given = iter(parameters)
        g, b = (next(given) if there else None for there in present)
        outputs, kept = forward(how, x, g, b, fixed)

        def gradient(grad: Any, *_: Any) -> list[Any]:
            dx, *sums = backward(how, grad, x, g, fixed.mask, kept)
            return [dx, *(s for s, there in zip(sums, present, strict=True) if there)]

        return [value for value in outputs if value is not None], gradient

    outputs = apply(x, *(p for p in (gamma, beta) if p is not None))
    return Outputs(*outputs, *([None] * (5 - len(outputs))))


def compiled(step: Any) -> Any:
    """One call instead of a hundred in eager mode; inside a function, and across replicas, ``step`` as it is."""
    return functools.partial(_called, step) if tf.executing_eagerly() and not tf.distribute.has_strategy() else step


def _called(step: Any, task: Any, *given: Any) -> Any:
    return _caller(step, task)(*given)


@functools.lru_cache(maxsize=256)
def _caller(step: Any, task: Any) -> Any:
    # Tracing takes as long as a hundred eager steps: a layer that is only tried out does without. A second shape is
    # traced with unknown lengths, which serve for any other.
    plain = functools.partial(step, task)
    function, calls = tf.function(plain, autograph=False, reduce_retracing=True), itertools.count()
    return lambda *given: function(*given) if next(calls) >= EAGER_CALLS else plain(*given)


def few() -> bool:
    """Whether operations run one by one: not under XLA, whose loops take many of them for one read of the array."""
    return not GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def once(batch: Any) -> Any:
    """``batch``: nothing tells a second pass apart."""
    return batch


def collectives() -> tuple[Collective | None, Collective | None]:
    """Over the replicas of the running `tf.distribute` strategy."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return None, None
    return _gather, _total


def _gather(value: Any) -> Any:
    return tf.distribute.get_replica_context().all_gather(value, axis=0)


def _total(value: Any) -> Any:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)
