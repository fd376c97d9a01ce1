"""A network trained in Keras, as .keras, .h5, SavedModel, .onnx and .tflite: verified, compared, and with a fault.

The .onnx is written by Keras' own export on its PyTorch backend, which hands it to torch.onnx and leaves each batch
normalization as a subtraction, a multiplication and an addition. The converter to .tflite merges three of the four into
the weights before them and leaves the one behind the addition as a multiplication and an addition.
"""

import json

import pytest

import batchnorm as bn
from batchnorm import cli
from tests.api import trained
from tests.api.trained import CHANGED, KINDS, SILENT
from tests.running import script

pytestmark = pytest.mark.slow
SUFFIXES = (".keras", ".h5", "_saved", ".onnx", ".tflite")
FOLDED = (".onnx", ".tflite")
ONE_NUMBER = {"moving_variance": "gamma", "moving_mean": "beta"}
GRAPH = [what for what in KINDS if what not in (*SILENT, "axis", "mode")]
CONVERTED = ["epsilon", "ddof", "gamma", "moving_mean", "moving_variance", "swapped mean/variance", "dtype"]
WRITTEN = {".keras": KINDS, ".h5": KINDS, "_saved": CONVERTED, ".onnx": GRAPH, ".tflite": CONVERTED}
"""What a format can express. A graph for inference has no momentum, and Keras writes no other axis or mode into it: the
weights are laid out anew, and training=True gives way to the exporter's training=False or is refused by it. The faults
that scale and shift can hide are converted to LiteRT; `tests/analysis/test_unfolding.py` has all of them."""
CAUSES = ("epsilon", "gamma", "moving_variance", "swapped mean/variance", "dtype")
PLANTED = [(suffix, what) for suffix in (".keras", *FOLDED) for what in CAUSES] + [(".keras", "decay")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    for module in ("keras", "tensorflow", "torch", "onnxruntime", "sklearn"):
        pytest.importorskip(module, reason="the files are written and run by the real programs")
    folder = tmp_path_factory.mktemp("trained_keras")
    script(trained.SCRIPTS / "trained_keras.py", folder, KERAS_BACKEND="tensorflow")
    script(trained.SCRIPTS / "trained_keras.py", folder, KERAS_BACKEND="torch")
    return folder


@pytest.fixture(scope="module")
def verified(files):
    faults = [trained.file(files, what, suffix).name for suffix, what in PLANTED]
    script(trained.SCRIPTS / "verify_all.py", files, *SUFFIXES, "--faults", *faults, KERAS_BACKEND="tensorflow")
    return trained.verified(files)


def test_it_was_trained(files):
    assert json.loads((files / "accuracy.json").read_text()) > 0.9
    for record in trained.load(files, "model", ".keras").layers:
        assert record.updates == 60
        assert record.initial_weight < 0.01
        assert not record.untouched()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_engine_agrees_on_every_file(verified, suffix):
    trained.assert_every_engine_agrees(verified["alone"][suffix], 1 if suffix == ".tflite" else 4)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("direction", ["to", "from"])
def test_the_files_agree_layer_by_layer(verified, suffix, direction):
    document = verified["pairs"][f"{direction} {suffix}"]
    comparison = document["comparison"]
    assert document["agrees"]
    assert len(comparison["pairs"]) == (1 if suffix == ".tflite" else 4)
    # One program on one set of weights gives the same bits; ONNX Runtime and LiteRT sum in another order.
    assert comparison["outputs"]["max_rel"] <= (2.0**-20 if suffix in FOLDED else 0)
    if suffix == ".tflite":
        assert any("part of other weights" in note for note in document["notes"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_twins_do_not_differ(files, suffix):
    found = bn.diff(trained.load(files, "model", ".keras"), trained.load(files, "model", suffix))
    assert len(found.pairs) == 4
    assert not found.changes_output
    assert trained.differences(found) == {}


@pytest.mark.parametrize(("suffix", "what"), [(suffix, what) for suffix in SUFFIXES for what in WRITTEN[suffix]])
def test_diff_names_the_fault(files, what, suffix):
    found = bn.diff(trained.load(files, "model", ".keras"), trained.load(files, what, suffix))
    named = ONE_NUMBER.get(what, what) if suffix in FOLDED else what
    if (suffix, what) == (".onnx", "moving_mean"):
        named = what  # this exporter keeps the mean apart
    assert trained.differences(found) == {CHANGED: [trained.kind_of(named)]}
    assert found.changes_output == (what not in SILENT)
    if named != what:
        (one,) = next(pair.differences for pair in found.pairs if pair.a == CHANGED)
        assert what in one.detail


def test_momentum_is_lost_in_a_graph_for_inference(files):
    for what in SILENT:
        found = bn.diff(trained.load(files, "model", ".keras"), trained.load(files, what, ".onnx"))
        assert trained.differences(found) == {}


@pytest.mark.parametrize(("suffix", "what"), PLANTED)
def test_verify_names_the_layer_and_the_cause(verified, what, suffix):
    document = verified["faults"][trained.file(trained.SCRIPTS, what, suffix).name]
    first = document["comparison"]["first_diverging"]
    if what in SILENT:
        assert first is None
        assert document["agrees"]
        return
    cause = "precision" if what == "dtype" else "constant"
    named = ONE_NUMBER.get(what, what) if suffix in FOLDED else what
    assert (first["a"], first["cause"]) == (CHANGED, cause)
    assert ("float16" if what == "dtype" else named) in first["why"]
    assert not document["agrees"]


def test_a_file_of_folded_layers_is_explained_by_its_notes(files, capsys):
    assert cli.run(["diff", str(files / "model.keras"), str(files / "model.tflite")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 4 kept a scale" in out
    assert "Not compared" in out
    assert "'stem_bn', 'branch_bn', 'head_bn'" in out


def test_merged_layers_alone_are_nothing_to_verify(files):
    with pytest.raises(bn.ArgumentError, match="part of the weights of another operator"):
        bn.verify(files / "model.tflite", layer="stem_bn_1", engines=["numpy"])


def test_inputs_saved_from_one_format_feed_another(files, tmp_path, capsys):
    """Saved where the .keras runs, loaded where only the SavedModel is: same numbers, same errors."""
    saved = tmp_path / "inputs.npz"
    code = cli.run(["verify", str(files / "model.keras"), "--random", "9", "--seed", "3", "--engines", "numpy",
                    "--save-inputs", str(saved), "--json"])  # fmt: skip
    first = json.loads(capsys.readouterr().out)
    assert code == 0
    for other in ("model.h5", "model_saved"):
        assert cli.run(["verify", str(files / other), "--engines", "numpy", "--load-inputs", str(saved), "--json"]) == 0
        again = json.loads(capsys.readouterr().out)
        assert again["engines"][0]["layers"] == first["engines"][0]["layers"]
        assert again["input"]["source"] == "saved inputs"
    # The .onnx has other names; its scale, mean and shift on the same numbers, in their order.
    assert (
        cli.run(["verify", str(files / "model.onnx"), "--engines", "numpy", "--load-inputs", str(saved), "--json"]) == 0
    )
    assert any("in their order" in note for note in json.loads(capsys.readouterr().out)["notes"])
