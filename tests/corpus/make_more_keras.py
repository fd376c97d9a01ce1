"""Plants that `make_keras` has in one format alone: ``KERAS_BACKEND=jax python tests/corpus/make_more_keras.py``."""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
sys.path.insert(0, str(Path(__file__).parents[2]))

import keras
import numpy as np
from keras import layers

from tests.corpus import make_keras
from tests.corpus.keras_networks import Net, data, fit, set_arrays, trained
from tests.corpus.make_keras import fit_copy, keep
from tests.corpus.manifest import FILES, write

ENTRIES = make_keras.ENTRIES


def unused():
    """A nested model with a second output that the outer model does not take."""
    for arch in ("vgg", "conv1d"):
        start = keras.Input(data(arch).shape[1:])
        features = getattr(Net(), arch)(start)
        aside = layers.BatchNormalization(name="aside_bn", momentum=0.9)(layers.Dense(4)(features))
        body = keras.Model(start, [features, aside], name="body")
        start = keras.Input(data(arch).shape[1:])
        model = keras.Model(start, layers.Dense(10)(body(start)[0]), name=arch)
        for ending in (".keras", ".h5") if arch == "vgg" else (".keras",):
            keep(
                fit(model, arch),
                f"BN305_{arch}",
                "an output not taken",
                "BN305",
                "body/aside_bn",
                "note",
                ending=ending,
            )


def frozen(base):
    keep(trained("dense", only={"bn2": {"trainable": False}}), "BN208_dense", "frozen before the training", "BN208",
         "bn2", "warning", ending=".h5")  # fmt: skip
    sound = fit_copy(base)
    for layer in sound.layers:
        layer.trainable = not layer.name.startswith("bn")
    keep(sound, "ok_frozen_h5", "frozen after training, legacy HDF5", ending=".h5")


def ranks(base):
    """Two workers that averaged their own halves of the data, and saved each its file."""
    x = data("vgg")
    for rank, ending in enumerate((".keras", ".keras")):
        model = fit_copy(base)
        for part in np.split(x[rank * 640 : rank * 640 + 640], 10):
            model(part, training=True)
        if rank == 0:
            keep(
                model,
                "BN209_vgg",
                "one of two ranks",
                "BN209",
                None,
                ending=ending,
                run={"others": ["rank1_vgg.keras"]},
            )
            keep(model, "BN209_vgg", "one of two ranks, weights alone", "BN209", None, ending=".weights.h5",
                 run={"others": ["rank1_vgg.weights.h5"]})  # fmt: skip
        else:
            keep(model, "rank1_vgg", "the other rank, sound by itself", ending=ending)
            keep(model, "rank1_vgg", "the other rank, weights alone", ending=".weights.h5")


def mild(base):
    """Faults that do little, but are there."""
    few = set_arrays(fit_copy(base), "bn3", gamma=lambda g: g * (np.arange(16) % 2 + 1e-9))
    keep(few, "BN104_half", "half of the gammas all but 0", "BN104", "bn3", "warning", ending=".h5")
    keep(
        trained("vgg", momentum=0.97, steps=40, rate=0.05),
        "BN107_mild",
        "40 steps at .97",
        "BN107",
        "bn1",
        ending=".h5",
    )


if __name__ == "__main__":
    keras.utils.set_random_seed(2)
    FILES.mkdir(exist_ok=True)
    ENTRIES.clear()
    vgg = trained("vgg")
    unused()
    frozen(vgg)
    ranks(vgg)
    mild(vgg)
    write("more_keras", ENTRIES)
    print(len(ENTRIES), "entries")
