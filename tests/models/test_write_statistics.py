"""New statistics in copies of files: their bytes change, and no others."""

import zipfile

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.core.record import ARRAYS

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
CHANNELS = 4


def network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, CHANNELS, 3), torch.nn.BatchNorm2d(CHANNELS), torch.nn.Conv2d(CHANNELS, 2, 3),
        torch.nn.BatchNorm2d(2),
    )  # fmt: skip
    return net.train()


def differing(a, b):
    """The places where two files differ."""
    first, second = (np.frombuffer(path.read_bytes(), "u1") for path in (a, b))
    assert len(first) == len(second)
    return np.flatnonzero(first != second)


def changed(source, target, name=None, most=None):
    """Writes other statistics into one layer, checks everything else, and tells how many bytes differ."""
    read = bn.load(source)
    name = name or read.layers[0].name
    channels = next(record.channels for record in read.layers if record.name == name)
    new = np.linspace(-3, 3, channels), np.linspace(5, 6, channels)
    with bn.testing.assert_unchanged(source):
        read.with_statistics({name: new}).save(target)
    again = bn.load(target)
    for old, now in zip(read.layers, again.layers, strict=True):
        for role in ARRAYS:
            before, after = getattr(old, role), getattr(now, role)
            if old.name == name and role.startswith("moving"):
                np.testing.assert_array_equal(after, new[role == "moving_variance"].astype(after.dtype))
            elif before is None:
                assert after is None
            else:
                np.testing.assert_array_equal(before, after)
    return len(differing(source, target)) if most is None else None


def test_safetensors(tmp_path):
    source = tmp_path / "model.safetensors"
    safetensors.save_file(network().state_dict(), source, metadata={"epoch": "3"})
    assert changed(source, tmp_path / "out.safetensors") <= 8 * CHANNELS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_state_dict(tmp_path, dtype):
    source = tmp_path / "model.pt"
    torch.save(network().to(dtype).state_dict(), source)
    bytes_changed = changed(source, tmp_path / "out.pt")
    # The numbers, and the checksums of the two members, each twice at most.
    assert bytes_changed <= 2 * CHANNELS * torch.finfo(dtype).bits // 8 + 16
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.testzip() is None
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert loaded["1.running_mean"][0] == -3


def test_checkpoint_with_an_optimizer_and_the_older_form(tmp_path):
    net = network()
    held = {"epoch": 3, "model": net.state_dict(), "optimizer": torch.optim.Adam(net.parameters()).state_dict()}
    torch.save(held, tmp_path / "new.ckpt")
    torch.save(held, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert changed(tmp_path / "new.ckpt", tmp_path / "new_out.ckpt") <= 8 * CHANNELS + 16
    changed(tmp_path / "old.ckpt", tmp_path / "old_out.ckpt", most=0)
    again = torch.load(tmp_path / "old_out.ckpt", weights_only=True)
    assert again["epoch"] == 3
    assert again["optimizer"].keys() == held["optimizer"].keys()


def test_statistics_that_do_not_fit_the_type(tmp_path):
    source = tmp_path / "model.safetensors"
    safetensors.save_file(network().half().state_dict(), source)
    read = bn.load(source)
    new = read.with_statistics({read.layers[1].name: (np.zeros(2), np.ones(2))})
    new.save(tmp_path / "out.safetensors")
    with pytest.raises(bn.Refused, match="does not fit the file's float16"):
        read.with_statistics({read.layers[1].name: (np.zeros(2), np.full(2, 1e6))})
    with pytest.raises(bn.UnknownLayer):
        read.with_statistics({"none": (np.zeros(2), np.ones(2))})


def test_where_it_is_written(tmp_path):
    source = tmp_path / "model.safetensors"
    safetensors.save_file(network().state_dict(), source)
    read = bn.load(source).with_statistics({"1": (np.zeros(CHANNELS), np.ones(CHANNELS))})
    with pytest.raises(bn.ArgumentError, match="never overwritten"):
        read.save(source, force=True)
    (tmp_path / "there").write_text("here")
    with pytest.raises(bn.ArgumentError, match="--force"):
        read.save(tmp_path / "there")
    read.save(tmp_path / "there", force=True)
    with pytest.raises(bn.ArgumentError, match="No such file"):
        read.save(tmp_path / "none" / "out")
