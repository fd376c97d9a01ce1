import os
import subprocess
import sys
from pathlib import Path

import pytest

WRITER = Path(__file__).with_name("write_keras_files.py")


@pytest.fixture(scope="session")
def torch_files(tmp_path_factory):
    """State dicts, exported programs and ONNX files, written once by the installed PyTorch."""
    pytest.importorskip("torch", reason="the files are written by the real PyTorch")
    folder = tmp_path_factory.mktemp("torch_files")
    writer = WRITER.with_name("write_torch_files.py")
    done = subprocess.run([sys.executable, str(writer), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def keras_files(tmp_path_factory):
    """Files of every variant, written once by the installed Keras in a process of its own."""
    pytest.importorskip("keras", reason="the files are written by the real Keras")
    folder = tmp_path_factory.mktemp("keras_files")
    backend = os.environ.get("KERAS_BACKEND") or ("tensorflow" if _has("tensorflow") else "torch")
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(WRITER), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _has(module):
    import importlib.util

    return importlib.util.find_spec(module) is not None
