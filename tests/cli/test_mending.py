"""fold, freeze and unfreeze as a user types them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import batchnorm as bn

from .conftest import ROOT
from .test_bad_input import refused, snapshot

SCHEMAS = Path(bn.__file__).parent / "render" / "schemas"
MODEL = ROOT / "examples/digits.onnx"


@pytest.fixture(autouse=True)
def engines():
    pytest.importorskip("onnx", reason="the model is edited with it")
    pytest.importorskip("onnxruntime", reason="the proof runs in it")


def test_fold_writes_what_it_proved(run, tmp_path):
    out = tmp_path / "out.onnx"
    before = MODEL.read_bytes()
    done = run("fold", MODEL, "-o", out)
    assert (done.status, done.err) == (0, "")
    assert MODEL.read_bytes() == before
    assert "3 of 3 batch normalizations folded" in " ".join(done.out.split())  # a long path wraps the line
    assert "Allowed: 1e-05" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert not bn.load(out).layers
    assert os.listdir(tmp_path) == ["out.onnx"]
    refused(run("fold", MODEL, "-o", out), "--force")
    assert run("fold", MODEL, "-o", out, "--force", "--format", "markdown").status == 0


def test_fold_as_json_with_data(run, tmp_path):
    import numpy as np

    np.save(tmp_path / "x.npy", np.ones((40, 1, 8, 8), "f4"))
    done = run("fold", MODEL, "-o", tmp_path / "o.onnx", "--data", tmp_path / "x.npy", "--skip", "block_bn1", "--json")
    assert done.status == 1  # one was left out
    document = json.loads(done.out)
    jsonschema.validate(document, json.loads((SCHEMAS / "fold.json").read_text("utf-8")))
    assert [(each["source"], each["samples"]) for each in document["proof"]["inputs"]] == [("random", 32), ("data", 40)]
    assert document["refused"] == [{"layer": "block_bn1", "why": "it was left out as asked"}]
    assert [each.name for each in bn.load(tmp_path / "o.onnx").layers] == ["block_bn1"]


def test_a_model_of_a_package(run, tmp_path):
    """35 batch normalizations of a trained network for text, all of them folded."""
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None:
        pytest.skip("rapidocr-onnxruntime is not installed")
    place = Path(spec.origin).parent / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    done = run("fold", place, "-o", tmp_path / "o.onnx", "--json")
    assert done.status == 0
    document = json.loads(done.out)
    assert len(document["folded"]) == document["proof"]["depth"] == 35
    assert document["proof"]["max_rel"] <= min(1e-5, document["proof"]["bound"])
    assert not bn.load(tmp_path / "o.onnx").layers


def test_nothing_to_fold(run, tmp_path):
    done = run("fold", MODEL, "-o", tmp_path / "o.onnx", "--skip", "stem_bn,block_bn1,block_bn2")
    assert done.status == 1
    assert "Nothing was folded, and nothing was written." in done.out
    assert not os.listdir(tmp_path)


def test_a_failed_proof_in_text(run, tmp_path, monkeypatch):
    from batchnorm.analysis import folding

    monkeypatch.setattr(folding.Linear, "then", lambda self, affine: self)
    done = run("fold", MODEL, "-o", tmp_path / "o.onnx")
    assert done.status == 1
    assert "Proof: failed" in done.out
    assert "nothing was written" in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 80
    assert not os.listdir(tmp_path)


def test_a_model_that_amplifies_rounding_is_said_to(run, tmp_path, monkeypatch):
    """A failed proof says how far the model moves by itself; here the demand is set below any rounding."""
    from batchnorm.api import folding

    monkeypatch.setattr(folding, "tolerance", lambda terms, dtype: 1e-9)
    done = run("fold", MODEL, "-o", tmp_path / "o.onnx")
    assert done.status == 1
    assert "amplifies rounding: it moves by" in " ".join(done.out.split())


def test_bad_input(run, question, tmp_path):
    out = tmp_path / "o.onnx"
    (tmp_path / "cut.onnx").write_bytes(MODEL.read_bytes()[:3000])
    (tmp_path / "mine.onnx").write_bytes(MODEL.read_bytes())
    before = snapshot(tmp_path)
    for command in ("fold", "freeze"):
        refused(run(command, tmp_path / "mine.onnx", "-o", tmp_path / "mine.onnx", "--force"), "never overwritten")
        refused(run(command, MODEL, "-o", tmp_path / "no" / "o.onnx") if command == "fold" else run(
            command, MODEL, "-o", tmp_path / "mine.onnx"), "-o: ")  # fmt: skip
        refused(run(command, tmp_path / "cut.onnx", "-o", out), "cut.onnx")
        refused(run(command, tmp_path / "none.onnx", "-o", out), "no such file")
        assert run(command, MODEL).status == 2
    refused(run("fold", MODEL, "-o", tmp_path / "o.keras"), "must end in .onnx")
    refused(run("fold", MODEL, "-o", out, "--skip", "stem"), "no batch normalization 'stem'", "stem_bn")
    refused(run("fold", MODEL, "-o", out, "--data", "none.npy"), "none.npy")
    refused(run("unfreeze", MODEL, "-o", out), "holds no training")
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_folder(run, tmp_path):
    tmp_path.chmod(0o500)
    try:
        refused(run("fold", MODEL, "-o", tmp_path / "o.onnx"), "cannot write")
    finally:
        tmp_path.chmod(0o700)


def test_interrupted(run, tmp_path, monkeypatch):
    from batchnorm.api import folding

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folding, "proved", interrupted)
    assert run("fold", MODEL, "-o", tmp_path / "o.onnx").status == 130
    assert not os.listdir(tmp_path)


def test_freeze_and_unfreeze_a_keras_file(run, digits, tmp_path):
    frozen, thawed = tmp_path / "f.keras", tmp_path / "t.keras"
    done = run("freeze", digits, "-o", frozen)
    assert done.status == 0
    assert "3 of 3 batch normalizations frozen" in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 80
    assert {record.mode for record in bn.load(frozen).layers} == {"frozen"}
    assert run("freeze", frozen, "-o", tmp_path / "no.keras").status == 1
    document = json.loads(run("unfreeze", frozen, "-o", thawed, "--json").out)
    jsonschema.validate(document, json.loads((SCHEMAS / "unfreeze.json").read_text("utf-8")))
    assert document["changed"] == ["stem_bn", "block_bn1", "block_bn2"]
    assert {record.mode for record in bn.load(thawed).layers} == {"by-call"}
    assert sorted(os.listdir(tmp_path)) == ["f.keras", "t.keras"]


@pytest.mark.parametrize("command", [["freeze"], ["recalibrate", "--debias"]], ids=["freeze", "recalibrate"])
def test_a_copy_keeps_its_format(run, question, tmp_path, command):
    refused(run(*command, question, "-o", tmp_path / "o.onnx"), "o.onnx must end in .keras")
    assert not os.listdir(tmp_path)


def test_folding_an_onnx_file_imports_no_other_framework(tmp_path):
    code = (
        "import sys; from batchnorm.cli import run; "
        f"status = run(['fold', {str(MODEL)!r}, '-o', {str(tmp_path / 'o.onnx')!r}]); "
        "sys.exit(status or any(name in sys.modules for name in ('keras', 'torch', 'tensorflow', 'jax')))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
