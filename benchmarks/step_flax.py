"""The time of one jitted training step on the CPU, forward and gradient: `batchnorm.flax.BatchNorm` over Flax' own."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from batchnorm.flax import BatchNorm

SHAPES = ((256, 64), (64, 32, 32, 32), (8, 56, 56, 64), (32, 14, 14, 256))
REPEATS = 30


def stepper(layer: Any, x: Any) -> Any:
    """A call that runs one step and waits for it."""
    graph, state = nnx.split(layer)

    @jax.jit
    def step(state: Any, x: Any) -> Any:
        def loss(state: Any, x: Any) -> Any:
            module = nnx.merge(graph, state, copy=True)
            return jnp.mean(module(x) ** 3), nnx.state(module, nnx.BatchStat)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)(state, x)

    return lambda: jax.block_until_ready(step(state, x))


def main() -> None:
    """Print a table: milliseconds, and the ratio; the two take turns, medians are compared."""
    print("| shape | ours | Flax | Flax, use_fast_variance=False | ours / Flax | ours / its stable variance |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        x = jnp.asarray(np.random.default_rng(0).normal(1, 2, shape).astype(np.float32))
        layers = (
            BatchNorm(shape[-1], rngs=nnx.Rngs(0)),
            nnx.BatchNorm(shape[-1], rngs=nnx.Rngs(0)),
            nnx.BatchNorm(shape[-1], use_fast_variance=False, rngs=nnx.Rngs(0)),
        )
        calls, times = [stepper(layer, x) for layer in layers], [[] for _ in layers]
        for turn in range(REPEATS + 3):
            for call, record in zip(calls, times, strict=True):
                begin = time.perf_counter()
                call()
                if turn >= 3:
                    record.append(1e3 * (time.perf_counter() - begin))
        ours, fast, stable = (statistics.median(record) for record in times)
        print(f"| {shape} | {ours:.2f} | {fast:.2f} | {stable:.2f} | {ours / fast:.2f} | {ours / stable:.2f} |")


if __name__ == "__main__":
    main()
