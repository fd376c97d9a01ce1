"""Recalibration of live PyTorch modules: what is estimated, what is left alone, and that nothing else changes."""

import json

import numpy as np
import pytest
import torch

import batchnorm as bn
from batchnorm.api.streams import Stream
from batchnorm.core.accumulator import Accumulator
from batchnorm.torch import BatchNorm1d
from tests.api.networks import Branches, Chain, Recurrent, Two, off
from tests.render.test_schemas import valid

EXACT = 1e-5  # standard deviations


def images(count=60, mean=0.0, seed=0):
    """Images whose mean drifts with their place: batches in order are shifted against each other."""
    rng = np.random.default_rng(seed)
    x = rng.normal(mean, 1, (count, 3, 8, 8)) + np.linspace(-2, 2, count)[:, None, None, None]
    return x.astype(np.float32)


@pytest.fixture
def branches():
    torch.manual_seed(0)
    return Branches()


def test_sequential_is_exact_on_shifted_batches_of_four_three_layers_deep():
    torch.manual_seed(0)
    model, x = Chain(), images(64, 1000.0)
    found = bn.recalibrate(model, x, method="sequential", batch_size=4)
    assert [layer.count for layer in found.layers] == [64 * 36, 64 * 16, 64 * 4]
    for layer in found.layers:
        assert off(model, layer.name, torch.from_numpy(x), 4, layer.after) < EXACT, layer.name
        # What is stored is float32: half a unit in the last place of the mean, and no more, comes on top.
        ulp = np.spacing(np.float32(np.abs(layer.after.mean).max())) / np.sqrt(layer.after.variance.min())
        assert off(model, layer.name, torch.from_numpy(x), 4) < EXACT + ulp / 2


def test_one_pass_is_training_mode_with_the_between_batch_term():
    torch.manual_seed(0)
    model, x = Chain(), images(50)
    by_hand = {}

    def record(name):
        def hook(_, given):
            one = Accumulator.of(given[0].detach().numpy(), 1)
            by_hand[name] = by_hand[name].merge(one) if name in by_hand else one

        return hook

    twin = Chain()
    twin.load_state_dict(model.state_dict())
    for name, module in twin.named_modules():
        if name.startswith("norms."):
            module.register_forward_pre_hook(record(name))
    twin.train()
    with torch.no_grad():
        for start in range(0, 50, 16):
            twin(torch.from_numpy(x[start : start + 16]))
    bn.recalibrate(model, x, batch_size=16)
    for name, moments in by_hand.items():
        module = model.get_submodule(name)
        # float32 activations of another arithmetic (inference with the batch's moments): units of 6e-8, three deep.
        np.testing.assert_allclose(module.running_mean.numpy(), moments.mean, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(module.running_var.numpy(), moments.variance(1), rtol=1e-5)


def test_the_peers_miss_the_distance_of_the_batch_means():
    torch.manual_seed(0)
    x = images(64)
    ours, theirs = Chain(), Chain()
    theirs.load_state_dict(ours.state_dict())
    bn.recalibrate(ours, x, batch_size=4)
    torch.optim.swa_utils.update_bn(torch.from_numpy(x).split(4), theirs)
    first = torch.from_numpy(x)
    assert off(ours, "norms.0", first) < EXACT
    assert off(theirs, "norms.0", first) > 0.3


def test_layers_that_do_not_feed_each_other_share_a_pass(branches):
    found = bn.recalibrate(branches, images(), method="sequential")
    assert found.passes == 3
    assert found.forwards < 3
    for name in ("b1", "b2", "bside", "b3"):
        assert off(branches, name, torch.from_numpy(images())) < EXACT, name


def test_a_layer_that_the_data_do_not_reach_is_left(branches):
    before = branches.unused.running_var.clone()
    found = bn.recalibrate(branches, images())
    assert {layer.name: layer.skipped for layer in found.layers}["unused"] == "not reached by this data"
    assert torch.equal(branches.unused.running_var, before)
    assert found.is_partial


@pytest.mark.parametrize("method", ["one-pass", "sequential"])
def test_nothing_but_the_statistics_changes(branches, method):
    branches.train()
    branches.b3.eval()  # frozen by hand
    hook = branches.b1.register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in branches.state_dict().items()}
    random, flags = torch.get_rng_state(), [module.training for module in branches.modules()]
    found = bn.recalibrate(branches, images(), method=method)
    changed = {name for name, value in branches.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.{what}" for name in ("b1", "b2", "bside") for what in ("running_mean", "running_var")}
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in branches.modules()] == flags
    assert list(branches.b1._forward_hooks) == [hook.id]
    assert {layer.name: layer.skipped for layer in found.layers}["b3"].startswith("frozen")


