"""Every engine computes batch normalization within its bound; one that fails says why. Each framework starts once."""

import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest

from batchnorm.analysis.agreement import allowed
from batchnorm.analysis.constants import Constants
from batchnorm.core.record import LayerRecord
from batchnorm.engines import norms
from batchnorm.engines.norms import ENGINES, NormCall
from batchnorm.engines.workers import EngineFailed, Workers

NAMES = (
    "reference", "numpy", "keras-tensorflow", "keras-jax", "keras-torch", "keras-ops", "tf.nn", "torch", "jax", "flax",
    "onnxruntime",
)  # fmt: skip
LAYOUTS = (((6, 5), 1), ((4, 3, 5), 2), ((4, 5, 3), 1), ((2, 3, 3, 5), 3), ((2, 5, 3, 3), 1), ((2, 3, 5, 2, 2), 2))


@pytest.fixture(scope="session")
def workers():
    with Workers() as started:
        yield started


def call(shape=(6, 5), axis=1, dtype="float32", gamma=True, beta=True, mean=1.0, sd=1.0, epsilon=1e-3):
    rng = np.random.default_rng(0)
    c = shape[axis]
    return NormCall(
        x=(mean + sd * rng.standard_normal(shape)).astype(dtype),
        gamma=rng.uniform(-2, 2, c).astype(dtype) if gamma else None,
        beta=rng.normal(size=c).astype(dtype) if beta else None,
        mean=np.full(c, mean, dtype),
        variance=(sd**2 * rng.uniform(0.5, 2, c)).astype(dtype),
        epsilon=epsilon,
        axis=axis,
    )


def constants(one):
    record = LayerRecord(
        name="bn", kind="K", channels=one.mean.size, axis=one.axis, dtype=one.x.dtype.name, epsilon=one.epsilon,
        epsilon_source="option", gamma=one.gamma, beta=one.beta, moving_mean=one.mean, moving_variance=one.variance,
    )  # fmt: skip
    return Constants.of(record, one.epsilon).along(one.x.ndim, one.axis)


def share(workers, name, one):
    """The largest error in units of the bound; the output has the type and shape of the input."""
    if norms.installed(ENGINES[name]) is not None:
        pytest.skip(f"{name} is not installed")
    y = workers.compute(name, one)
    assert y.shape == one.x.shape
    if name != "reference":
        assert y.dtype == one.x.dtype
    expected = workers.compute("reference", one)
    return float(np.max(np.abs(y - expected) / allowed(constants(one), one.x, y)))


def test_the_names_are_the_contract():
    assert tuple(ENGINES) == NAMES
    for engine in ENGINES.values():
        module, _, function = engine.place.partition(":")
        source = (Path(inspect.getfile(norms)).parent / f"{module}.py").read_text("utf-8")
        assert f"def {function}(call: NormCall)" in source


@pytest.mark.parametrize("name", NAMES)
def test_every_layout(workers, name):
    for shape, axis in LAYOUTS:
        for gamma in (True, False):
            for beta in (True, False):
                one = call(shape, axis, gamma=gamma, beta=beta)
                assert share(workers, name, one) <= 1, (shape, axis, gamma, beta)


@pytest.mark.parametrize("name", NAMES)
def test_large_means_and_small_variances(workers, name):
    # Scale-and-shift loses mean/sd units of roundoff, which the bound counts and no more than that.
    for mean, sd, epsilon in ((1e6, 1, 1e-3), (1e4, 1e-3, 1e-5), (0, 1e-6, 1e-12), (-3e5, 30, 1e-3)):
        assert share(workers, name, call((64, 5), mean=mean, sd=sd, epsilon=epsilon)) <= 1, (mean, sd)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("keras-jax", "keras-torch")])
def test_float64_is_computed_in_float64(workers, name):
    assert share(workers, name, call(dtype="float64")) <= 1


def test_float64_layers_of_keras_compute_in_float32_on_two_backends(workers):
    """Recorded, not asserted to stay: their result_type takes float64 and float32 to float32."""
    for name in ("keras-jax", "keras-torch"):
        assert share(workers, name, call(dtype="float64")) <= 2.0**29


def test_the_numpy_operation_rounds_once(workers):
    one = call(mean=1e6)
    y, expected = workers.compute("numpy", one), workers.compute("reference", one)
    np.testing.assert_array_equal(y, expected.astype(np.float32))


def test_versions_are_reported(workers):
    for name in ("numpy", "onnxruntime"):
        workers.compute(name, call())
        module = __import__(name)
        assert workers.versions[name] == module.__version__


def bad():
    one = call()
    return NormCall(one.x, one.gamma, one.beta, one.mean[:2], one.variance, one.epsilon, one.axis)


def test_an_error_in_an_engine_is_its_answer(workers):
    with pytest.raises(EngineFailed, match="INVALID_ARGUMENT"):
        workers.compute("onnxruntime", bad())
    assert share(workers, "onnxruntime", call()) <= 1  # and the process still answers


def test_a_process_that_dies_is_named_and_started_anew():
    with Workers() as own:
        own.compute("onnxruntime", call())
        own._processes["onnxruntime"]._process.kill()
        with pytest.raises(EngineFailed, match="died with exit status -9"):
            own.compute("onnxruntime", call())
        own.compute("onnxruntime", call())


def test_a_process_that_cannot_start_says_its_last_words(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with Workers() as own, pytest.raises(EngineFailed, match="died with exit status 1"):
        own.compute("onnxruntime", call())


def test_a_silent_process_is_ended():
    with Workers(timeout=0.01) as own:
        with pytest.raises(EngineFailed, match=r"within 0\.01 seconds"):
            own.compute("onnxruntime", call())
        assert not own._processes


def test_a_file_beside_the_user_is_no_framework(tmp_path, monkeypatch):
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('ran a file of the current directory')")
    monkeypatch.chdir(tmp_path)
    with Workers() as own:
        own.compute("onnxruntime", call())
