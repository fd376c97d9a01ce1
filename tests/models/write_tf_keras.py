"""Writes, with the installed tf_keras (Keras 2), a SavedModel folder and an .h5 file: a process of its own."""

import json
import sys
from pathlib import Path

import numpy as np
import tf_keras as keras

L = keras.layers
ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


def main(folder):
    inner_in = keras.Input((6, 6, 4))
    inner = keras.Model(inner_in, L.BatchNormalization(epsilon=1e-2, name="deep")(inner_in), name="inner")
    x = image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, name="conv")(x)
    x = L.BatchNormalization(momentum=0.9, name="fused")(x)
    x = L.GlobalAveragePooling2D()(inner(x))
    x = L.BatchNormalization(momentum=0.8, epsilon=1e-4, scale=False, name="flat")(x)
    frozen = L.BatchNormalization(name="frozen")
    x = frozen(x)
    model = keras.Model(image, L.Dense(1, name="head")(x))
    frozen.trainable = False
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    model.fit(rng.normal(1, 2, (20, 8, 8, 3)), rng.normal(size=(20, 1)), batch_size=5, epochs=2, verbose=0)
    layers = {"fused": model.get_layer("fused"), "inner/deep": inner.get_layer("deep")}
    layers |= {name: model.get_layer(name) for name in ("flat", "frozen")}
    (folder / "tf_keras.json").write_text(
        json.dumps(
            {
                name: {"epsilon": layer.epsilon, "momentum": layer.momentum}
                | {
                    role: None if getattr(layer, role) is None else getattr(layer, role).numpy().tolist()
                    for role in ROLES
                }
                for name, layer in layers.items()
            }
        )
    )
    np.save(folder / "tf_x.npy", given := rng.normal(size=(3, 8, 8, 3)).astype("f4"))
    np.save(folder / "tf_y.npy", model.predict(given, verbose=0))
    model.save(folder / "tf_keras", save_format="tf")
    model.save(folder / "tf_keras.h5")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