def test_skip_and_only(branches):
    found = bn.recalibrate(branches, images(), skip=["b2"])
    assert [layer.name for layer in found.layers if layer.skipped == "skipped as asked"] == ["b2"]
    found = bn.recalibrate(branches, images(), only=["bside"])
    assert [layer.name for layer in found.layers if layer.skipped is None] == ["bside"]
    with pytest.raises(bn.UnknownLayer, match="nearest"):
        bn.recalibrate(branches, images(), skip=["b9"])


def test_a_shared_layer_takes_the_union_of_its_inputs():
    rng = np.random.default_rng(0)
    data = {"left": rng.normal(0, 1, (40, 4)).astype("f"), "right": rng.normal(5, 3, (40, 4)).astype("f")}
    model = Two()
    found = bn.recalibrate(model, data, method="sequential", batch_size=7)
    assert found.layers[0].count == 80
    union = np.concatenate([data["left"], data["right"]]).astype(np.float64)
    np.testing.assert_allclose(model.norm.running_mean, union.mean(0), rtol=1e-6)
    np.testing.assert_allclose(model.norm.running_var, union.var(0, ddof=1), rtol=1e-6)


def test_a_layer_that_feeds_itself_is_repeated_until_it_rests():
    torch.manual_seed(0)
    model = Recurrent()
    x = np.random.default_rng(0).normal(0, 1, (50, 5)).astype("f")
    bn.recalibrate(model, x, method="sequential")
    assert off(model, "norm", torch.from_numpy(x)) < EXACT


def test_a_layer_that_does_not_come_to_rest_is_refused_by_name():
    torch.manual_seed(0)
    model = Recurrent(gain=-40.0)
    x = np.random.default_rng(0).normal(0, 1, (50, 5)).astype("f")
    with bn.testing.assert_unchanged(model), pytest.raises(bn.Refused, match=r"norm feeds itself.*20 rounds"):
        bn.recalibrate(model, x, method="sequential")


def test_a_masked_layer_counts_what_the_mask_counts():
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = BatchNorm1d(3)

        def forward(self, x, mask):
            return self.norm(x, mask=mask)

    rng = np.random.default_rng(0)
    x, mask = rng.normal(2, 3, (20, 3, 7)).astype("f"), rng.random((20, 7)) < 0.6
    model = Masked()
    found = bn.recalibrate(model, {"x": x, "mask": mask}, method="sequential", batch_size=8)
    counted = x.transpose(0, 2, 1)[mask].astype(np.float64)
    assert found.layers[0].count == len(counted)
    np.testing.assert_allclose(model.norm.running_mean, counted.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.norm.running_var, counted.var(0, ddof=1), rtol=1e-6)


def test_debiased_layers_hold_what_was_measured():
    model = torch.nn.Sequential(BatchNorm1d(2, statistics="debiased"))
    model(torch.randn(8, 2))
    x = np.random.default_rng(0).normal(5, 2, (64, 2)).astype("f")
    bn.recalibrate(model, x)
    assert off(model, "0", torch.from_numpy(x)) < EXACT
    assert float(model[0].remaining.max()) == 0.0


def test_the_batch_sizes_do_not_matter_to_sequential(branches):
    twin = Branches()
    twin.load_state_dict(branches.state_dict())
    bn.recalibrate(branches, images(61), method="sequential", batch_size=61)
    bn.recalibrate(twin, images(61), method="sequential", batch_size=5)  # a last batch of one joins the one before
    for name in ("b1", "b3"):
        mine, other = branches.get_submodule(name), twin.get_submodule(name)
        torch.testing.assert_close(mine.running_mean, other.running_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.running_var, other.running_var, rtol=1e-5, atol=0)


def test_batches_may_be_tuples_with_labels_lists_and_loaders(branches):
    x, y = images(32), np.arange(32) % 10
    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    loader = torch.utils.data.DataLoader(data, batch_size=12)
    found = bn.recalibrate(branches, loader, method="sequential")
    assert found.samples == 32
    assert 0 <= found.accuracy.before <= 1
    again = bn.recalibrate(branches, lambda: iter(loader), method="sequential")
    np.testing.assert_allclose(again.layers[0].after.mean, found.layers[0].after.mean, rtol=1e-6)


