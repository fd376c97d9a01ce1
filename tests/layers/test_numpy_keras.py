"""The same data and the same steps through Keras' fit and through ours end at the same weights."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from batchnorm.layers.fitting import SGD
from batchnorm.layers.numpy import BatchNormalization

SCRIPT = pathlib.Path(__file__).parent / "scripts" / "keras_fits.py"


def _data(shape, seed):
    random = np.random.default_rng(seed)
    x = random.normal(1.5, 2.0, shape).astype(np.float32)
    y = random.normal(0.5, 1.0, shape).astype(np.float32)
    return {"x": x, "y": y, "probe": (x[:4] + 3).astype(np.float32)}


def _question():
    random = np.random.default_rng(0)
    x, y = (random.random((10, 1, 2, 1)).astype(np.float32) for _ in range(2))
    return {"x": x, "y": y, "probe": np.array([[[[1], [5]]]], np.float32)}


RENORM = {"renorm": True, "renorm_clipping": {"rmin": 0.3, "rmax": 3.0, "dmax": 5.0}, "renorm_momentum": 0.9}
CASES = {  # epochs: those after which the weights are compared
    "full": ({"layer": {}, "epochs": [100, 500], "batch_size": 64}, _data((64, 3), 1)),
    "parts": ({"layer": {}, "epochs": [10, 50], "batch_size": 32}, _data((320, 2, 3), 2)),
    "uneven": ({"layer": {"momentum": 0.9}, "epochs": [5, 25], "batch_size": 24}, _data((470, 4), 3)),
    "first": ({"layer": {"axis": 1}, "epochs": [5, 25], "batch_size": 16}, _data((320, 3, 5), 4)),
    "bare": ({"layer": {"center": False, "scale": False}, "epochs": [5, 25], "batch_size": 16}, _data((320, 3), 5)),
    "question": ({"layer": {"center": False}, "epochs": [10], "batch_size": 32}, _question()),
    "renorm": ({"layer": RENORM, "epochs": [5, 25], "batch_size": 16}, _data((320, 3), 6)),
}


@pytest.fixture(scope="module")
def keras_results(tmp_path_factory):
    pytest.importorskip("tensorflow", reason="Keras' side runs on TensorFlow", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("keras")
    np.savez(folder / "cases.npz", cases=np.array(CASES, dtype=object))
    env = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, SCRIPT, folder / "cases.npz", folder / "out.npz"],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    with np.load(folder / "out.npz") as saved:
        return dict(saved)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_fit_ends_where_keras_fit_ends(name, keras_results):
    case, data = CASES[name]
    layer = BatchNormalization(**case["layer"])
    losses, done = [], 0
    for epochs in case["epochs"]:
        losses += layer.fit(
            data["x"], data["y"], epochs - done, case["batch_size"], optimizer=SGD(0.01), loss="mse", shuffle=False
        )
        done = epochs
        steps = epochs * -(-len(data["x"]) // case["batch_size"])
        # Both average in float32 with the same roundings; what differs is the batch's statistics, off by about 2^-23 of
        # a variance of 4 (5e-7) on Keras' side. An average weighs such errors by at most 1; systematic ones stay.
        tolerance = 2e-6 if steps <= 100 else 2e-5
        for key, ours in zip(layer.weight_names, layer.get_weights(), strict=True):
            error = np.max(np.abs(ours - keras_results[f"{name}/{epochs}/{key}"]))
            print(f"{name:9s} {steps:4d} steps {key:16s} {error:.1e}")
            assert error <= tolerance, (key, steps)
    # A mean over at most 960 elements in float32, of terms of at most 30: 2e-6 relative.
    np.testing.assert_allclose(losses, keras_results[f"{name}/losses"], rtol=5e-6)
    np.testing.assert_allclose(layer.predict(data["probe"]), keras_results[f"{name}/predicted"], rtol=1e-5, atol=2e-5)
    assert layer.updates == steps
