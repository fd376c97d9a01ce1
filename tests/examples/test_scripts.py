"""The two scripts of the original question run on every Keras backend, and say what they should."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_question_and_verification(backend):
    pytest.importorskip("keras", reason="the scripts are Keras scripts")
    if importlib.util.find_spec(backend) is None:  # looked for, not imported: no two frameworks in this process
        pytest.skip(f"{backend} is not installed")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("run_both.py"), ROOT / "examples", backend],
        env=os.environ | {
            "PYTHONPATH": str(ROOT / "src"),
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_PLATFORMS": "cpu",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    asked, _, verified = done.stdout.partition("moving averages have hardly begun")
    for word in (
        "gamma          :",
        "moving_mean    :",
        "moving_variance:",
        "epsilon        : 0.001",
        "data_out       :",
    ):
        assert word in asked
    assert "the batch's own mean and variance" in asked
    assert "batchnorm.normalize" in verified
    assert "largest difference" in verified


def test_the_converter_loses_epsilon_and_nothing_else(tmp_path):
    """digits.onnx is what convert.py writes, and diff names what it lost."""
    pytest.importorskip("keras", reason="the script reads the model with Keras")
    pytest.importorskip("onnx", reason="and writes it with onnx")
    for name in ("convert.py", "digits.keras"):
        (tmp_path / name).write_bytes((ROOT / "examples" / name).read_bytes())
    done = subprocess.run(
        [sys.executable, tmp_path / "convert.py"], capture_output=True, text=True, check=False,
        env=os.environ | {"KERAS_BACKEND": os.environ.get("KERAS_BACKEND", "torch"), "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    import batchnorm as bn

    for converted in (tmp_path / "digits.onnx", ROOT / "examples/digits.onnx"):
        found = bn.diff(ROOT / "examples/digits.keras", converted)
        assert [[one.what for one in pair.differences] for pair in found.pairs] == [["epsilon", "decay"]] * 3
    first, second = (bn.load(path) for path in (tmp_path / "digits.onnx", ROOT / "examples/digits.onnx"))
    assert not bn.diff(first, second).changes_output
