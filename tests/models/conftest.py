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


@pytest.fixture(scope="session")
def tensorflow_files(tmp_path_factory):
    """SavedModel folders and .tflite files, written once by the installed TensorFlow."""
    if not _has("tensorflow"):
        pytest.skip("the files are written by the real TensorFlow")
    return _written("write_saved_models.py", tmp_path_factory.mktemp("tensorflow_files"))


@pytest.fixture(scope="session")
def tf_keras_files(tmp_path_factory):
    """What tf.keras (Keras 2) writes, by the package that carries it on."""
    if not _has("tf_keras"):
        pytest.skip("the files are written by the real tf_keras")
    return _written("write_tf_keras.py", tmp_path_factory.mktemp("tf_keras_files"))


def _written(writer, folder):
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(WRITER.with_name(writer)), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _has(module):
    import importlib.util

    return importlib.util.find_spec(module) is not None
