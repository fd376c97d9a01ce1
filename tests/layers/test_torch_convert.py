"""convert, freeze, and the layers with an activation."""

import copy

import pytest
import torch
from torch import nn

import batchnorm.torch as bt
from batchnorm.errors import NoBatchNorm


def batch(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 1), self.bn), nn.BatchNorm2d(3, affine=False)])
        self.table = nn.ModuleDict({"volume": nn.BatchNorm3d(3).eval(), "line": nn.BatchNorm1d(3, momentum=None)})

    def forward(self, x):
        x = self.blocks[1](self.blocks[0](self.bn(x)))
        x = self.table["volume"](x.unsqueeze(2)).squeeze(2)
        return self.table["line"](x.flatten(2))


def test_convert_swaps_every_layer_and_keeps_outputs_weights_flags_and_hooks():
    torch.manual_seed(0)
    model = Shared()
    model(batch(4, 3, 5, 5))
    expected_model, calls = copy.deepcopy(model), []
    model.lazy = nn.LazyBatchNorm2d()
    handle = model.bn.register_forward_hook(lambda module, args, y: calls.append(type(module)))
    parameters, state = dict(model.named_parameters()), copy.deepcopy(expected_model.state_dict())
    assert bt.convert(model) is model
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert type(model.lazy) is nn.LazyBatchNorm2d
    del model.lazy
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert model.bn is model.blocks[0][1]
    kinds = [type(layer) for layer in (model.bn, model.blocks[1], model.table["volume"], model.table["line"])]
    assert kinds == [bt.BatchNorm2d, bt.BatchNorm2d, bt.BatchNorm3d, bt.BatchNorm1d]
    assert not model.table["volume"].training
    for _ in range(2):
        torch.testing.assert_close(model(batch(4, 3, 5, 5, seed=1)), expected_model(batch(4, 3, 5, 5, seed=1)))
    torch.testing.assert_close(model.state_dict(), expected_model.state_dict())
    assert calls == [bt.BatchNorm2d] * 4
    handle.remove()
    model(batch(4, 3, 5, 5))
    assert len(calls) == 4


def test_convert_of_a_layer_gives_a_new_one_and_leaves_the_old():
    old = nn.BatchNorm1d(3).bfloat16()
    new = bt.convert(old, statistics="debiased", virtual_batch_size=4)
    assert type(new) is bt.BatchNorm1d
    assert type(old) is nn.BatchNorm1d
    assert new.weight is old.weight
    assert (new.running_mean.dtype, old.running_mean.dtype) == (torch.float32, torch.bfloat16)
    assert "remaining" not in dict(old.named_buffers())
    assert (new.statistics, new.virtual_batch_size, new.remaining.tolist()) == ("debiased", 4, [1.0] * 3)


def test_convert_of_torchs_sync_layer_keeps_its_group():
    group = object()
    new = bt.convert(nn.SyncBatchNorm(3, process_group=group), virtual_batch_size=4)
    assert type(new) is bt.SyncBatchNorm
    assert new.process_group is group
    assert new.virtual_batch_size is None


def test_convert_to_debiased_keeps_trained_outputs():
    model = nn.Sequential(nn.BatchNorm1d(3))
    model(batch(5, 3))
    expected = copy.deepcopy(model).eval()(batch(5, 3, seed=1))
    converted = bt.convert(model, statistics="debiased").eval()
    torch.testing.assert_close(converted(batch(5, 3, seed=1)), expected)


def test_convert_leaves_subclasses_and_our_own_alone_and_reports_what_cannot_be():
    class Theirs(nn.BatchNorm1d):
        pass

    model = nn.Sequential(Theirs(3), bt.BatchNorm1d(3, guard=False))
    assert [type(layer) for layer in bt.convert(model)] == [Theirs, bt.BatchNorm1d]
    assert not model[1].guard
    with pytest.raises(ValueError, match=r"debiased.*momentum"):
        bt.convert(nn.BatchNorm1d(3, momentum=None), statistics="debiased")


