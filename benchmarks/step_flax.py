"""The time of one jitted training step on the CPU, forward and gradient: `batchnorm.flax.BatchNorm` over Flax' own."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from speed.summary import ratio
from speed.turns import turns

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


def training(layer: Any) -> Any:
    """A call that runs ten steps of a small network on images of 8 x 8, with the optimizer, and waits for them."""

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            widths = (1, 8, 8, 16)
            pairs = list(itertools.pairwise(widths))
            self.convs = nnx.List([nnx.Conv(a, b, (3, 3), use_bias=False, rngs=rngs) for a, b in pairs])
            self.norms = nnx.List([layer(b, rngs=rngs) for _, b in pairs])
            self.head = nnx.Linear(widths[-1], 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = nnx.relu(norm(conv(x)))
            return self.head(x.mean((1, 2)))

    rng = np.random.default_rng(0)
    x, labels = jnp.asarray(rng.normal(size=(64, 8, 8, 1)).astype(np.float32)), jnp.asarray(rng.integers(10, size=64))
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        def loss(model: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    return lambda: jax.block_until_ready([step(model, optimizer) for _ in range(10)][-1])


def print_training() -> None:
    """A whole training step, through `nnx.jit`."""
    ours, fast = turns([training(BatchNorm), training(nnx.BatchNorm)], REPEATS)
    times = f"{statistics.median(ours) / 10:.2f} | {statistics.median(fast) / 10:.2f} |"
    print(f"| step of a network of three norms, (64, 8, 8, 1) | {times} | {ratio(ours, fast):.2f} | |")


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
        ours, fast, stable = turns([stepper(layer, x) for layer in layers], REPEATS)
        times = " | ".join(f"{statistics.median(each):.2f}" for each in (ours, fast, stable))
        print(f"| {shape} | {times} | {ratio(ours, fast):.2f} | {ratio(ours, stable):.2f} |", flush=True)
    print_training()


if __name__ == "__main__":
    main()
