"""Recalibration of exported programs, and of state dicts with the live module they belong to."""

import copy
import json
import zipfile

import numpy as np
import pytest

import batchnorm as bn
from batchnorm import cli
from tests.api.networks import Branches, off
from tests.api.test_recalibrate import images
from tests.api.test_recalibrate_onnx import trained

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    torch.manual_seed(0)
    model = trained(Branches(), torch.from_numpy(images(8)))
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    dynamic = ({0: torch.export.Dim("n", min=2)},)
    program = torch.export.export(model, (torch.from_numpy(images(4)),), dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return model, path


@pytest.mark.parametrize("method", ["one-pass", "sequential"])
def test_a_program_gets_what_its_module_gets(twin, tmp_path, method):
    module, path = twin
    live = copy.deepcopy(module)
    ours = {layer.name: layer for layer in bn.recalibrate(live, images(50), method=method, batch_size=16).layers}
    with bn.testing.assert_unchanged(path):
        theirs = bn.recalibrate(path, images(50), method=method, batch_size=16, out=tmp_path / "out.pt2")
    assert theirs.passes == (3 if method == "sequential" else 1)
    for layer in theirs.layers:
        np.testing.assert_allclose(layer.after.mean, ours[layer.name].after.mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(layer.after.variance, ours[layer.name].after.variance, rtol=1e-6)
    x = torch.from_numpy(images(5, seed=3))
    again = torch.export.load(tmp_path / "out.pt2").module()(x)
    torch.testing.assert_close(again, live.eval()(x), rtol=1e-4, atol=1e-5)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "out.pt2") as new:
        assert [*old.namelist(), "model/extra/batchnorm.recalibrated"] == new.namelist()
        changed = [name for name in old.namelist() if old.read(name) != new.read(name)]
        assert len(changed) == 8  # the mean and the variance of four layers
        assert all("/data/weights/" in name for name in changed)


# -- state dicts -------------------------------------------------------------------------------------------------------


def made():
    return Branches()


@pytest.fixture
def arrays(tmp_path):
    np.save(tmp_path / "x.npy", images(40))
    np.save(tmp_path / "y.npy", np.arange(40) % 10)
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_dict_with_its_module_by_the_command(arrays, capsys, suffix, prefix):
    torch.manual_seed(1)
    state = {
        f"{prefix}{name}": value
        for name, value in trained(Branches(), torch.from_numpy(images(8))).state_dict().items()
    }
    path, out = arrays / f"model{suffix}", arrays / f"out{suffix}"
    torch.save(state, path) if suffix == ".pt" else safetensors.save_file(state, path)
    asked = [
        "recalibrate",
        f"{__name__}:made",
        "--weights",
        path,
        "--data",
        arrays / "x.npy",
        "--labels",
        arrays / "y.npy",
    ]
    status = cli.run([*map(str, asked), "--method", "sequential", "--json", "-o", str(out)])
    shown = capsys.readouterr()
    assert status == 1, shown.err  # the unused layer
    document = json.loads(shown.out)
    assert "3 passes over the data" in shown.err
    assert document["accuracy"]["before"] is not None
    new = torch.load(out, weights_only=True) if suffix == ".pt" else safetensors.load_file(out)
    model = Branches()
    model.load_state_dict({name.removeprefix(prefix): value for name, value in new.items()})
    for name in ("b1", "b2", "bside", "b3"):
        assert off(model, name, torch.from_numpy(images(40))) < 1e-5
    assert all(torch.equal(state[name], value) for name, value in new.items() if "running" not in name)


def test_a_state_dict_alone_cannot_be_run(arrays, capsys):
    torch.save(Branches().state_dict(), arrays / "m.pt")
    given = ["recalibrate", arrays / "m.pt", "--data", arrays / "x.npy", "-o", arrays / "o.pt"]
    assert cli.run([*map(str, given)]) == 2
    assert "package.module:name --weights FILE" in capsys.readouterr().err


def test_a_live_object_is_written_as_a_state_dict(arrays, capsys):
    out = arrays / "out.pt"
    given = ["recalibrate", f"{__name__}:made", "--data", arrays / "x.npy", "-o", out]
    assert cli.run([*map(str, given)]) == 1, capsys.readouterr().err
    model = Branches()
    model.load_state_dict(torch.load(out, weights_only=True))
    assert not torch.equal(model.b1.running_mean, torch.zeros(8))
