"""The Keras layer beside Keras' own: the time of a step, and the accuracy in inference mode during the first steps.

python benchmarks/keras_layers.py              every backend, each in a process of its own
python benchmarks/keras_layers.py torch        one
python benchmarks/keras_layers.py torch times  one table of: times, training, accuracy

Of times the median over interleaved rounds is printed, and the median of the rounds' ratios with its quartiles;
``CLOCK=processor`` takes the processor's time of all threads, for a machine with other work.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from speed.summary import ratio
from speed.turns import turns

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


def print_row(what: str, calls: list[Callable[[], Any]], rounds: int = REPEATS) -> None:
    """Times of ours and of theirs, and their ratio."""
    ours, theirs = turns(calls, rounds)
    found = ratio(ours, theirs)
    times = f"{statistics.median(ours):.2f} | {statistics.median(theirs):.2f}"
    print(f"| {what} | {times} | {found:.2f} ({found.low:.2f} to {found.high:.2f}) |", flush=True)


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
            print_row(f"{how} | {shape}", [step_of(layer, x, how) for layer in layers])


def print_training(backend: str) -> None:
    """A whole training, as a user sees it: `fit` over the digits, a network of six norms, batches of 32."""
    import keras
    from digits import compiled, data, network

    from batchnorm.keras import BatchNormalization

    images, labels = (each[:1024] for each in data())

    def fit_of(layer: Any) -> Callable[[], Any]:
        keras.utils.set_random_seed(0)
        model = compiled(network(layer))
        return lambda: model.fit(images, labels, batch_size=32, verbose=0)

    calls = [fit_of(layer) for layer in (BatchNormalization, keras.layers.BatchNormalization)]
    print_row(f"{backend} | fit, 32 steps of (32, 8, 8, 1)", calls, REPEATS // 3)


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
    """Print the tables."""
    if len(sys.argv) > 2:
        {"times": print_times, "training": print_training, "accuracy": print_accuracy}[sys.argv[2]](sys.argv[1])
        return
    columns = "ours, ms | Keras, ms | ours / Keras |\n|---|---|---|---|---|"
    heads = {
        "times": f"| how | shape | {columns}",
        "training": f"| how | what | {columns}",
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
