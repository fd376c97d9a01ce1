"""Runs model files in Keras and writes what came out: a process of its own, for one backend."""

import hashlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np

from batchnorm.models import open_model

INPUTS = {"functional": (3,), "sequential": (6, 6, 2), "nested": (4,), "shared": (4,), "wrapped": (5, 4),
          "custom": (4,), "subclassed": (4,)}  # fmt: skip


def message(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def live(name, make):
    """The records of a live model, and whether reading and running it left it as it was."""
    import keras

    from batchnorm.models.keras_live import from_live

    model, expected = make()

    def state():
        values = [keras.ops.convert_to_numpy(variable).tobytes() for variable in model.variables]
        return values, [sorted(vars(layer)) for layer in model._flatten_layers()], model.trainable

    before = state()
    found = from_live(model)
    found.run(np.ones((2, *INPUTS[name]), "float32"), [record.name for record in found.layers])
    assert state() == before
    return [(record.name, record.updates, record.mode, record.epsilon) for record in found.layers], expected


def unchanged():
    """A model that draws numbers, and fails on what is above 10: byte-identical after a run, and after the error."""
    import keras

    import batchnorm as bn

    class Fails(keras.layers.Layer):
        def call(self, x):
            if keras.ops.convert_to_numpy(keras.ops.max(x)) > 0.98:
                raise RuntimeError("out of luck\nand lines")
            return x + 0 * keras.random.normal((1,))

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.moving = keras.layers.BatchNormalization()
            self.bn, self.drop, self.fails = keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), Fails()

        def call(self, x, training=None):
            x = self.moving(x, training=True)  # moves its statistics whatever the caller says
            return self.fails(self.drop(self.bn(x, training=training), training=training))

    model = Model()
    model(np.ones((2, 3), "float32"))
    read = bn.load(model)
    name = read.layers[1].name
    with bn.testing.assert_unchanged(model):
        read.run(np.ones((2, 3), "float32"), [name])
        failed = message(lambda: read.run(np.array([[0, 0, 0], [0, 0, 1e9]], "float32"), [name]))
    return failed


def main(folder, out):
    sys.path.insert(0, str(Path(__file__).parent))
    import write_keras_files as writer  # registers the custom classes

    before = digests(folder)
    run(folder, out, writer)
    assert digests(folder) == before


def digests(folder):
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def run(folder, out, writer):
    files = [*(f"{name}.keras" for name in INPUTS), "functional.h5", "nested.h5", "wrapped.h5", "unzipped"]
    result = {"runs": {}}
    for file in files:
        model = open_model(folder / file)
        shape = INPUTS[file.split(".")[0].replace("unzipped", "functional")]
        x = np.random.default_rng(1).normal(2, 3, (6, *shape)).astype("float32")
        result["runs"][file] = model.run(x, [record.name for record in model.layers])
    steps = np.ones((2, 3, 4), "float32")
    result["steps"] = len(open_model(folder / "unknown_time.keras").run(steps, ["td/bn"])[1]["td/bn"])
    functional = open_model(folder / "functional.keras")
    x = np.load(folder / "functional_x.npy")
    result["y"] = functional.run(x)[0]
    result["y_named"] = functional.run({"in": x})[0]
    result["errors"] = {
        "text": message(lambda: functional.run(np.full((2, 3), "a"))),
        "named text": message(lambda: functional.run({"in": np.full((2, 3), 1j)})),
        "middle": unchanged(),
        "shape": message(lambda: functional.run(np.ones((2, 4)))),
        "name": message(lambda: functional.run({"other": x})),
        "layer": message(lambda: functional.run(x, ["none"])),
        "weights": message(lambda: open_model(folder / "functional.weights.h5").run(x)),
        "lambda": message(lambda: open_model(folder / "lambda.keras").run(np.ones((2, 3)))),
    }
    result["live"] = {name: live(name, getattr(writer, name)) for name in ("nested", "shared", "wrapped", "subclassed")}
    import keras

    from batchnorm.engines.keras import is_live
    from batchnorm.models.keras_live import from_live

    fresh = keras.layers.BatchNormalization(name="fresh")
    assert is_live(fresh)
    assert not is_live(np.ones(3))
    result["errors"]["fresh"] = message(lambda: from_live(fresh))
    fresh.build((None, 2))
    result["single"] = (
        [record.name for record in from_live(fresh).layers],
        from_live(fresh).run(np.ones((1, 2), "float32"), ["fresh"]),
    )

    for registered in ("tests>Block", "tests>SyncBatchNorm"):
        del keras.saving.get_custom_objects()[registered]
    result["errors"]["custom"] = message(lambda: open_model(folder / "custom.keras").run(np.ones((2, 4))))
    Path(out).write_bytes(pickle.dumps(result))
    Path(out).with_suffix(".json").write_text(json.dumps({"backend": keras.backend.backend()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
