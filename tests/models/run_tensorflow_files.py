"""Runs SavedModel folders in TensorFlow; what came out goes into a pickle."""

import pickle
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from batchnorm.models import open_model
from batchnorm.testing import assert_unchanged
from tests.running import tried

FOLDERS = ("exported", "saved", "fused", "training", "out")


def inputs(folder, files):
    rng = np.random.default_rng(2)
    if folder == "out":
        return {"a": rng.normal(size=(3, 5)), "b": rng.normal(size=(3, 5))}
    return np.load(files / "x.npy") if folder in ("exported", "saved") else rng.normal(size=(3, 4, 4, 3))


def main(files, out):
    found = {"runs": {}, "unchanged": [], "errors": {}}
    tf.random.set_seed(3)
    first = tf.random.uniform((3,)).numpy()
    tf.random.set_seed(3)
    for folder in FOLDERS:
        with assert_unchanged(files / folder):
            model = open_model(files / folder)
            names = [record.name for record in model.layers if not record.name.startswith("cond/")]
            found["runs"][folder] = model.run(inputs(folder, files), capture=names)
        found["unchanged"].append(folder)
    exported, two, fails = (open_model(files / folder) for folder in ("exported", "out", "fails"))
    with assert_unchanged(files / "fails"):
        found["runs"]["fails"] = fails.run(np.ones((2, 3)), capture=["bn"])
    found["unchanged"].append("fails")
    a, b = np.ones((3, 5), "f4"), np.zeros((3, 5), "f4")
    found["by list"], _ = two.run([*inputs("out", files).values()])
    with assert_unchanged(files):
        found["errors"] = {
            "shape": tried(lambda: exported.run(np.ones((2, 7)))),
            "dtype": tried(lambda: exported.run(np.ones((1, 8, 8, 3), complex))),
            "name": tried(lambda: two.run({"c": a})),
            "one": tried(lambda: two.run(a)),
            "layer": tried(lambda: exported.run(np.ones((1, 8, 8, 3)), capture=["none"])),
            "branch": tried(lambda: two.run({"a": a, "b": b}, capture=["cond/branch"])),
            "fails": tried(lambda: fails.run(np.full((2, 3), 20.0), capture=["bn"])),
        }
    found["unchanged"].append("after errors")
    found["seed"] = bool(np.array_equal(first, tf.random.uniform((3,)).numpy()))
    out.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
