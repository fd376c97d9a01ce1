"""JAX: `jax.custom_vjp`, which differentiates to any order because both passes are plain JAX.

`keras.ops.custom_gradient` is `jax.custom_gradient`, which takes neither absent arguments nor a boolean mask.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import functools
from typing import Any

import jax
from keras import ops

from batchnorm.layers.keras.apply import Fixed, How, Outputs, backward, forward

COUNTED_IN_STATE = True
CHOOSE: Any = jax.lax.cond
XP: Any = ops


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _train(how: How, x: Any, gamma: Any, beta: Any, fixed: Fixed) -> Outputs:
    return forward(how, x, gamma, beta, fixed)[0]


def _forward(how: How, x: Any, gamma: Any, beta: Any, fixed: Fixed) -> tuple[Outputs, Any]:
    outputs, kept = forward(how, x, gamma, beta, fixed)
    return outputs, (x, gamma, beta is None, fixed.mask, kept)


def _backward(how: How, residuals: Any, grads: Outputs) -> tuple[Any, Any, Any, None]:
    x, gamma, no_beta, mask, kept = residuals
    dx, dgamma, dbeta = backward(how, grads.y, x, gamma, mask, kept)
    return dx, None if gamma is None else dgamma, None if no_beta else dbeta, None


_train.defvjp(_forward, _backward)


def train(how: How, x: Any, gamma: Any, beta: Any, fixed: Fixed) -> Outputs:
    """Normalise with the batch's statistics, gradients in closed form."""
    return _train(how, x, gamma, beta, fixed)


@functools.cache
def compiled(step: Any) -> Any:
    """One dispatch instead of a hundred where nothing else is compiled; inside a compiled step it is part of that."""
    return jax.jit(step, static_argnums=0, inline=True)


def once(batch: Any) -> Any:
    """``batch``: nothing tells a second pass apart."""
    return batch


def collectives() -> tuple[None, None]:
    """None: under `jax.jit` the statistics of a sharded batch are those of the whole batch already."""
    return None, None
