"""Runs .tflite files in LiteRT; what came out goes into a pickle."""

import pickle
import sys
from pathlib import Path

import numpy as np

from batchnorm.models import open_model
from batchnorm.testing import assert_unchanged
from tests.running import tried


def main(files, out):
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 3)).astype("f4")
    found = {"runs": {}}
    with assert_unchanged(files):
        for file in ("float.tflite", "half.tflite", "int8.tflite"):
            model = open_model(files / file)
            found["runs"][file] = model.run(x[:1], capture=[record.name for record in model.layers])
        model = open_model(files / "float.tflite")
        found["lengths"] = model.run(x[:1])[0], model.run(x)[0]
        merged = next(record.name for record in model.layers if "merged" in record.name)
        found["errors"] = {
            "shape": tried(lambda: model.run(np.ones((2, 7)))),
            "name": tried(lambda: model.run({"picture": x})),
            "layer": tried(lambda: model.run(x, capture=["none"])),
            "merged": tried(lambda: model.run(x, capture=[merged])),
        }
        found["unchanged"] = True
    out.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
