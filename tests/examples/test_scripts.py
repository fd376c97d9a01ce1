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
