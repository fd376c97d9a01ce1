"""Recalibration on padded sequences: what `mask` or `lengths` beside the inputs tell of takes no part in statistics."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

import batchnorm as bn
from batchnorm import cli
from batchnorm.api.shards import collect, merge
from batchnorm.testing import assert_unchanged
from tests.api.padded import LENGTHS, MASK, POSITIONS, SAMPLES, assert_by_hand, of, sequences, weights
from tests.api.test_recalibrate_many import assert_same, job

torch = pytest.importorskip("torch", reason="live modules of the real PyTorch")
nn = torch.nn
pytestmark = pytest.mark.usefixtures("one_thread")  # the same bits whatever the partition
BOTH = pytest.mark.parametrize("method", ["one-pass", "sequential"])
X = sequences()
ALL = np.ones_like(MASK)


class Net(nn.Module):
    """The network of `tests.api.padded` in PyTorch, with a layer after pooling, which has no positions."""

    def __init__(self):
        super().__init__()
        held = {name: torch.from_numpy(array) for name, array in weights().items()}
        for number in (1, 2):
            dense = nn.Linear(*reversed(held[f"kernel{number}"].T.shape))
            dense.weight.data, dense.bias.data = held[f"kernel{number}"].T.contiguous(), held[f"bias{number}"]
            setattr(self, f"dense{number}", dense)
            setattr(self, f"bn{number}", nn.BatchNorm1d(len(held[f"bias{number}"]), eps=1e-3))
        self.top = nn.BatchNorm1d(len(held["bias2"]), eps=1e-3)

    def forward(self, x):
        x = self.bn1(self.dense1(x).swapaxes(1, 2)).relu().swapaxes(1, 2)
        x = self.bn2(self.dense2(x).swapaxes(1, 2)).relu()
        return self.top(x.mean(-1))


class Masked(Net):
    """A model that takes the mask itself, and whose layers do with it what they do."""

    def __init__(self):
        from batchnorm.torch import BatchNorm1d

        super().__init__()
        for name in ("bn1", "bn2"):
            setattr(self, name, BatchNorm1d(getattr(self, name).num_features, eps=1e-3))

    def forward(self, x, mask):
        x = self.bn1(self.dense1(x).swapaxes(1, 2), mask=mask).relu().swapaxes(1, 2)
        return self.bn2(self.dense2(x).swapaxes(1, 2), mask=mask).relu().mean(-1)


def batches(size=4, x=X, **beside):
    return [
        {"x": x[start : start + size], **{name: each[start : start + size] for name, each in beside.items()}}
        for start in range(0, len(x), size)
    ]


@BOTH
@pytest.mark.parametrize("beside", [{"mask": MASK}, {"mask": MASK.astype("f4")}, {"lengths": LENGTHS[:, None]}])
def test_padding_is_left_out(method, beside):
    model = Net()
    found = bn.recalibrate(model, {"x": X, **beside}, method=method, batch_size=4)
    assert_by_hand(found, method, 4, ddof=1)
    assert found.layers[2].count == SAMPLES
    (note,) = [note for note in found.notes if "padding" in note]
    assert "does not lie along the input of top, where all is counted; elsewhere it is left out" in note
    assert found.gap.after < found.gap.before
    labels = np.zeros(4, int)
    for data in (batches(**beside), [(one, labels) for one in batches(**beside)], iter(batches(**beside))):
        if method == "one-pass" or isinstance(data, list):
            assert_by_hand(bn.recalibrate(Net(), data, method=method), method, 4, ddof=1)


@BOTH
def test_without_a_mask_all_is_counted(method):
    found = bn.recalibrate(Net(), {"x": X}, method=method, batch_size=4)
    assert_by_hand(found, method, 4, ddof=1, counts=ALL)
    assert not any("padd" in note for note in found.notes)


@BOTH
def test_a_model_that_takes_the_mask_keeps_it(method):
    found = bn.recalibrate(Masked(), {"x": X, "mask": MASK}, method=method, batch_size=4)
    assert_by_hand(found, method, 4, ddof=found_ddof(found))
    assert any("which the model takes itself" in note for note in found.notes)


def found_ddof(found):
    return bn.load(Masked()).layers[0].ddof


@BOTH
def test_an_exported_program(method, tmp_path):
    dynamic = ({0: torch.export.Dim("n", min=2)},)
    program = torch.export.export(Net().eval(), (torch.from_numpy(X),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "net.pt2")
    np.savez(tmp_path / "data.npz", x=X, lengths=LENGTHS)
    arguments = ["--data", str(tmp_path / "data.npz"), "--batch-size", "4", "--method", method]
    out = str(tmp_path / "out.pt2")
    assert cli.run(["recalibrate", str(tmp_path / "net.pt2"), *arguments, "-o", out]) == 0
    found = bn.recalibrate(tmp_path / "net.pt2", {"x": X, "mask": MASK}, method=method, batch_size=4)
    assert_by_hand(found, method, 4, ddof=1)
    for record, layer in zip(bn.load(out).layers, found.layers, strict=True):
        np.testing.assert_array_equal(record.moving_mean, layer.after.mean.astype("f4"))


def exported(path, **more):
    pytest.importorskip("onnxruntime")
    from tests.api.test_recalibrate_onnx import export

    names = {"input_names": ["sequence"], "dynamic_axes": {"sequence": {0: "n", 1: "t"}}}
    return export(Net().eval(), (torch.from_numpy(X[:2]),), path, **names, **more)


@BOTH
@pytest.mark.parametrize("opset", [10, 17])
def test_an_onnx_graph(opset, method, tmp_path):
    path = exported(tmp_path / "net.onnx", opset_version=opset)
    for beside in ({"lengths": LENGTHS}, {"mask": MASK}):
        found = bn.recalibrate(path, {"sequence": X, **beside}, method=method, batch_size=4)
        renamed = [replace(layer, name=name) for layer, name in zip(found.layers, ("bn1", "bn2", "top"), strict=True)]
        found = replace(found, layers=tuple(renamed))
        assert_by_hand(found, method, 4, ddof=bn.load(path).layers[0].ddof)
        assert found.layers[2].count == SAMPLES
    longer = np.concatenate([X, np.full((SAMPLES, 3, X.shape[2]), 9, "f4")], 1)
    both = [*batches(8, lengths=LENGTHS)[:2], *batches(8, longer, lengths=LENGTHS)[2:]]
    spread, wanted = (bn.recalibrate(path, each, method=method) for each in (both, batches(8, lengths=LENGTHS)))
    for one, other in zip(spread.layers[:2], wanted.layers[:2], strict=True):
        assert one.count == other.count
        # Sums over another number of elements, of which the same count: units of 6e-8 of activations of a few.
        np.testing.assert_allclose(one.after.variance, other.after.variance, rtol=1e-6)


@BOTH
def test_the_layer_on_arrays(method):
    layer = bn.BatchNormalization()
    layer(X, training=True)
    found = bn.recalibrate(layer, {"x": X, "lengths": LENGTHS}, method=method, batch_size=8)
    count, mean, variance = of(X[MASK].astype(np.float64))
    assert found.layers[0].count == count
    np.testing.assert_allclose(found.layers[0].after.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.layers[0].after.variance, variance, rtol=1e-12)


def test_a_layer_after_strides_and_batches_of_other_lengths():
    """One position in two is left, and counts where the first that it was made of does."""

    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(5)

        def forward(self, x):
            return self.bn(x[:, ::2].swapaxes(1, 2))

    found = bn.recalibrate(Strided(), batches(8, lengths=LENGTHS), method="sequential")
    count, mean, _ = of(X[:, ::2][MASK[:, ::2]].astype(np.float64))
    assert found.layers[0].count == count
    np.testing.assert_allclose(found.layers[0].after.mean, mean, rtol=1e-7)
    odd = [{"x": X[:8], "mask": MASK[:8]}, {"x": X[8:, :11], "mask": MASK[8:, :11]}]
    model = Strided()
    with assert_unchanged(model), pytest.raises(bn.Refused, match=r"input of bn .* not in one .* shape \(32, 5, 6\)"):
        bn.recalibrate(model, odd, method="sequential")
    found = bn.recalibrate(Strided(), odd[::-1], method="sequential")
    assert found.layers[0].count == 40 * 6
    assert any("does not lie along the input of bn, where all is counted." in note for note in found.notes)


def test_some_batches_with_a_mask_and_some_without():
    mixed = [{"x": X[:8], "mask": MASK[:8]}, X[8:]]
    for data, words in ((mixed, "has none"), (mixed[::-1], "and not the first")):
        model = Net()
        with assert_unchanged(model), pytest.raises(bn.ArgumentError, match=f"in some batches and not.*{words}"):
            bn.recalibrate(model, data)
    with pytest.raises(bn.ArgumentError, match="recalibrate: data holds mask and lengths"):
        bn.recalibrate(Net(), {"x": X, "mask": MASK, "lengths": LENGTHS})


# -- whoever computes it -----------------------------------------------------------------------------------------------


def by_layer(found):
    return {each.name: (each.after.mean, each.after.variance, each.count) for each in found.layers}


def test_ranks_of_a_job(tmp_path):
    for found in job(tmp_path, 2, "padded"):
        for method in ("one-pass", "sequential"):
            wanted = bn.recalibrate(Net(), batches(lengths=LENGTHS), method=method)
            assert_same(found[method], {layer.name: layer for layer in wanted.layers})
            assert_by_hand(wanted, method, 4, ddof=1)


def test_shards(tmp_path):
    paths = [tmp_path / f"{number}.json" for number in range(3)]
    for path, (start, end) in zip(paths, [(8, 40), (0, 4), (4, 8)], strict=True):
        collect(Net(), {"x": X[start:end], "mask": MASK[start:end]}, path, batch_size=4)
    assert json.loads(paths[0].read_text())["padded"] == ["bn1", "bn2"]
    found = merge(Net(), paths)
    assert_same(by_layer(found), {layer.name: layer for layer in bn.recalibrate(Net(), batches(mask=MASK)).layers})
    assert any("input of top" in note for note in found.notes)
    collect(Net(), X[4:8], paths[2], batch_size=4, force=True)
    with pytest.raises(bn.ArgumentError, match="leave padding out of other layers"):
        merge(Net(), paths)


def test_a_checkpoint_is_of_its_padding(tmp_path, monkeypatch):
    place, data = tmp_path / "run.json", batches(mask=MASK)

    class Broken(list):
        runs = 0

        def __iter__(self):
            self.runs += 1
            yield from self[:6]
            if self.runs > 1:
                raise KeyboardInterrupt
            yield from self[6:]

    with monkeypatch.context() as patch:
        from batchnorm.api import checkpoints

        patch.setattr("batchnorm.api.passes.Checkpoint", lambda *given: checkpoints.Checkpoint(*given, every=0))
        with pytest.raises(KeyboardInterrupt):
            bn.recalibrate(Net(), Broken(data), checkpoint=place)
    kept = place.read_bytes()
    for other in (batches(), batches(mask=MASK[::-1])):
        with pytest.raises(bn.ArgumentError, match="is that of another"):
            bn.recalibrate(Net(), other, checkpoint=place)
    assert place.read_bytes() == kept
    again = bn.recalibrate(Net(), data, checkpoint=place)
    wanted = {layer.name: layer for layer in bn.recalibrate(Net(), copy.deepcopy(data)).layers}
    assert_same(by_layer(again), wanted)
    assert POSITIONS == X.shape[1]
