"""The Keras layer beside Keras' own: the time of a step, and the accuracy in inference mode during the first steps.

python benchmarks/keras_layers.py              every backend, each in a process of its own
python benchmarks/keras_layers.py torch        one
"""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "layers" / "keras" / "cases"))

BACKENDS = ("tensorflow", "jax", "torch")
SHAPES = ((256, 64), (64, 32, 32, 32), (32, 14, 14, 256))
STEPS = (1, 5, 20, 100)
SEEDS = (0, 1, 2)
REPEATS = 30


def step_of(layer: Any, x: Any, how: str) -> Callable[[], Any]:
    """A call that runs one training step of a layer, forward and gradient, and waits for it."""
    return {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[how.split()[0]](layer, x, how)


def _tensorflow(layer: Any, x: Any, how: str) -> Callable[[], Any]:
    import tensorflow as tf

    x = tf.constant(x)

    def step() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_mean(layer(x, training=True) ** 3)
        return tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])

    call = step if how.endswith("eager") else tf.function(step, jit_compile=how.endswith("XLA"))
    return lambda: call()[0].numpy()


def _jax(layer: Any, x: Any, how: str) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    trainable, fixed = ([v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables))

    @jax.jit
    def step(trainable: Any, fixed: Any, x: Any) -> Any:
        def loss(trainable: Any, x: Any) -> Any:
            y, fixed_after = layer.stateless_call(trainable, fixed, x, training=True)
            return jnp.mean(y**3), fixed_after

        return jax.grad(loss, (0, 1), has_aux=True)(trainable, x)

    x = jnp.asarray(x)
    return lambda: jax.block_until_ready(step(trainable, fixed, x))


def _torch(layer: Any, x: Any, how: str) -> Callable[[], Any]:
    import torch

    x = torch.tensor(x, requires_grad=True)
    return lambda: torch.autograd.grad((layer(x, training=True) ** 3).mean(), [x, layer.gamma.value, layer.beta.value])


def medians(calls: list[Callable[[], Any]]) -> list[float]:
    """Milliseconds of each call; they take turns, so that a busy machine is unfair to none."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(REPEATS + 3):
        for call, record in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            if turn >= 3:
                record.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(record) for record in times]


def print_times(backend: str) -> None:
    """One row a shape and way to run."""
    import keras

    from batchnorm.keras import BatchNormalization

    ways = {
        "tensorflow": ("tensorflow eager", "tensorflow function", "tensorflow XLA"),
        "jax": ("jax jit",),
        "torch": ("torch eager",),
    }
    for how in ways[backend]:
        for shape in SHAPES:
            x = np.random.default_rng(0).normal(1, 2, shape).astype(np.float32)
            layers = (BatchNormalization(), keras.layers.BatchNormalization())
            for layer in layers:
                layer.build(shape)
            ours, theirs = medians([step_of(layer, x, how) for layer in layers])
            print(f"| {how} | {shape} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |", flush=True)


def print_accuracy(backend: str) -> None:
    """One row a kind of statistics; the weights are the same in both, step by step."""
    import keras
    from digits import accuracy, batches, compiled, data, network

    from batchnorm.keras import BatchNormalization

    images, labels = data()
    for kind in ("moving", "debiased"):
        found: dict[int, list[float]] = {step: [] for step in STEPS}
        for seed in SEEDS:
            keras.utils.set_random_seed(seed)
            model = compiled(network(BatchNormalization, statistics=kind))
            for step, batch in enumerate(batches(images[:-500], labels[:-500], max(STEPS)), 1):
                model.train_on_batch(*batch)
                if step in STEPS:
                    found[step].append(accuracy(model, images[-500:], labels[-500:]))
        row = " | ".join(f"{statistics.mean(found[step]):.1%}" for step in STEPS)
        print(f"| {backend} | {kind} | {row} |", flush=True)


def main() -> None:
    """Print both tables."""
    if len(sys.argv) > 2:
        {"times": print_times, "accuracy": print_accuracy}[sys.argv[2]](sys.argv[1])
        return
    heads = {
        "times": "| how | shape | ours, ms | Keras, ms | ours / Keras |\n|---|---|---|---|---|",
        "accuracy": f"| backend | statistics | {' | '.join(f'{s} steps' for s in STEPS)} |\n|---|---|---|---|---|---|",
    }
    for table, head in heads.items():
        print(head, flush=True)
        for backend in sys.argv[1:] or BACKENDS:
            environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
            subprocess.run([sys.executable, __file__, backend, table], env=environment, check=True)
        print()


if __name__ == "__main__":
    main()
