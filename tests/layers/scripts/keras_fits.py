"""Runs in its own process: trains Keras' layer on the cases of test_numpy_keras.py and saves every weight as .npz."""

import sys

import keras
import numpy as np

keras.config.disable_interactive_logging()


def trained(case, data):
    """Weights after each of the wanted numbers of epochs, the losses, and the final prediction."""
    layer = keras.layers.BatchNormalization(**case["layer"])
    model = keras.Sequential([keras.Input(data["x"].shape[1:]), layer])
    model.compile(loss="mse", optimizer=keras.optimizers.SGD(0.01))
    saved, losses, done = {}, [], 0
    for epochs in case["epochs"]:
        history = model.fit(
            data["x"], data["y"], epochs=epochs - done, batch_size=case["batch_size"], shuffle=False, verbose=0
        )
        losses, done = losses + history.history["loss"], epochs
        saved |= {f"{epochs}/{weight.name}": weight.numpy() for weight in layer.weights}
    return saved | {"losses": np.array(losses), "predicted": model.predict(data["probe"])}


def main(cases_file, out):
    loaded = np.load(cases_file, allow_pickle=True)["cases"].item()
    result = {}
    for name, (case, data) in loaded.items():
        result |= {f"{name}/{key}": value for key, value in trained(case, data).items()}
    np.savez(out, **result)


main(*sys.argv[1:])
