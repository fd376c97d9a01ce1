"""Train a small residual network on scikit-learn's digits in Keras, and write it in every format that Keras writes.

    KERAS_BACKEND=tensorflow python trained_keras.py FOLDER [--alone]
    KERAS_BACKEND=torch python trained_keras.py FOLDER     # the .onnx of the same model: that exporter is PyTorch's

``changed`` gives copies with one constant of one layer changed; a backend writes the copies of its own formats.
"""

import json
import os
import sys
from pathlib import Path

import keras
import ml_dtypes
import numpy as np

L = keras.layers
ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
CHANGED = "mid_bn"
"""The layer that is changed in a copy: behind an addition, so that no converter can fold it into a convolution."""
STEPS, BATCH = 60, 32


def digits():
    """Images of 8x8 pixels between 0 and 1, with their labels, shuffled."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order].reshape(-1, 8, 8, 1) / 16).astype("float32"), labels[order]


def build(**settings):
    """Four batch normalizations: behind a convolution, in a residual branch, behind the addition, behind a dense."""
    call = settings.pop("call", {})

    def norm(x, name):
        own = {"momentum": 0.9} | (settings if name == CHANGED else {})
        return L.BatchNormalization(name=name, **own)(x, **(call if name == CHANGED else {}))

    inputs = keras.Input((8, 8, 1), name="image")
    x = L.ReLU()(norm(L.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs), "stem_bn"))
    y = norm(L.Conv2D(8, 3, padding="same", name="branch")(x), "branch_bn")
    x = L.ReLU()(norm(L.add([x, y]), CHANGED))
    x = L.Flatten()(L.AveragePooling2D(2)(x))
    x = L.ReLU()(norm(L.Dense(16, name="hidden")(x), "head_bn"))
    return keras.Model(inputs, L.Dense(10, name="logits")(x), name="digits")


def trained():
    """The network after a few dozen steps, and its accuracy on images it has not seen."""
    keras.utils.set_random_seed(0)
    images, labels = digits()
    model = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(images[: STEPS * BATCH // 2], labels[: STEPS * BATCH // 2], batch_size=BATCH, epochs=2, verbose=0)
    return model, model.evaluate(images[-500:], labels[-500:], verbose=0)[1]


def swapped(first, second):
    return lambda held: {first: held[second], second: held[first]}


def through(dtype):
    return lambda held: {role: values.astype(dtype).astype(np.float32) for role, values in held.items()}


# A setting of the layer, or the values that its arrays get.
SETTINGS = {
    "epsilon": {"epsilon": 1e-5},
    "decay": {"momentum": 0.95},
    "momentum-convention": {"momentum": 0.1},
    "axis": {"axis": 1},
    "mode": {"call": {"training": True}},
}
VALUES = {
    "ddof": lambda held: {"moving_variance": held["moving_variance"] * np.float32(32 / 31)},
    "gamma": lambda held: {"gamma": held["gamma"] + np.float32(0.25)},
    "beta": lambda held: {"beta": held["beta"] + np.float32(0.125)},
    "moving_mean": lambda held: {"moving_mean": held["moving_mean"][::-1]},
    "moving_variance": lambda held: {"moving_variance": np.sqrt(held["moving_variance"])},
    "swapped gamma/beta": swapped("gamma", "beta"),
    "swapped mean/variance": swapped("moving_mean", "moving_variance"),
    "dtype": through(np.float16),
    "dtype bfloat16": through(ml_dtypes.bfloat16),
}


CONVERTED = ("epsilon", "ddof", "gamma", "moving_mean", "moving_variance", "swapped mean/variance", "dtype")
"""The copies that are exported by TensorFlow and converted to LiteRT, which takes two seconds each."""


def changed(model, what):
    """A copy of the network in which one constant of the layer `CHANGED` is another."""
    copy = build(**SETTINGS.get(what, {}))
    copy.set_weights(model.get_weights())
    if what in VALUES:
        layer = copy.get_layer(CHANGED)
        held = {role: keras.ops.convert_to_numpy(getattr(layer, role)) for role in ROLES}
        for role, values in VALUES[what](held).items():
            getattr(layer, role).assign(values)
    return copy


def write_tensorflow(model, folder, stem, *, graph=True):
    """``.keras``, ``.h5``, SavedModel and ``.tflite``."""
    import tensorflow as tf

    for suffix in ("keras", "h5"):
        model.save(folder / f"{stem}.{suffix}")
    if graph:
        saved = folder / f"{stem}_saved"
        model.export(saved, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
        (folder / f"{stem}.tflite").write_bytes(converter.convert())


def write_onnx(model, folder, stem):
    """``.onnx``, through torch.onnx."""
    model(np.zeros((2, 8, 8, 1), "float32"), training=False)  # the exporter wants a model that was called
    model.export(folder / f"{stem}.onnx", format="onnx", verbose=False)


def main(folder, alone=False):
    """The model, and unless it is wanted ``alone`` the copies, in the formats of this backend."""
    faults = [] if alone else [*SETTINGS, *VALUES]
    if keras.backend.backend() == "tensorflow":
        model, accuracy = trained()
        write_tensorflow(model, folder, "model")
        images, _ = digits()
        np.save(folder / "x.npy", images[-40:])
        (folder / "accuracy.json").write_text(json.dumps(accuracy))
        for what in faults:
            graph = what in CONVERTED
            write_tensorflow(changed(model, what), folder, name_of(what), graph=graph)
    else:
        model = keras.saving.load_model(folder / "model.keras")
        write_onnx(model, folder, "model")
        for what in faults:
            if what not in ("axis", "mode"):  # the exporter refuses a layer in training mode
                write_onnx(changed(model, what), folder, name_of(what))


def name_of(what):
    """How the files of a copy are called."""
    return what.replace("/", "-").replace(" ", "_")


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    main(Path(sys.argv[1]), alone="--alone" in sys.argv)