def test_the_document_and_what_is_said(branches):
    found = bn.recalibrate(branches, images(), labels=np.arange(60) % 10)
    document = valid(found, "recalibrate")
    assert document["method"] == "one-pass"
    assert document["gap"]["before"] > document["gap"]["after"]
    assert len(document["layers"][0]["after"]["mean"]) == 8
    assert "not reached by this data" in str(found)
    assert json.loads(bn.recalibrate(branches, images(), skip=["b1"]).to_json())["layers"][0]["count"] is None


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no data"),
        ([], "no sample"),
        (np.zeros((0, 3, 8, 8), "f"), "no sample"),
        (
            np.zeros((5, 2, 8, 8), "f"),
            r"refuses an input of shape \(2, 2, 8, 8\)|refuses an input of shape \(5, 2, 8, 8\)",
        ),
        (3, "must be an array"),
        (np.array(["a"]), "real numbers"),
    ],
)
@pytest.mark.parametrize("method", ["one-pass", "sequential"])
def test_data_that_cannot_be_used(branches, data, message, method):
    branches.train()
    with bn.testing.assert_unchanged(branches), pytest.raises(bn.ArgumentError, match=message):
        bn.recalibrate(branches, data, method=method)


def test_too_little_data_says_how_much_is_needed():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    x = np.ones((1, 3), "f")
    for method in ("one-pass", "sequential"):
        with bn.testing.assert_unchanged(model), pytest.raises(bn.ArgumentError, match="at least 2"):
            bn.recalibrate(model, x, method=method)


def test_a_nan_is_named_by_its_sample_and_skipped_only_when_asked(branches):
    x = images(40)
    x[17, 1, 2, 3] = np.nan
    x[30, 0] = np.inf
    with bn.testing.assert_unchanged(branches), pytest.raises(bn.ArgumentError, match=r"sample 17, counted"):
        bn.recalibrate(branches, x, batch_size=20)
    found = bn.recalibrate(branches, x, batch_size=20, skip_nonfinite=True)
    assert found.samples == 38
    assert any("2 samples that are not finite" in note for note in found.notes)
    assert off(branches, "b1", torch.from_numpy(np.delete(x, [17, 30], 0))) < EXACT


def test_a_loader_that_breaks_runs_short_or_is_interrupted_changes_nothing(branches):
    class Short:
        runs = 0

        def __iter__(self):
            self.runs += 1
            return iter([images(8)] * (5 if self.runs < 4 else 3))

    def broken(error):
        yield images(8)
        yield images(8)
        raise error

    branches.train()
    with bn.testing.assert_unchanged(branches), pytest.raises(bn.ArgumentError, match="5 batches, then 3"):
        bn.recalibrate(branches, Short(), method="sequential")
    for error in (RuntimeError("disk"), KeyboardInterrupt()):
        with bn.testing.assert_unchanged(branches), pytest.raises(type(error)):
            bn.recalibrate(branches, lambda error=error: broken(error), method="sequential")


def test_an_iterator_does_for_one_pass_only(branches):
    bn.recalibrate(branches, iter([images(8)] * 6))
    with bn.testing.assert_unchanged(branches), pytest.raises(bn.ArgumentError, match="run through once"):
        bn.recalibrate(branches, iter([images(8)] * 6), method="sequential")


def test_weights_that_are_not_finite_are_refused(branches):
    with torch.no_grad():
        branches.c2.weight[0, 0, 0, 0] = float("nan")
    with bn.testing.assert_unchanged(branches), pytest.raises(bn.Refused, match=r"b2.*not finite"):
        bn.recalibrate(branches, images())


def test_a_stream_joins_a_last_batch_of_one():
    assert [batch.samples for batch in Stream(images(9), 4)] == [4, 5]
    assert [batch.samples for batch in Stream(images(1), 4)] == [1]


def test_a_loader_that_shuffles_leaves_the_random_state(branches):
    """Its generator is seeded anew for each run through the data, from the global one."""
    held = torch.utils.data.TensorDataset(torch.from_numpy(images(48)))
    loader = torch.utils.data.DataLoader(held, batch_size=8, shuffle=True)
    with bn.testing.assert_unchanged():
        bn.recalibrate(branches, loader)
        bn.recalibrate(branches, loader, method="sequential")


def test_passes_that_are_repeated_are_counted():
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(0, 1, (50, 5)).astype("f")
    assert bn.recalibrate(Recurrent(), x, method="sequential").passes > 2


def test_an_iterator_without_labels_says_nothing_of_an_accuracy(branches):
    found = bn.recalibrate(branches, iter([images(16), images(16, seed=1)]))
    assert not any("accuracy" in note for note in found.notes)


def test_a_result_that_cannot_be_written_keeps_the_checkpoint(tmp_path, branches, monkeypatch):
    """Hours of work are in it."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    place, data = tmp_path / "run.json", [images(16)]
    with bn.testing.assert_unchanged(branches), pytest.raises(bn.ArgumentError, match="No space left"):
        bn.recalibrate(branches, data, method="sequential", out=tmp_path / "o.pt", checkpoint=place)
    assert place.exists()
    bn.recalibrate(branches, data, method="sequential", checkpoint=place)
    assert not place.exists()
