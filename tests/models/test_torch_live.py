"""Live PyTorch modules: read, run, given weights; and left as they are."""

import json

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.api.loading import load
from batchnorm.errors import ArgumentError, ModelFileError, UnknownLayer
from batchnorm.models import open_model
from tests.engines.bounds import formula

torch = pytest.importorskip("torch", reason="live modules of the real PyTorch")
nn = torch.nn

ROLES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


class Twice(nn.Module):
    """A layer called twice, one under dropout, one never called."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.shared = nn.BatchNorm2d(4, eps=1e-3, momentum=0.25)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=None, affine=False))
        self.idle = nn.BatchNorm2d(2)

    def forward(self, x, *, scale=1.0):
        x = self.shared(torch.tanh(self.shared(self.conv(x)))) * scale
        return {"logits": self.head(self.drop(x.mean((2, 3)))), "parts": [x, 3]}


class FrozenBatchNorm2d(nn.Module):
    """As in detection models: buffers only."""

    def __init__(self, n):
        super().__init__()
        self.eps = 1e-4
        for name, value in {"weight": 2.0, "bias": 1.0, "running_mean": 3.0, "running_var": 4.0}.items():
            self.register_buffer(name, torch.full((n,), value))

    def forward(self, x):
        scale = (self.weight * (self.running_var + self.eps).rsqrt()).reshape(1, -1, 1, 1)
        return (x - self.running_mean.reshape(1, -1, 1, 1)) * scale + self.bias.reshape(1, -1, 1, 1)


def trained(kind=Twice):
    torch.manual_seed(1)
    model = kind()
    for _ in range(3):
        model(torch.randn(8, 3, 6, 6) * 2 + 1)
    return model


def test_every_field_is_what_the_module_says():
    model = trained()
    with bn.testing.assert_unchanged(model):
        found = load(model)
    assert (found.format, found.path) == ("torch", "Twice")
    assert [record.name for record in found.layers] == ["shared", "head.1", "idle"]
    for record in found.layers:
        module = model.get_submodule(record.name)
        assert (record.kind, record.epsilon, record.epsilon_source) == (type(module).__name__, module.eps, "file")
        assert (record.axis, record.ddof, record.mode) == (1, 1, "by-call")
        assert (record.updates, record.updates_source) == (int(module.num_batches_tracked), "num_batches_tracked")
        for ours, theirs in ROLES.items():
            held, array = getattr(module, theirs), getattr(record, ours)
            assert (held is None) == (array is None)
            if held is not None:
                np.testing.assert_array_equal(array, held.detach().numpy())
    shared, head, idle = found.layers
    assert (shared.updates, shared.momentum, shared.decay, shared.initial_weight) == (6, 0.25, 0.75, 0.75**6)
    assert (head.averaging, head.decay, head.initial_weight) == ("cumulative", None, None)
    assert (idle.updates, idle.initial_weight) == (0, 1.0)


def test_records_are_copies():
    model = trained()
    record = load(model).layers[0]
    before = record.moving_mean.copy()
    model.shared.running_mean.add_(1)
    np.testing.assert_array_equal(record.moving_mean, before)


def test_other_layers_with_running_statistics():
    model = nn.Sequential(FrozenBatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True), nn.SyncBatchNorm(3),
                          nn.BatchNorm2d(3, track_running_stats=False))  # fmt: skip
    frozen, sync, batch = load(model).layers
    assert (frozen.mode, frozen.epsilon, frozen.updates, frozen.averaging) == ("frozen", 1e-4, None, "unknown")
    assert sync.kind == "SyncBatchNorm"
    assert (batch.mode, batch.moving_mean, batch.channels) == ("batch-statistics", None, 3)
    layer = bn.torch.BatchNorm2d(3, statistics="debiased") if hasattr(bn, "torch") else None
    assert layer is None or load(layer).layers[0].decay is None


def test_a_layer_alone_and_one_without_weights():
    (record,) = load(nn.BatchNorm1d(2)).layers
    assert record.name == "BatchNorm1d"
    y, captured = load(nn.BatchNorm1d(2)).run([[1.0, 2.0]], capture=["BatchNorm1d"])
    np.testing.assert_allclose(y, np.array([[1, 2]]) / np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(captured["BatchNorm1d"][0][1], y)
    with pytest.raises(ArgumentError, match=r"has no .* in memory yet\. Call it"):
        load(nn.LazyBatchNorm1d())


def test_run_is_inference_and_changes_nothing():
    model = trained()
    model.shared.register_forward_hook(lambda *_: None)
    model.train()
    model.drop.eval()
    x = np.random.default_rng(0).normal(size=(5, 3, 6, 6))
    with bn.testing.assert_unchanged(model):
        read = load(model)
        outputs, captured = read.run(x, capture=["shared", "head.1"])
        again, _ = read.run(x)
    assert {name: len(calls) for name, calls in captured.items()} == {"shared": 2, "head.1": 1}
    for record in read.layers[:2]:
        for given, got in captured[record.name]:
            y, bound = formula(record, given)
            assert np.all(np.abs(got - y) <= bound)
    np.testing.assert_array_equal(outputs["logits"], captured["head.1"][0][1])
    np.testing.assert_array_equal(outputs["logits"], again["logits"])
    assert outputs["parts"][1] == 3
    model.eval()
    with torch.no_grad():
        np.testing.assert_array_equal(outputs["logits"], model(torch.tensor(x, dtype=torch.float32))["logits"].numpy())


class Noisy(nn.Module):
    """Draws numbers and writes into a buffer each time, then fails when asked to."""

    def __init__(self, fails=True):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(1))
        self.fails = fails

    def forward(self, x):
        self.calls += 1
        y = self.bn(x + torch.rand(1) + float(np.random.rand()))
        if self.fails:
            raise RuntimeError("out of luck\nand lines")
        return y


@pytest.mark.parametrize("fails", [False, True])
def test_unchanged_after_an_error_in_the_middle(fails):
    model = Noisy(fails).train()
    with bn.testing.assert_unchanged(model):
        if fails:
            with pytest.raises(ArgumentError, match="out of luck and lines") as caught:
                load(model).run(np.ones((4, 3), "f4"), capture=["bn"])
            assert "\n" not in str(caught.value)
        else:
            load(model).run(np.ones((4, 3), "f4"), capture=["bn"])


def test_inputs_that_do_not_fit_and_layers_that_are_not_there():
    model = trained()
    read = load(model)
    with bn.testing.assert_unchanged(model):
        with pytest.raises(ArgumentError, match=r"forward.*refuses an input of shape \(2, 7, 6, 6\)"):
            read.run(np.ones((2, 7, 6, 6), "f4"))
        with pytest.raises(ArgumentError, match="forward takes x, scale; got 'image'"):
            read.run({"image": np.ones((2, 3, 6, 6), "f4")})
        with pytest.raises(UnknownLayer, match=r"'nothing'.*'shared'"):
            read.run(np.ones((2, 3, 6, 6), "f4"), capture=["nothing"])
        assert read.run({"x": np.ones((2, 3, 6, 6), "f4"), "scale": np.float32(2)})


def test_half_precision_modules_get_their_own_type():
    model = nn.BatchNorm1d(3).bfloat16()
    (record,) = load(model).layers
    assert record.dtype == "bfloat16"
    y, _ = load(model).run(np.ones((2, 3), "f8"))
    assert y.dtype.name == "bfloat16"


class Same(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.stem(x))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_whatever_their_prefix(tmp_path, prefix, suffix):
    save_file = pytest.importorskip("safetensors.torch").save_file
    source, target = trained(Same), Same()
    state = {prefix + name: each for name, each in source.state_dict().items()}
    if suffix == "pt":
        torch.save({"state_dict": state, "ema": {"stem.weight": torch.zeros(1)}}, tmp_path / "m.pt")
    else:
        save_file(state, tmp_path / "m.safetensors")
    found = load(target, weights=tmp_path / f"m.{suffix}")
    assert found.layers[0].updates == 3
    np.testing.assert_array_equal(found.layers[0].moving_mean, source.bn.running_mean.numpy())
    np.testing.assert_array_equal(target.stem.weight.detach().numpy(), source.stem.weight.detach().numpy())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("bn.running_var"), "lacks 'bn.running_var'"),
        (lambda s: s.update({"bn.weight": torch.ones(7)}), r"'bn.weight' has shape \(7,\) in the file and \(4,\)"),
        (lambda s: [s.pop(name) for name in list(s)], "holds no array of the module's names"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(tmp_path, change, words):
    state = dict(trained(Same).state_dict())
    change(state)
    torch.save(state | {"other": torch.ones(1)}, tmp_path / "m.pt")
    target = Same()
    with bn.testing.assert_unchanged(target), pytest.raises(ArgumentError, match=words):
        load(target, weights=tmp_path / "m.pt")


def test_weights_of_other_formats_and_for_other_objects(tmp_path, torch_files):
    with pytest.raises(ModelFileError, match="is no state dict"):
        load(Same(), weights=torch_files / "net.pt2")
    with pytest.raises(ModelFileError, match="no such file"):
        load(Same(), weights=tmp_path / "none.pt")
    with pytest.raises(ArgumentError, match=r"it takes a torch\.nn\.Module"):
        load(object(), weights=torch_files / "state.pt")
    with pytest.raises(ArgumentError, match="the model is a file"):
        load(torch_files / "state.pt", weights=torch_files / "state.pt")


def test_the_command_with_weights(tmp_path, in_subprocess):
    torch.save(trained(Same).state_dict(), tmp_path / "m.pt")
    (tmp_path / "own_net.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Sequential()\n"
        "class Same(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.stem, self.bn = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)\n"
        "    def forward(self, x):\n"
        "        return self.bn(self.stem(x))\n"
    )
    np.save(tmp_path / "x.npy", np.ones((2, 3, 6, 6), "f4"))
    code = f"""
import os
os.chdir({str(tmp_path)!r})
from batchnorm import cli
assert cli.run(["list", "own_net:Same", "--weights", "m.pt", "--json"]) == 0
assert cli.run(["explain", "own_net:Same", "--weights", "m.pt", "--data", "x.npy", "--layer", "bn", "--json"]) == 0
"""
    out = in_subprocess(code)
    decoder = json.JSONDecoder()
    listed, end = decoder.raw_decode(out)
    assert (listed["layers"][0]["updates"], listed["layers"][0]["epsilon"]) == (3, 1e-5)
    explained, _ = decoder.raw_decode(out[end:].strip())
    value = explained["layers"][0]["explained"][0]["values"][0]
    assert abs(value["difference"]) < 1e-5


def test_a_module_and_its_files_say_the_same(torch_files):
    program = open_model(torch_files / "net.pt2")
    state = open_model(torch_files / "state.pt", epsilon=1e-5)
    assert [record.name for record in program.layers] == [record.name for record in state.layers]
    for one, other in zip(program.layers, state.layers, strict=True):
        np.testing.assert_array_equal(one.moving_variance, other.moving_variance)
