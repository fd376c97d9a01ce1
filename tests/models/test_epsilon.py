"""An epsilon that the file does not hold: given, hinted at, taken from a sibling, fitted; its weight always said."""

import json

import numpy as np
import pytest

import batchnorm as bn
from batchnorm import cli
from batchnorm.analysis.epsilon import fitted, sensitivity
from batchnorm.api.loading import load
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError
from tests.engines.bounds import formula

from .test_safetensors import norm, write


@pytest.fixture
def small(tmp_path):
    """A state dict whose second layer has small variances, where the epsilon matters."""
    arrays = norm("big.") | norm("small.", running_var=np.array([1e-3, 2e-3, 5.0], "f4"))
    return write(tmp_path / "m.safetensors", arrays)


def test_the_sensitivity_is_the_largest_change(small):
    records = load(small).layers
    said = load(small).notes[-1]
    assert "epsilon is unknown: between 0.001 and 0.00001" in said
    assert "(small, within three" in said
    record = records[1]
    x = np.stack([record.moving_mean - 3 * np.sqrt(record.moving_variance),
                  record.moving_mean + 3 * np.sqrt(record.moving_variance)]).astype("f8")  # fmt: skip
    one, other = (formula(record.replace(epsilon=e, epsilon_source="option"), x)[0] for e in (1e-3, 1e-5))
    moved = np.abs(one - other).max()
    assert f"by up to {moved:.4g} " in said


@pytest.mark.parametrize("form", ["list", "explain"])
def test_it_is_said_in_every_case(small, form, capsys):
    for options, words in (([], "is unknown: between"), (["--eps", "1e-3"], "0.001 was given: were it 0.00001")):
        assert cli.run([form, str(small), "--json", *options]) == 0
        document = json.loads(capsys.readouterr().out)
        assert words in " ".join(document["notes"])
        assert [layer["epsilon_source"] for layer in document["layers"]] == ["option" if options else "unknown"] * 2


def test_a_file_that_holds_its_own_says_nothing(torch_files):
    found = load(torch_files / "net.pt2", epsilon=0.5)
    assert sensitivity(found.layers) is None
    assert bn.explain(torch_files / "net.pt2", epsilon=0.5).notes == (
        "The epsilon given (0.5) was not used: the model holds its own, 0.00001 and 0.001.",
    ) or "was not used" in " ".join(bn.explain(torch_files / "net.pt2", epsilon=0.5).notes)


def test_a_hint_is_taken_when_asked_for(tmp_path):
    path = write(tmp_path / "crepe.safetensors", norm("conv1_BN."))
    (record,) = load(path).layers
    assert record.epsilon is None
    (record,) = load(path, epsilon="hint").layers
    assert (record.epsilon, record.epsilon_source) == (1e-3, "hint")
    assert "is what the names suggest" in load(path, epsilon="hint").notes[-1]
    with pytest.raises(ArgumentError, match="suggest no epsilon"):
        load(write(tmp_path / "m.safetensors", norm()), epsilon="hint")
    two = write(tmp_path / "timm.safetensors", norm("blocks.0.0.bn2."))
    with pytest.raises(ArgumentError, match="suggest no epsilon"):
        load(two, epsilon="hint")


def test_a_sibling_file(torch_files):
    found = load(torch_files / "state.pt", epsilon=torch_files / "net.pt2")
    assert {record.name: record.epsilon for record in found.layers} == {
        "stem.2": 1e-5, "block.bn": 1e-3, "cumulative": 1e-5, "plain": 1e-5, "flat": 1e-5,
    }  # fmt: skip
    assert {record.epsilon_source for record in found.layers} == {"sibling"}
    assert "is another file's" in found.notes[-1]


def test_a_file_that_is_no_sibling(torch_files, tmp_path):
    other = write(tmp_path / "m.safetensors", norm("bn."))
    with pytest.raises(ArgumentError, match=r"net\.pt2 holds no epsilon of a layer of"):
        load(other, epsilon=torch_files / "net.pt2")
    with pytest.raises(ArgumentError, match="holds no epsilon of a layer"):
        load(torch_files / "state.pt", epsilon=torch_files / "legacy.pth")


def record(variance, n=4):
    rng = np.random.default_rng(1)
    return LayerRecord(
        name="bn", kind="BatchNorm", channels=n, axis=1, dtype="float32", epsilon=None, epsilon_source="unknown",
        gamma=rng.normal(size=n).astype("f4"), beta=rng.normal(size=n).astype("f4"),
        moving_mean=rng.normal(size=n).astype("f4"), moving_variance=np.full(n, variance, "f4"),
    )  # fmt: skip


@pytest.mark.parametrize("variance", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1.001e-5, 1e-4, 0.0123])
def test_the_fit_finds_the_epsilon_an_engine_used(variance, epsilon):
    """Outputs rounded to float32: found where they tell it, and its bounds hold the true one in every case."""
    layer = record(variance)
    x = np.random.default_rng(2).normal(size=(50, 4)) * np.sqrt(variance) + layer.moving_mean
    y = formula(layer.replace(epsilon=epsilon, epsilon_source="file"), x)[0].astype("f4")
    found = fitted(layer, x.T, y.T.astype("f8"))
    assert found is not None
    assert found.low <= epsilon <= found.high
    assert abs(found.epsilon - epsilon) <= found.high - found.low
    if variance < 1 and epsilon != 1.001e-5:
        assert found.epsilon == pytest.approx(epsilon, rel=1e-2)


def test_a_pair_that_tells_nothing_is_not_fitted():
    layer = record(1e6)
    x = np.random.default_rng(2).normal(size=(5, 4)) * 1e3
    y = formula(layer.replace(epsilon=1e-3, epsilon_source="file"), x)[0].astype("f4").astype("f8")
    assert fitted(layer, x.T, y.T) is None  # 0.001 and 0.00001 give the same float32
    assert fitted(record(1.0), x.T, np.zeros((4, 5))) is None  # no output of this layer
    assert fitted(record(1.0), x.T, np.full((4, 5), np.nan)) is None


def test_the_fit_through_the_command(small, tmp_path, capsys):
    (_, layer) = load(small, epsilon=1e-3).layers
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("f4") * 0.05 + layer.moving_mean
    y = formula(layer, x)[0].astype("f4")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    arguments = ["explain", str(small), "--layer", "small", "--x", str(tmp_path / "x.npy"), "--expect",
                 str(tmp_path / "y.npy"), "--json"]  # fmt: skip
    assert cli.run(arguments) == 0
    (found,) = json.loads(capsys.readouterr().out)["layers"]
    assert (found["epsilon"], found["epsilon_source"]) == (1e-3, "fit")
    assert found["because"][0].startswith("The file holds no epsilon; 0.001 was fitted")
    assert any(reading["fits"] and reading["reading"].startswith("the moving mean") for reading in found["expected"])


@pytest.mark.parametrize("eps", ["nothing.keras", "-1", "nan", "inf"])
def test_bad_values(small, eps, capsys):
    assert cli.run(["list", str(small), "--eps", eps]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