def test_unfreeze_gives_back_the_mode_last_asked_for_and_what_was_trained():
    layer = bt.BatchNorm2d(3)
    layer.bias.requires_grad_(False)
    model = bt.freeze(nn.Sequential(nn.Conv2d(3, 3, 1), layer))
    assert "frozen=True" in repr(layer)
    assert not layer.weight.requires_grad
    assert model[0].weight.requires_grad
    bt.freeze(model)  # twice is once
    model.train()
    assert not layer.training
    bt.unfreeze(model)
    assert layer.training
    assert (layer.weight.requires_grad, layer.bias.requires_grad) == (True, False)
    bt.freeze(model, parameters=False)
    assert layer.weight.requires_grad
    model.eval()
    bt.unfreeze(model)
    assert not layer.training


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (bt.BatchNorm1d, (5, 3)),
        (bt.BatchNorm2d, (5, 3, 2, 2)),
        (bt.BatchNorm3d, (5, 3, 2, 2, 2)),
        (bt.SyncBatchNorm, (5, 3, 2)),
        (bt.BatchNormAct2d, (5, 3, 2, 2)),
    ],
)
def test_every_layer_freezes_and_a_copy_stays_frozen(make, shape):
    layer = make(3)
    layer(batch(*shape))
    before = copy.deepcopy(layer.state_dict())
    frozen = copy.deepcopy(bt.freeze(layer)).train()
    frozen(batch(*shape, seed=1))
    torch.testing.assert_close(frozen.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("function", "who"),
    [
        (bt.convert, "convert"),
        (bt.freeze, "freeze"),
        (bt.unfreeze, "unfreeze"),
        (bt.SyncBatchNorm.convert_sync_batchnorm, "convert_sync_batchnorm"),
    ],
)
def test_what_is_no_module_is_refused_by_its_type(function, who):
    with pytest.raises(ValueError, match=f"^{who}: module must be a torch.nn.Module; got dict"):
        function({})


def test_freeze_refuses_what_it_cannot_keep_frozen_and_then_freezes_nothing():
    ours = bt.BatchNorm1d(3)
    with pytest.raises(ValueError, match=r"layer '1' is a torch.*BatchNorm1d.*convert"):
        bt.freeze(nn.Sequential(ours, nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match="layer '1' has track_running_stats=False"):
        bt.freeze(nn.Sequential(ours, bt.BatchNorm1d(3, track_running_stats=False)))
    assert not ours.frozen
    with pytest.raises(NoBatchNorm, match="no batch normalization in Linear"):
        bt.freeze(nn.Linear(2, 2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "tanh", None])
def test_activation_and_residual_are_those_of_separate_operations(activation, training):
    fused = bt.BatchNormAct2d(3, activation=activation).train(training)
    plain = bt.BatchNorm2d(3).train(training)
    apply = (lambda z: z) if activation is None else getattr(torch, "tanh" if activation == "tanh" else "relu")
    if activation not in (None, "tanh", "relu"):
        apply = getattr(nn.functional, activation)
    for residual in (None, batch(4, 3, 5, 5, seed=1)):
        results = []
        for layer in (fused, plain):
            x = batch(4, 3, 5, 5).requires_grad_()
            added = None if residual is None else residual.clone().requires_grad_()
            if layer is fused:
                y = fused(x, added)
            else:
                y = apply(plain(x) if added is None else plain(x) + added)
            layer.zero_grad()
            y.square().sum().backward()
            results.append((y, x.grad, None if added is None else added.grad, layer.weight.grad, layer.bias.grad))
        torch.testing.assert_close(*results, rtol=1e-5, atol=2e-5)  # gradients are sums of 100 numbers up to 10
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


def test_an_unknown_activation_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"activation must be None or one of gelu, hardswish.*got 'swish'"):
        bt.BatchNormAct1d(3, activation="swish")
