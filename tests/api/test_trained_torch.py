"""A network trained in PyTorch, as .pt, .safetensors, .pt2, TorchScript and .onnx: verified, compared, with a fault.

``.onnx`` is written by the exporter of torch.export, which folds three of the four batch normalizations into the
weights before them, and ``.old.onnx`` by the older one, which keeps all.
"""

import json

import pytest

import batchnorm as bn
from tests.api import trained
from tests.api.trained import CHANGED, KINDS, SILENT
from tests.running import script

pytestmark = pytest.mark.slow
SUFFIXES = (".pt2", ".pt", ".safetensors", ".ts.pt", ".onnx", ".old.onnx")
WEIGHTS = (".pt", ".safetensors")
WRITTEN = {
    ".pt2": [what for what in KINDS if what != "axis"],
    ".ts.pt": [what for what in KINDS if what not in ("axis", "mode")],
    ".old.onnx": [what for what in KINDS if what != "axis"],
    ".onnx": ["epsilon", "gamma", "swapped mean/variance", "dtype", "decay"],
} | {suffix: [what for what in KINDS if what not in ("epsilon", *SILENT, "axis", "mode")] for suffix in WEIGHTS}
"""What a format can express. A state dict has arrays alone; every format of PyTorch has its channels on axis 1;
TorchScript leaves the mode to its caller, and the new exporter writes inference whatever the mode."""
CAUSES = ("epsilon", "beta", "swapped gamma/beta", "mode", "dtype", "momentum-convention")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    for module in ("torch", "onnxscript", "onnxruntime", "safetensors", "sklearn"):
        pytest.importorskip(module, reason="the files are written and run by the real programs")
    folder = tmp_path_factory.mktemp("trained_torch")
    script(trained.SCRIPTS / "trained_torch.py", folder)
    return folder


@pytest.fixture(scope="module")
def verified(files):
    faults = [trained.file(files, what, suffix).name for what in CAUSES for suffix in (".pt2", ".old.onnx")]
    script(trained.SCRIPTS / "verify_all.py", files, *SUFFIXES, "--faults", *faults)
    return trained.verified(files)


def test_it_was_trained(files):
    assert json.loads((files / "accuracy.json").read_text()) > 0.9
    for record in trained.load(files, "model", ".pt").layers:
        assert record.updates == 60
        assert not record.untouched()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_engine_agrees_on_every_file(verified, suffix):
    trained.assert_every_engine_agrees(verified["alone"][suffix], 1 if suffix == ".onnx" else 4)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("direction", ["to", "from"])
def test_the_files_agree_layer_by_layer(verified, suffix, direction):
    document = verified["pairs"][f"{direction} {suffix}"]
    comparison = document["comparison"]
    assert document["agrees"]
    assert len(comparison["pairs"]) == (1 if suffix == ".onnx" else 4)
    if suffix in WEIGHTS:
        assert comparison["outputs"] is None
        assert any("weights alone" in note for note in document["notes"])
        assert any("holds no epsilon" in note for note in document["notes"])
    else:
        assert comparison["outputs"]["max_rel"] <= (2.0**-20 if "onnx" in suffix else 0)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_twins_do_not_differ(files, suffix):
    found = bn.diff(trained.load(files, "model", ".pt2"), trained.load(files, "model", suffix))
    assert not found.changes_output
    assert trained.differences(found) == {}
    if suffix == ".onnx":
        assert found.only_a == ("stem_bn", "branch_bn", "head_bn")
        assert "folded" in found.notes[-1]


@pytest.mark.parametrize(("suffix", "what"), [(suffix, what) for suffix in SUFFIXES for what in WRITTEN[suffix]])
def test_diff_names_the_fault(files, what, suffix):
    found = bn.diff(trained.load(files, "model", ".pt2"), trained.load(files, what, suffix))
    named = trained.differences(found)
    if (what, suffix) == ("mode", ".old.onnx"):  # this exporter runs the model, and a layer in training mode updates
        assert set(named[CHANGED]) == {"mode", "moving_mean", "moving_variance"}
    else:
        assert named == {CHANGED: [trained.kind_of(what)]}
    assert found.changes_output == (what not in SILENT)


@pytest.mark.parametrize("suffix", [".pt2", ".old.onnx"])
@pytest.mark.parametrize("what", CAUSES)
def test_verify_names_the_layer_and_the_cause(verified, what, suffix):
    document = verified["faults"][trained.file(trained.SCRIPTS, what, suffix).name]
    first = document["comparison"]["first_diverging"]
    if what in SILENT:
        assert first is None
        assert document["agrees"]
        return
    cause = "precision" if what == "dtype" else "constant"
    assert (first["a"], first["cause"]) == (CHANGED, cause)
    assert ("float16" if what == "dtype" else what) in first["why"]
    assert not document["agrees"]


@pytest.mark.parametrize("suffix", WEIGHTS)
def test_the_epsilon_of_a_state_dict_is_asked_for(files, suffix):
    model = trained.file(files, "model", suffix)
    with pytest.raises(bn.ArgumentError, match="--eps"):
        bn.verify(model, engines=["numpy"])
    assert bn.verify(model, engines=["numpy"], epsilon=1e-5).agrees
    with pytest.raises(bn.ModelFileError, match=r"weights and no graph.*--weights"):
        bn.verify(model, epsilon=1e-5, engines=["numpy"], data=[[1.0]])


def test_torchscript_runs_only_when_it_is_trusted(files):
    with pytest.raises(bn.ModelFileError, match="--trust"):
        bn.verify(files / "model.ts.pt", engines=["numpy"])
