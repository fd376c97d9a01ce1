"""Models run by Keras, in a process of its own, against the records and the formula in float64."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from batchnorm.core.dtypes import unit_roundoff
from batchnorm.models import open_model
from tests.running import script

RUNNER = Path(__file__).with_name("run_keras_files.py")
CALLS = {"left/bn": 2, "twice": 2, "wrapper/inner": 5, "wrapped_model/inner/bn": 5}


def write_lambda(folder):
    with zipfile.ZipFile(folder / "functional.keras") as archive:
        config, weights = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    function = {
        "class_name": "__lambda__",
        "config": {"value": {"code": "4wEAAAA=", "defaults": None, "closure": None}},
    }
    config["config"]["layers"][1] |= {"class_name": "Lambda", "config": {"name": "d", "function": function}}
    with zipfile.ZipFile(folder / "lambda.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)


@pytest.fixture(scope="module")
def ran(keras_files, tmp_path_factory):
    write_lambda(keras_files)
    out = tmp_path_factory.mktemp("ran") / "result.pickle"
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    script(RUNNER, keras_files, out, KERAS_BACKEND=backend)
    assert json.loads(out.with_suffix(".json").read_text())["backend"] == backend
    return pickle.loads(out.read_bytes())


def formula(record, x, axis):
    """The inference equation in float64, and what an engine in float32 may be off by."""
    shape = [1] * x.ndim
    shape[axis] = record.channels

    def wide(array, default):
        return np.reshape(np.full(record.channels, default) if array is None else array.astype(np.float64), shape)

    gamma, beta = wide(record.gamma, 1.0), wide(record.beta, 0.0)
    mean, variance = wide(record.moving_mean, 0.0), wide(record.moving_variance, 1.0)
    epsilon = 1e-3 if record.epsilon is None else record.epsilon
    scale = gamma / np.sqrt(variance + epsilon)
    y = scale * (x - mean) + beta
    bound = np.abs(scale) * (np.abs(x) + np.abs(mean)) + np.abs(beta) + np.abs(y)
    return y, 4 * unit_roundoff("float32") * bound


def test_every_captured_output_is_the_formula(keras_files, ran):
    for file, (_, captured) in ran["runs"].items():
        for record in open_model(keras_files / file).layers:
            calls = captured[record.name]
            assert len(calls) == CALLS.get(record.name, 1), (file, record.name)
            for x, got in calls:
                y, bound = formula(record, x.astype(np.float64), record.axis)
                assert np.all(np.abs(got - y) <= bound), (file, record.name)


def test_a_wrapper_calls_its_layer_once_a_time_step(ran):
    assert ran["steps"] == 3


def test_outputs_are_those_of_the_model_that_was_saved(keras_files, ran):
    want = np.load(keras_files / "functional_y.npy")
    np.testing.assert_allclose(ran["y"], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ran["y"], ran["y_named"])


def test_refusals_say_the_way_out(ran):
    errors = ran["errors"]
    assert errors["shape"].startswith("ArgumentError") and "(any, 3)" in errors["shape"]  # noqa: PT018
    assert errors["name"].startswith("ArgumentError") and "in" in errors["name"]  # noqa: PT018
    assert errors["text"] == "ArgumentError: the model wants its input of dtype float32; got dtype <U1"
    assert errors["named text"] == "ArgumentError: the model wants its input of dtype float32; got dtype complex128"
    assert "Keras refuses an input of shape (2, 3) (RuntimeError: " in errors["middle"]
    assert "out of luck and lines" in errors["middle"]
    assert errors["layer"].startswith("UnknownLayer") and "full" in errors["layer"]  # noqa: PT018
    assert errors["weights"].startswith("ModelFileError") and "no graph" in errors["weights"]  # noqa: PT018
    assert errors["custom"].startswith("ModelFileError") and "package.module:name" in errors["custom"]  # noqa: PT018
    assert errors["lambda"].startswith("ModelFileError") and "Lambda" in errors["lambda"]  # noqa: PT018


def test_a_single_live_layer(ran):
    names, (y, captured) = ran["single"]
    assert names == ["fresh"]
    np.testing.assert_allclose(y, np.ones((1, 2)) / np.sqrt(1.001), rtol=1e-6)
    np.testing.assert_array_equal(captured["fresh"][0][1], y)
    assert ran["errors"]["fresh"].startswith("ArgumentError: layer 'fresh' has no weights yet")


def test_live_models_read_like_their_files(ran):
    for name, (found, expected) in ran["live"].items():
        by_name = {record[0]: record for record in found}
        assert sorted(by_name) == sorted(want["name"] for want in expected)
        for want in expected:
            _, updates, mode, epsilon = by_name[want["name"]]
            assert epsilon is not None
            if name != "subclassed":
                assert (updates, mode) == (want["updates"], want["mode"]), want["name"]


def test_a_backend_that_does_not_exist_is_one_line(keras_files, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3), "f4"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "KERAS_BACKEND": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-m", "batchnorm", "explain", keras_files / "functional.keras", "--data", tmp_path / "x.npy"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "batchnorm: Running this model: KERAS_BACKEND is 'nonsense', which Keras does not know. Set it to tensorflow, "
        "torch, jax.\n"
    )


def test_a_missing_backend_is_named(keras_files):
    script = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from batchnorm.errors import MissingExtra; from batchnorm.models import open_model\n"
        f"model = open_model(r'{keras_files / 'functional.keras'}')\n"
        "try: model.run([[1, 2, 3]])\n"
        "except MissingExtra as error: print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert "backend tensorflow" in done.stdout, done.stderr[-2000:]
    assert "KERAS_BACKEND" in done.stdout
