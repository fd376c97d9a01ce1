"""The fault that was put into a copy of a model is the one that diff names, across Keras' file formats and live."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import batchnorm as bn
from batchnorm import cli
from tests.running import script

WRITER = Path(__file__).with_name("write_twins.py")
SCHEMAS = Path(bn.__file__).parent / "render" / "schemas"
KINDS = (
    "epsilon", "decay", "momentum-convention", "ddof", "gamma", "beta", "moving_mean", "moving_variance",
    "swapped gamma/beta", "swapped mean/variance", "axis", "mode", "dtype", "dtype bfloat16",
)  # fmt: skip
SILENT = ("decay", "momentum-convention")


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    pytest.importorskip("keras", reason="the files are written by the real Keras")
    folder = tmp_path_factory.mktemp("twins")
    script(WRITER, folder, KERAS_BACKEND=os.environ.get("KERAS_BACKEND", "tensorflow"))
    return folder


def run(capsys, *arguments):
    status = cli.run([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("pair", [("keras", "keras"), ("h5", "h5"), ("keras", "h5")], ids="-".join)
@pytest.mark.parametrize("what", KINDS)
def test_the_fault_is_named(twins, what, pair, capsys):
    a, b = twins / f"base.{pair[0]}", twins / f"{what.replace('/', '-')}.{pair[1]}"
    status, out, err = run(capsys, "diff", a, b, "--json")
    document = json.loads(out)
    assert not err
    jsonschema.validate(document, json.loads((SCHEMAS / "diff.json").read_text("utf-8")))
    found = {pair["a"]: [one["what"] for one in pair["differences"]] for pair in document["pairs"]}
    assert found == {"first": [], "second": [what.split(" bf")[0]], "third": []}
    assert status == (0 if what in SILENT else 1)
    assert all(len(model["sha256"]) == 64 for model in document["models"])


def test_the_same_model_in_another_format_is_clean(twins, capsys):
    status, out, _ = run(capsys, "diff", twins / "base.keras", twins / "base.h5")
    assert status == 0
    assert "3 pairs of layers, none of them differ" in out


def test_live_models(twins):
    live = json.loads((twins / "live.json").read_text())
    assert live.pop("same") is False
    assert live == {what: [["second", what.split(" bf")[0]]] for what in KINDS}


def test_text_fits_80_columns_and_shows_the_change(twins, capsys):
    _, out, _ = run(capsys, "diff", twins / "base.keras", twins / "epsilon.h5")
    assert max(map(len, out.splitlines())) <= max(80, len(str(twins)) + 30)
    assert "epsilon" in out
    assert "PyTorch" in out
    _, out, _ = run(capsys, "diff", twins / "base.keras", twins / "epsilon.h5", "--format", "markdown")
    assert out.startswith("```text")


def test_bad_arguments(twins, tmp_path, capsys):
    status, _, err = run(capsys, "diff", twins / "base.keras", tmp_path / "missing.keras")
    assert (status, len(err.splitlines())) == (2, 1)
    assert run(capsys, "diff", twins / "base.keras")[0] == 2


def test_verify_names_the_first_layer_and_the_cause(twins):
    found = json.loads((twins / "verified.json").read_text())
    assert found.pop("same") is True
    assert found.pop("run") == "agrees"
    shape, empty = found.pop("refused")
    assert "(any, 6, 6, 6)" in shape
    assert "no sample" in empty
    assert found["epsilon"].pop() == "constant"
    # Momentum moves nothing in inference; Keras lets the caller's training=False win over a baked training=True.
    for what in (*SILENT, "mode"):
        assert found.pop(what) is None
    for what in ("dtype", "dtype bfloat16"):
        assert found.pop(what)[:2] == ["second", "precision"]
    for what, (layer, cause, why) in found.items():
        assert (layer, cause) == ("second", "constant"), what
        assert what in why


def test_an_epsilon_that_a_file_does_not_hold(twins, capsys):
    weights = twins / "base.weights.h5"
    status, _, err = run(capsys, "verify", weights, "--engines", "numpy")
    assert status == 2
    assert "--eps" in err
    assert run(capsys, "verify", weights, "--engines", "numpy", "--eps", "1e-3")[0] == 0
    status, out, _ = run(capsys, "verify", twins / "base.keras", weights)
    assert status == 0
    assert "epsilon" in out


def test_every_engine_on_the_input_that_reaches_each_layer(twins):
    """The command as a user types it; here and in no other test all engines run on one model."""
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "batchnorm", "verify", "base.keras", "--data", "x.npy", "--json"],
        cwd=twins, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "verify.json").read_text("utf-8")))
    assert [engine["name"] for engine in document["engines"]] == [
        "reference", "numpy", "keras-tensorflow", "keras-jax", "keras-torch", "keras-ops", "tf.nn", "torch", "jax",
        "flax", "onnxruntime",
    ]  # fmt: skip
    for engine in [*document["engines"], document["model_run"]]:
        assert engine["status"] == "agrees", engine
        assert engine["share_of_bound"] <= 1
        assert [layer["name"] for layer in engine["layers"]] == ["first", "second", "third"]
        assert sum(row["count"] for row in engine["by_decade"]) == 3 * 20 * 6**3
