"""The command without data, and where it must not write."""

import errno
import json
import os
import shutil
import zipfile
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import batchnorm as bn
from tests.render.test_schemas import schema


def test_debias_takes_the_initial_value_out(run, digits, tmp_path):
    out = tmp_path / "out.keras"
    with bn.testing.assert_unchanged(digits):
        done = run("recalibrate", digits, "--debias", "--json", "-o", out)
    assert done.status == 0, done.err
    document = json.loads(done.out)
    jsonschema.Draft202012Validator(schema("recalibrate")).validate(document)
    assert (document["method"], document["passes"], document["gap"]) == ("debias", 0, None)
    for old, new in zip(bn.load(digits).layers, bn.load(out).layers, strict=True):
        weight = 0.99**29
        wanted = (old.moving_variance.astype(float) - weight) / (1 - weight)
        np.testing.assert_allclose(new.moving_variance, wanted, rtol=1e-6)
        np.testing.assert_allclose(new.moving_mean, old.moving_mean / (1 - weight), rtol=1e-6)
        np.testing.assert_array_equal(new.gamma, old.gamma)
    with zipfile.ZipFile(digits) as before, zipfile.ZipFile(out) as after:
        assert after.testzip() is None
        changed = [name for name in before.namelist() if before.read(name) != after.read(name)]
        assert changed == ["metadata.json", "model.weights.h5"]
        assert len(before.read(changed[1])) == len(after.read(changed[1]))
        metadata = json.loads(after.read(changed[0]))
        assert list(json.loads(metadata.pop("batchnorm.recalibrated"))) == ["debias"]
        assert metadata == json.loads(before.read(changed[0]))


def test_debias_is_refused_where_the_counter_is_unknown_or_the_variance_would_be_negative(run, make, tmp_path):
    out = tmp_path / "out.keras"
    done = run("recalibrate", make("bn"), "--debias", "-o", out)
    assert done.status == 2
    assert "does not hold the number of updates" in done.err
    assert "--updates N" in done.err
    done = run("recalibrate", make("bn"), "--debias", "--updates", 3, "-o", out)  # .97 of 1 cannot be left in .8
    assert done.status == 2
    assert "in doubt" in done.err
    assert not out.exists()
    assert run("recalibrate", make("bn"), "--debias", "--updates", 500, "-o", out).status == 0


def test_where_it_is_written(run, digits, tmp_path):
    model, there = tmp_path / "m.keras", tmp_path / "there.keras"
    shutil.copy(digits, model)
    there.write_text("here")
    with bn.testing.assert_unchanged(model):
        assert "never overwritten" in run("recalibrate", model, "--debias", "--force", "-o", model).err
        assert "--force" in run("recalibrate", model, "--debias", "-o", there).err
        assert "No such file" in run("recalibrate", model, "--debias", "-o", tmp_path / "none" / "o.keras").err
    assert there.read_text() == "here"
    assert run("recalibrate", model, "--debias", "--force", "-o", there).status == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_and_a_folder_that_cannot_be_written(run, digits, tmp_path, monkeypatch, number):
    def full(*_args, **_more):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("batchnorm.models.patching.shutil.copyfile", full)
    with bn.testing.assert_unchanged(digits):
        done = run("recalibrate", digits, "--debias", "-o", tmp_path / "out.keras")
    assert done.status == 2
    assert os.strerror(number) in done.err
    assert not list(Path(tmp_path).iterdir())


def test_what_does_not_go_together(run, digits, tmp_path):
    out = tmp_path / "o.keras"
    assert "no data" in run("recalibrate", digits, "-o", out).err
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8, 1), "f"))
    assert "not both" in run("recalibrate", digits, "--debias", "--data", tmp_path / "x.npy", "-o", out).err
    every = "stem_bn,block_bn1,block_bn2"
    assert "no layer is left" in run("recalibrate", digits, "--debias", "--skip", every, "-o", out).err
    assert "nearest" in run("recalibrate", digits, "--debias", "--only", "none", "-o", out).err
    assert not out.exists()
