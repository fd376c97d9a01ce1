"""JAX: the equations in jax.numpy, compiled by XLA; its gradient with what the forward pass kept. No output buffers."""

from __future__ import annotations

import os

if os.environ.get("BENCHMARK_THREADS") == "1":
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp
import numpy as np

from speed.data import EPSILON

from . import Prepared, need


def versions() -> dict[str, str]:
    """JAX's."""
    return {"jax": jax.__version__}


def prepare(case, data):
    """As Flax computes it, in float32 inside, with `jnp.var` (two passes) for the accuracy."""
    need(case.buffers == "allocated", "returns new arrays")
    axes = tuple(i for i in range(len(case.shape)) if i != case.axis)
    shape = [1] * len(case.shape)
    shape[case.axis] = case.channels
    x, grad, residual = map(jnp.asarray, data[:3])
    gamma, beta, mean, variance = (jnp.asarray(each).reshape(shape) for each in data[3:])
    training = case.operation != "inference"

    def forward(x, gamma, beta, residual):
        wide = x.astype(jnp.float32)
        m = jnp.mean(wide, axes, keepdims=True) if training else mean
        v = jnp.var(wide, axes, keepdims=True) if training else variance
        y = (wide - m) * (jax.lax.rsqrt(v + EPSILON) * gamma) + beta
        if case.fused == "add+relu":
            y = y + residual.astype(jnp.float32)
        return (y if case.fused == "plain" else jax.nn.relu(y)).astype(x.dtype)

    given = (x, gamma, beta, residual)
    if case.operation == "backward":
        _, pull = jax.jit(lambda *inputs: jax.vjp(forward, *inputs))(*given)
        run = jax.jit(lambda pull, grad: pull(grad))
        return _prepared(lambda: jax.block_until_ready(run(pull, grad))[0])
    run = jax.jit(forward)
    return _prepared(lambda: run(*given).block_until_ready())


def _prepared(call):
    return Prepared(call, lambda: np.asarray(call()))
