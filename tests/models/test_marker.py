"""Recalibrated statistics are marked as such: their counter is not about them, and no rule reads it so."""

import copy
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import batchnorm as bn
from batchnorm import cli
from batchnorm.core.record import LayerRecord
from batchnorm.models import marker

HERE = Path(__file__).parent
DATA = np.random.default_rng(0).normal(4, 0.3, (256, 6)).astype("float32")


def record(mean=0.5, **more):
    return LayerRecord(
        name="bn", kind="BatchNormalization", channels=2, axis=-1, dtype="float32", epsilon=1e-3,
        epsilon_source="file", averaging="exponential", decay=0.99, momentum=0.99, ddof=0, mode="by-call",
        moving_mean=np.float32([mean, 1]), moving_variance=np.float32([0.95, 2]), **more,
    )  # fmt: skip


def codes(model):
    return [finding.rule.code for finding in bn.check(model).findings]


def told(model):
    return [(each.updates, each.initial_weight, each.recalibrated) for each in bn.load(model).layers]


def trained():
    """Ten steps at momentum .99, as PyTorch counts 0.01."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(6, momentum=0.01), torch.nn.Linear(6, 1)).train()
    for part in torch.from_numpy(DATA[:250]).split(25):
        model(part)
    return model


def test_a_mark_is_about_numbers_and_not_about_names():
    text = marker.text_of([record()], {"bn"}, "one-pass")
    renamed = record().replace(name="module.bn")
    (found,) = marker.marked([renamed.with_updates(10, "option")], text)
    assert found.recalibrated == "one-pass"
    assert (found.updates, found.initial_weight) == (None, None)
    assert "recalibrated" in found.updates_doubt
    assert marker.marked([record(0.6)], text)[0].recalibrated is None, "statistics that have moved since"


def test_layers_marked_before_keep_their_mark():
    first = record(0.1).replace(name="a").with_recalibration("sequential")
    text = marker.text_of([first, record(0.2).replace(name="b"), record(0.3)], {"bn"}, "debias")
    found = marker.marked([record(0.1), record(0.2), record(0.3)], text)
    assert [each.recalibrated for each in found] == ["sequential", None, "debias"]


@pytest.mark.parametrize("text", [None, "", "no JSON", "[1]", '{"one-pass": 3}', '{"one-pass": [4]}', b"\xff", 7,
                                  '{"other": ["0123456789abcdef"]}', "[" * 100_000])  # fmt: skip
def test_a_damaged_mark_marks_nothing(text):
    assert marker.marked([record()], text)[0].recalibrated is None


@pytest.mark.parametrize("backend", ["jax"])
def test_keras_files_and_live_models(backend, tmp_path):
    pytest.importorskip(backend)
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(HERE.parents[1] / "src")}
    command = [sys.executable, str(HERE / "run_marked_keras.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_exported_program(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    before, after = tmp_path / "before.pt2", tmp_path / "after.pt2"
    given = (torch.from_numpy(DATA[:8]),)
    torch.export.save(torch.export.export(trained().eval(), given), before)
    assert "BN107" in codes(before)
    bn.recalibrate(before, DATA, out=after, batch_size=8)
    assert "BN107" not in codes(after)
    assert told(after) == [(None, None, "one-pass")]
    extra = {marker.KEY: ""}
    program = torch.export.load(after, extra_files=extra)
    assert "one-pass" in extra[marker.KEY], "the mark lies where PyTorch looks for extra files"
    assert torch.equal(program.state_dict["0.running_mean"], torch.tensor(bn.load(after).layers[0].moving_mean))
    assert cli.run(["list", str(after)]) == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["0", "6"])
    assert row[4:6] == ["-", "none"], "neither a counter nor an initial share"


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_state_dicts_with_their_module(suffix, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    load = __import__("safetensors.torch").torch.load_file if suffix == "safetensors" else torch.load
    model = trained()
    before, after = tmp_path / f"before.{suffix}", tmp_path / f"after.{suffix}"
    if suffix == "pt":
        torch.save(model.state_dict(), before)
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), before, metadata={"format": "pt", "own": "kept"})
    assert bn.load(before).layers[0].updates == 10
    fresh = torch.nn.Sequential(torch.nn.BatchNorm1d(6, momentum=0.01), torch.nn.Linear(6, 1))
    assert "BN107" in codes(bn.load(copy.deepcopy(fresh), weights=before))
    bn.recalibrate(copy.deepcopy(fresh), DATA, weights=before, out=after)
    assert told(after) == [(None, None, "one-pass")]
    state = load(after)
    assert state.keys() == model.state_dict().keys()
    assert int(state["0.num_batches_tracked"]) == 10, "the counter stays what it was"
    np.testing.assert_allclose(state["0.running_mean"], DATA.mean(0), rtol=1e-5)
    fresh.load_state_dict(state, strict=True)
    read = bn.load(copy.deepcopy(fresh), weights=after)
    assert [each.recalibrated for each in read.layers] == ["one-pass"], "loaded by us, the mark goes along"
    assert "BN107" not in codes(read)
    if suffix == "safetensors":
        from safetensors import safe_open

        with safe_open(after, "np") as file:
            assert file.metadata()["own"] == "kept"
            assert file.metadata()["format"] == "pt"
    else:
        assert zipfile.ZipFile(after).testzip() is None
        assert torch.load(after, mmap=True)["0.running_var"].shape == (6,)


def test_a_live_module_its_copies_and_training_on(tmp_path):
    torch = pytest.importorskip("torch")
    model = trained()
    assert "BN107" in codes(model)
    written = bn.recalibrate(model, DATA, out=tmp_path / "out.pt").notes
    notes = bn.recalibrate(model, DATA).notes
    assert any("state dicts do not write it" in note for note in notes)
    assert not any("state dicts do not write it" in note for note in written)
    assert "BN107" not in codes(model)
    assert told(model) == [(None, None, "one-pass")]
    assert told(copy.deepcopy(model)) == [(None, None, "one-pass")]
    assert model.state_dict().keys() == trained().state_dict().keys()
    assert int(model[0].num_batches_tracked) == 10
    model.train()(torch.from_numpy(DATA[:25]))
    assert told(model)[0][2] is None, "statistics that have moved since"


def test_a_layer_without_a_mark_is_still_found(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(6, momentum=0.01), torch.nn.BatchNorm1d(6, momentum=0.01)).train()
    for part in torch.from_numpy(DATA[:250]).split(25):
        model(part)
    bn.recalibrate(model, DATA, only=["0"])
    assert [finding.hit.layer for finding in bn.check(model).findings if finding.rule.code == "BN107"] == ["1"]


def test_debiasing_twice_is_refused(tmp_path):
    model = trained()
    bn.recalibrate(model, debias=True)
    assert told(model) == [(None, None, "debias")]
    with pytest.raises(bn.errors.Refused, match="hold no initial value"):
        bn.recalibrate(model, debias=True)


def test_an_onnx_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    torch = pytest.importorskip("torch")
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    from tests.api.test_recalibrate_onnx import export

    export(trained().eval(), (torch.from_numpy(DATA[:8]),), before, dynamic_axes={"x": {0: "n"}}, input_names=["x"])
    bn.recalibrate(before, DATA, out=after)
    assert told(after) == [(None, None, "one-pass")]
    onnx.checker.check_model(onnx.load(after))
    session = runtime.InferenceSession(after, providers=["CPUExecutionProvider"])
    held = session.get_modelmeta().custom_metadata_map
    assert list(json.loads(held[marker.KEY])) == ["one-pass"]
