"""Write the Flax files of the corpus, NNX states in safetensors: ``python tests/corpus/make_flax.py``; a minute."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

from tests.corpus.manifest import FILES, Entry, write

ENTRIES = []
IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = (IMAGES.reshape(-1, 8, 8, 1) / 16).astype("float32")


class Conv(nnx.Module):
    """Two convolutions."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 8, (3, 3), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(8, 8, (3, 3), use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean((1, 2)))


class Table(nnx.Module):
    """Two dense layers."""

    def __init__(self, rngs):
        self.dense1 = nnx.Linear(64, 24, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(24, momentum=0.9, rngs=rngs)
        self.dense2 = nnx.Linear(24, 24, use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(24, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(24, 10, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(len(x), -1)
        return self.head(nnx.relu(self.bn2(self.dense2(nnx.relu(self.bn1(self.dense1(x)))))))


def trained(kind, steps=200):
    model = kind(nnx.Rngs(0))
    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(optax.cosine_decay_schedule(0.1, steps)), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    rng = np.random.default_rng(0)
    for _ in range(steps):
        pick = rng.integers(0, len(IMAGES), 64)
        step(model, optimizer, jnp.asarray(IMAGES[pick]), jnp.asarray(LABELS[pick]))
    return model


def state(model):
    """The numbers under their paths."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.array(variable[...]) for path, variable in flat if path[-1] != "count"}


def keep(arrays, arch, name, what, rule=None, layer=None, level=None):
    file = f"{name}.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, FILES / file)
    ENTRIES.append(Entry(file, arch, "flax", what, rule, layer, level))


def changed(arrays, key, value):
    return {**arrays, key: value(arrays[key].copy())}


def at(channel, number):
    def change(old):
        old[channel] = number
        return old

    return change


if __name__ == "__main__":
    FILES.mkdir(exist_ok=True)
    jax.config.update("jax_platforms", "cpu")
    conv, table = state(trained(Conv)), state(trained(Table))
    keep(conv, "vgg", "ok_flax_conv", "NNX state")
    keep(table, "mlp", "ok_flax_mlp", "NNX state")
    keep(changed(conv, "bn2.mean", at(0, np.nan)), "vgg", "BN101_flax", "a NaN in the mean", "BN101", "bn2")
    keep(changed(table, "bn1.var", at(3, -1e-3)), "mlp", "BN102_flax", "a variance below 0", "BN102", "bn1")
    keep(changed(table, "bn2.scale", lambda g: g * 0), "mlp", "BN104_flax", "gamma 0", "BN104", "bn2", "warning")
    reset = changed(changed(conv, "bn1.mean", lambda m: m * 0), "bn1.var", lambda v: v * 0 + 1)
    keep(reset, "vgg", "BN106_flax", "statistics reset in one layer", "BN106", "bn1")
    keep(changed(conv, "bn1.var", at(1, 0.0)), "vgg", "BN110_flax", "a channel that never varied", "BN110", "bn1")
    swapped = {**table, "bn1.mean": table["bn1.var"], "bn1.var": table["bn1.mean"]}
    keep(swapped, "mlp", "BN207_flax", "mean and variance exchanged", "BN207", "bn1")
    write("flax", ENTRIES)
    print(len(ENTRIES), "files")
