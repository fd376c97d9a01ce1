"""``.pt``, ``.pth``, ``.ckpt``: checkpoints as scripts write them, and those that carry code."""

import argparse
import collections
import json
import os
import pickle
import random
import types
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from batchnorm.errors import MissingExtra, ModelFileError
from batchnorm.models import open_model

from .fuzzing import mutated, outcomes
from .test_bad_files import refused

torch = pytest.importorskip("torch", reason="the files are written by the real PyTorch")

ROLES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


@pytest.fixture(scope="module")
def wanted(torch_files):
    return json.loads((torch_files / "expected.json").read_text())


def same_arrays(record, want, through="f4"):
    for role in ROLES:
        if want[role] is None:
            assert getattr(record, role) is None
        else:
            np.testing.assert_array_equal(getattr(record, role), np.array(want[role], "f4").astype(through))


@pytest.mark.parametrize(
    ("file", "prefix"),
    [("state.pt", ""), ("legacy.pth", ""), ("n.ckpt", "module._orig_mod."), ("d.pth", ""), ("ema.pt", ""),
     ("wrapped.safetensors", "module._orig_mod."), ("state.safetensors", "")],
)  # fmt: skip
def test_every_container(torch_files, wanted, file, prefix):
    found = open_model(torch_files / file)
    layers = {record.name: record for record in found.layers}
    assert set(layers) == {prefix + name for name in wanted}
    for name, want in wanted.items():
        record = layers[prefix + name]
        assert (record.epsilon, record.epsilon_source, record.momentum, record.decay) == (None, "unknown", None, None)
        assert (record.axis, record.ddof, record.mode, record.updates) == (1, 1, "by-call", want["updates"])
        same_arrays(record, want)
    assert any("epsilon and momentum are unknown" in note for note in found.notes)


def test_of_several_copies_one_is_read_and_the_others_are_named(torch_files):
    (note,) = [note for note in open_model(torch_files / "ema.pt").notes if "same layers" in note]
    assert note == "The file holds the same layers in 'state_dict' and 'ema'; those of 'state_dict' are read"


def test_bfloat16_to_the_bit(torch_files, wanted):
    for record in open_model(torch_files / "bfloat16.pt").layers:
        assert (record.dtype, record.updates) == ("bfloat16", 7)
        same_arrays(record, wanted[record.name], ml_dtypes.bfloat16)


def test_views_of_one_storage_and_half_a_layer(torch_files):
    found = open_model(torch_files / "views.pt")
    (record,) = found.layers
    np.testing.assert_array_equal(record.moving_mean, [2, 4, 6])
    np.testing.assert_array_equal(record.moving_variance, [10, 11, 12])
    assert (
        "'half' is half a batch normalization and left out: there is a running_mean and no running_var" in found.notes
    )


def state(prefix="", n=3):
    rng = np.random.default_rng(n)
    arrays = {name: torch.tensor(rng.uniform(1, 2, n).astype("f4")) for name in ROLES.values()}
    return {prefix + name: each for name, each in (arrays | {"num_batches_tracked": torch.tensor(5)}).items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"epoch": 1, "model": {"backbone": {"state": s}}},
        lambda s: [1, {"weights": s}],
        lambda s: (s, {"lr": 0.1}),
        lambda s: {"args": argparse.Namespace(lr=1), "net": s},
        lambda s: argparse.Namespace(state_dict=s),
        lambda s: types.SimpleNamespace(state_dict=s),
        lambda s: {"model": collections.OrderedDict(s), "rng": np.random.RandomState(0).get_state()[1]},
        lambda s: {"d": collections.defaultdict(dict, {"m": s}), "path": Path("runs/1"), "when": np.float32(3)},
        lambda s: {"state_dict": {f"_forward_module.{k}": v for k, v in s.items()}, "hyper_parameters": {"lr": 1}},
    ],
)
def test_whatever_a_script_wraps_around_it(tmp_path, wrap):
    torch.save(wrap(state("bn.")), tmp_path / "m.pt")
    (record,) = open_model(tmp_path / "m.pt").layers
    assert record.name.endswith("bn")
    np.testing.assert_array_equal(record.moving_mean, state()["running_mean"].numpy())


def test_two_networks_in_one_file(tmp_path):
    torch.save({"generator": state("bn."), "critic": state("norm.", 2)}, tmp_path / "gan.pt")
    assert [(r.name, r.channels) for r in open_model(tmp_path / "gan.pt").layers] == [
        ("generator/bn", 3),
        ("critic/norm", 2),
    ]


def test_a_container_that_holds_itself(tmp_path):
    loop = {"bn.x": 1} | state("bn.")
    loop["self"] = loop
    torch.save(loop, tmp_path / "m.pt")
    (record,) = open_model(tmp_path / "m.pt").layers
    assert record.name == "bn"


def test_the_counter_and_what_contradicts_it(tmp_path):
    def read(**changes):
        torch.save(state("bn.") | {f"bn.{name}": each for name, each in changes.items()}, tmp_path / "m.pt")
        return open_model(tmp_path / "m.pt").layers[0]

    assert read().updates == 5
    moved = read(num_batches_tracked=torch.tensor(0))
    assert moved.updates is None
    assert "0 updates" in moved.updates_doubt
    assert "no count" in read(num_batches_tracked=torch.tensor(2.5)).updates_doubt
    assert "which no training makes" in read(num_batches_tracked=torch.tensor(-4)).updates_doubt


