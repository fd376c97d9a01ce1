"""The command in this process, and model files made by hand for it."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest

from batchnorm import cli

ROOT = Path(__file__).parents[2]
ARRAYS = ((0.5, 1.25, 2.0), (0.1, -0.2, 0.3), (0.5, -1.0, 2.0), (1.2, 0.8, 2.5))


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    """Runs the command here: exit status, stdout, stderr. Any exception is a traceback, and so a failure."""

    def call(*arguments):
        status = cli.run([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture
def question():
    return ROOT / "examples/question.keras"


@pytest.fixture
def digits():
    return ROOT / "examples/digits.keras"


def norm(name="bn", **settings):
    """The configuration of one batch normalization, as Keras writes it."""
    config = {"name": name, "trainable": True, "axis": -1, "momentum": 0.99, "epsilon": 0.001} | settings
    return {"module": "keras.layers", "class_name": "BatchNormalization", "config": config, "registered_name": None}


def dense(name):
    return {"module": "keras.layers", "class_name": "Dense", "config": {"name": name}, "registered_name": None}


def weights(layers, edit=None):
    """model.weights.h5 of a Sequential of batch normalizations with three channels."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for number in range(sum(layer["class_name"] == "BatchNormalization" for layer in layers)):
            group = file.create_group(f"layers/batch_normalization{f'_{number}' if number else ''}/vars")
            for key, values in enumerate(ARRAYS):
                group[str(key)] = np.float32(values)
        if edit is not None:
            edit(file)
    return memory.getvalue()


@pytest.fixture
def make(tmp_path):
    """Writes a .keras of the given layers (names stand for batch normalizations) and gives its path."""

    def write(*layers, edit=None, file="model.keras"):
        whole = [norm(layer) if isinstance(layer, str) else layer for layer in layers or ("bn",)]
        config = {"module": "keras", "class_name": "Sequential", "config": {"name": "m", "layers": whole}}
        with zipfile.ZipFile(tmp_path / file, "w") as archive:
            archive.writestr("config.json", json.dumps(config))
            archive.writestr("model.weights.h5", weights(whole, edit))
        return tmp_path / file

    return write


@pytest.fixture
def environment():
    """For subprocesses: this checkout's package, and nothing else that steers it."""
    return {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ.get("PATH", ""), "PYTHONWARNINGS": "error"}
