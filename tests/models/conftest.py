import os
from pathlib import Path

import pytest

from tests.running import script


@pytest.fixture(scope="session")
def torch_files(tmp_path_factory):
    """State dicts, exported programs and ONNX files, written once by the installed PyTorch."""
    pytest.importorskip("torch", reason="the files are written by the real PyTorch")
    folder = tmp_path_factory.mktemp("torch_files")
    return _written("write_torch_files.py", folder)


@pytest.fixture(scope="session")
def keras_files(tmp_path_factory):
    """Files of every variant, written once by the installed Keras in a process of its own."""
    pytest.importorskip("keras", reason="the files are written by the real Keras")
    folder = tmp_path_factory.mktemp("keras_files")
    backend = os.environ.get("KERAS_BACKEND") or ("tensorflow" if _has("tensorflow") else "torch")
    return _written("write_keras_files.py", folder, KERAS_BACKEND=backend)


@pytest.fixture(scope="session")
def tensorflow_files(tmp_path_factory):
    """SavedModel folders and .tflite files, written once by the installed TensorFlow."""
    if not _has("tensorflow"):
        pytest.skip("the files are written by the real TensorFlow")
    folder = tmp_path_factory.mktemp("tensorflow_files")
    return _written("write_saved_models.py", folder, KERAS_BACKEND="tensorflow")


@pytest.fixture(scope="session")
def tf_keras_files(tmp_path_factory):
    """What tf.keras (Keras 2) writes, by the package that carries it on."""
    if not _has("tf_keras"):
        pytest.skip("the files are written by the real tf_keras")
    return _written("write_tf_keras.py", tmp_path_factory.mktemp("tf_keras_files"), KERAS_BACKEND="tensorflow")


def _written(writer, folder, **environment):
    script(Path(__file__).with_name(writer), folder, **environment)
    return folder


def _has(module):
    import importlib.util

    return importlib.util.find_spec(module) is not None