class Shell:
    def __reduce__(self):
        return os.system, ("touch /tmp/this-must-not-be-run-by-batchnorm",)


class Own:
    pass


def malicious(folder, value):
    """The pickle of a checkpoint, in each of the forms that a loader might open."""
    torch.save(value, folder / "zip.pt")
    torch.save(value, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "plain.bin").write_bytes(pickle.dumps(value, protocol=2))
    (folder / "plain4.ckpt").write_bytes(pickle.dumps(value, protocol=4))
    return sorted(folder.iterdir())


def test_pickles_with_code_are_refused_and_the_code_is_named(tmp_path):
    mark = Path("/tmp/this-must-not-be-run-by-batchnorm")
    for path in malicious(tmp_path, {"state_dict": state("bn."), "x": Shell()}):
        with pytest.raises(ModelFileError) as caught:
            open_model(path, trust=True)  # which is for TorchScript only
        message = str(caught.value)
        assert "\n" not in message
        # Plain pickles of tensors need PyTorch's own loader of storages first, which is code as well.
        assert any(name in message for name in ("posix.system", "nt.system", "torch.storage._load_from_bytes")), message
        assert "state_dict()" in message
    assert not mark.exists()


def test_a_class_of_the_users_own_is_named(tmp_path, torch_files):
    torch.save({"state_dict": state(), "callback": Own()}, tmp_path / "m.ckpt")
    refused(tmp_path / "m.ckpt", "test_torch_files.Own", "package.module:name", "--weights")
    refused(torch_files / "whole.pt", "__main__.Net")


def test_torch_script_only_with_trust(torch_files, wanted):
    for file in ("script.pt", "traced.pt"):
        refused(torch_files / file, "TorchScript", "runs code", "--trust")
        found = open_model(torch_files / file, trust=True)
        assert found.format == "torchscript"
        for record, (name, want) in zip(found.layers, wanted.items(), strict=True):
            assert (record.name, record.epsilon, record.epsilon_source) == (name, want["epsilon"], "file")
            # A trace has one mode; a script keeps module.train() and .eval().
            assert record.mode == ("inference" if file == "traced.pt" else "by-call")
            if want["momentum"] is None:
                assert (record.averaging, record.decay) == ("cumulative", None)
            else:
                assert (record.averaging, record.decay) == ("exponential", round(1 - want["momentum"], 12))
            assert (record.updates, record.updates_source) == (want["updates"], "num_batches_tracked")
            same_arrays(record, want)


def test_a_tensor_that_claims_more_than_the_file_holds(tmp_path):
    broken = state("bn.") | {"bn.running_mean": torch.zeros(1).expand(1 << 40)}
    torch.save(broken, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").stat().st_size < 10_000
    found = open_model(tmp_path / "m.pt")
    assert not found.layers
    assert "no running_mean" in found.notes[0]


def test_tensors_that_are_no_plain_numbers(tmp_path):
    for odd in (torch.zeros(3, dtype=torch.complex64), torch.zeros(3).to_sparse(), torch.zeros(3, device="meta")):
        torch.save(state("bn.") | {"bn.running_var": odd}, tmp_path / "m.pt")
        found = open_model(tmp_path / "m.pt")
        assert not found.layers
        assert "half a batch normalization" in found.notes[0]


def test_truncated_and_deflated(torch_files, tmp_path):
    data = (torch_files / "state.pt").read_bytes()
    for length in (3, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "m.pt").write_bytes(data[:length])
        refused(tmp_path / "m.pt")
    with zipfile.ZipFile(torch_files / "state.pt") as old, zipfile.ZipFile(
        tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED
    ) as new:  # fmt: skip
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(tmp_path / "z.pt", "is compressed", "save it again")  # read as it is, its numbers would be noise


def test_only_the_statistics_are_read(tmp_path):
    """Mapped, not loaded: 400 MB of other weights cost nothing."""
    import resource

    torch.save(state("bn.") | {"head.weight": torch.zeros(100_000_000)}, tmp_path / "m.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(open_model(tmp_path / "m.pt").layers) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_older_versions_whose_loader_ran_code_are_not_used(torch_files, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(MissingExtra, match=r"torch 2\.10 or newer.*2\.5\.1 is installed.*pip install --upgrade"):
        open_model(torch_files / "state.pt")


def test_without_torch_the_install_line(torch_files, in_subprocess):
    code = f"""
import contextlib, io, sys
sys.modules["torch"] = None
from batchnorm import cli
said = io.StringIO()
with contextlib.redirect_stderr(said):
    for file in ("state.pt", "legacy.pth"):
        assert cli.run(["list", {str(torch_files)!r} + "/" + file]) == 2
print(said.getvalue())
"""
    lines = in_subprocess(code).split("\n")
    assert [line.endswith("pip install 'batchnorm[torch]'") for line in lines if line] == [True, True]


@pytest.mark.parametrize("file", ["state.pt", "legacy.pth", "n.ckpt"])
def test_fuzz(torch_files, tmp_path, file):
    data = (torch_files / file).read_bytes()
    rng = random.Random(8)  # noqa: S311
    tally = outcomes(tmp_path / file, (mutated(data, rng) for _ in range(150)))
    assert tally["opened"] + tally["refused"] == 150
    assert tally["slowest"] < 2
