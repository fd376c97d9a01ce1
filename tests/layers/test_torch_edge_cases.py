"""The table of edge cases, a test a row; torch's own behaviour (2.13) is asserted where it is a promise of torch's
(drop-in), printed where it is a fault that may be mended (``pytest -rP`` shows it)."""

import math

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as bt
from batchnorm.core import reference
from batchnorm.core.training import Rule

U32 = 2.0**-24


def batch(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def state(layer):
    return {name: value.clone() for name, value in layer.named_buffers()}


def assert_state(layer, expected):
    torch.testing.assert_close(state(layer), expected, rtol=0, atol=0)


def close_to(y, exact, units=16):
    """Within ``units`` roundings of the largest value: five in the formula, the rest for the sums behind it."""
    atol = units * torch.finfo(y.dtype).eps / 2 * max(1.0, float(np.abs(exact).max()))
    np.testing.assert_allclose(y.detach().double().numpy(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)], ids=str)
def test_an_empty_batch_gives_an_empty_output_and_changes_nothing(shape):
    layer, peer = bt.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    layer(batch(5, 3))
    before = state(layer)
    x = torch.empty(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == shape
    y.sum().backward()
    assert layer.weight.grad.tolist() == [0.0, 0.0, 0.0]
    assert_state(layer, before)
    peer(x)
    print("torch counts an update:", peer.num_batches_tracked)


@pytest.mark.parametrize("mask", [None, torch.tensor([[True]])], ids=["plain", "masked"])
def test_one_element_per_channel_is_torchs_error(mask):
    x = batch(1, 3, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as theirs:
        torch.nn.BatchNorm1d(3)(x)
    layer = bt.BatchNorm1d(3)
    with pytest.raises(ValueError, match="Use a larger batch") as ours:
        layer(x, mask)
    assert str(theirs.value) in str(ours.value)
    assert_state(layer, state(bt.BatchNorm1d(3)))
    layer.eval()(x)  # inference has no such limit


@pytest.mark.parametrize("statistics", ["moving", "debiased", "cumulative"])
def test_everything_masked_normalises_with_the_running_statistics_and_changes_nothing(statistics):
    layer = bt.BatchNorm1d(3, statistics=statistics)
    layer(batch(8, 3) * 3 + 2)
    before, x = state(layer), batch(5, 3, seed=1).requires_grad_()
    y = layer(x, torch.zeros(5, dtype=torch.bool))
    assert_state(layer, before)
    close_to(y, layer.eval()(x).detach().double().numpy())
    y.sum().backward()  # the statistics are constants: each element's gradient is its scale
    scale = 1 / (layer.running_var + layer.eps).sqrt()
    torch.testing.assert_close(x.grad, scale.expand(5, 3))


def test_everything_masked_without_running_statistics_normalises_with_0_and_1():
    layer = bt.BatchNorm1d(3, track_running_stats=False)
    x = batch(5, 3)
    close_to(layer(x, torch.zeros(5, dtype=torch.bool)), x.double().numpy() / math.sqrt(1 + 1e-5))


def test_one_counted_element_says_nothing_of_a_variance_and_changes_nothing():
    layer = bt.BatchNorm1d(3)
    layer(batch(5, 3), torch.arange(5) == 2)
    assert_state(layer, state(bt.BatchNorm1d(3)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("statistics", ["moving", "debiased", "cumulative"])
def test_a_nan_shows_in_the_output_and_its_channels_update_is_skipped_and_counted(statistics, bad):
    layer, clean = (bt.BatchNorm1d(3, statistics=statistics) for _ in range(2))
    peer, unguarded = torch.nn.BatchNorm1d(3), bt.BatchNorm1d(3, guard=False)
    for seed in range(3):
        x = batch(5, 3, seed=seed)
        clean(x) if seed != 1 else None
        if seed == 1:
            x[2, 1] = bad
        y = layer(x)
        assert bool(y[:, 1].isnan().any()) == (seed == 1)
        assert y[:, [0, 2]].isfinite().all()
        peer(x)
        unguarded(x)
    assert layer.skipped_updates.tolist() == [0, 1, 0]
    # Channel 1 is where a layer is that never saw the bad batch, also in its weight of the next one.
    assert layer.running_mean[1] == clean.running_mean[1]
    assert layer.running_var[1] == clean.running_var[1]
    assert int(layer.num_batches_tracked) == 3
    assert "skipped_updates" not in layer.state_dict()
    assert not unguarded.running_mean[1].isfinite()
    assert unguarded.skipped_updates is None
    print("torch loses the channel for good:", peer.running_mean)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_a_mask_is_as_if_only_its_elements_were_there(rank):
    shape = (4, 3, *range(2, rank))
    layer = {2: bt.BatchNorm1d, 3: bt.BatchNorm1d, 4: bt.BatchNorm2d, 5: bt.BatchNorm3d}[rank](3)
    x = batch(*shape)
    mask = torch.rand(shape[:1] + shape[2:], generator=torch.Generator().manual_seed(1)) < 0.6
    x[(~mask).unsqueeze(1).expand(shape)] *= 1e3  # padding need not be tame
    y = layer(x, mask)
    mean, variance = reference.moments(x.numpy(), axis=1, mask=mask.numpy())
    # The padded positions are normalised like any other: compare where it counts, and there against the reference.
    exact = reference.training(x.numpy(), None, None, epsilon=layer.eps, axis=1, mask=mask.numpy())
    counted = mask.unsqueeze(1).expand(shape)
    close_to(y[counted], exact[counted.numpy()])
    np.testing.assert_allclose(y.detach().numpy(), exact, rtol=64 * U32, atol=64 * U32)
    n = int(mask.sum())
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * mean, rtol=0, atol=16 * U32)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * variance * n / (n - 1), rtol=16 * U32)
    assert_state_of_broadcast(layer, x, mask)
    with pytest.raises(TypeError, match="mask"):
        torch.nn.BatchNorm1d(3)(batch(4, 3), mask=torch.ones(4, dtype=torch.bool))


def assert_state_of_broadcast(layer, x, mask):
    again = type(layer)(3)
    again(x, mask.unsqueeze(1))  # the same mask at the input's rank, with 1 on the channels
    assert_state(again, state(layer))


def test_nan_in_padding_that_the_loss_ignores_reaches_neither_statistics_nor_gradients():
    mask, results = torch.tensor([True, True, True, False]), []
    for padding in (0.0, math.nan):
        layer, x = bt.BatchNorm1d(2), batch(4, 2)
        x[3] = padding
        x.requires_grad_()
        y = layer(x, mask)[:3]
        y.square().sum().backward()
        results.append((y, x.grad, layer.weight.grad, layer.bias.grad, state(layer)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_a_large_mean_costs_nothing_in_training(mean):
    x = batch(256, 2) + mean
    layer = bt.BatchNorm1d(2)
    close_to(layer(x), reference.training(x.numpy(), None, None, epsilon=layer.eps, axis=1), units=32)
    expected = reference.moments(x.numpy(), axis=1)[1] * 256 / 255
    np.testing.assert_allclose((layer.running_var.double().numpy() - 0.9) / 0.1, expected, rtol=0, atol=20 * U32)


def test_inference_subtracts_a_large_mean_first():
    x = batch(256, 2) + 1e6
    results = {}
    for layer in (bt.BatchNorm1d(2), torch.nn.BatchNorm1d(2)):
        layer.running_mean.fill_(1e6)
        y = layer.eval()(x).detach().double().numpy()
        exact = reference.inference(x.numpy(), [1e6] * 2, [1.0] * 2, None, None, epsilon=layer.eps, axis=1)
        results[type(layer).__module__] = np.abs(y - exact).max()
    ours, torchs = results.values()
    print("torch is off by", torchs)  # 6.8e-3 with scale and shift folded
    assert ours <= 3 * 4 * U32  # three roundings of numbers up to 4


@pytest.mark.parametrize("value", [3.1e7, 100.1, 0.0])
def test_a_constant_channel_is_exactly_beta(value):
    layer, peer = bt.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    torch.nn.init.constant_(layer.bias, 0.7)
    x = torch.full((37, 2, 3), value)
    assert (layer(x) == torch.tensor(0.7)).all()
    assert (bt.batch_norm(x, None, None, training=True) == 0).all()
    print("torch is off by", peer(x).detach().abs().max())  # 109 at 3.1e7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_float32_statistics(dtype):
    layer, peer = bt.BatchNorm1d(2).to(dtype), torch.nn.BatchNorm1d(2).to(dtype)
    assert layer.running_mean.dtype == layer.running_var.dtype == torch.float32
    assert layer.weight.dtype == dtype
    x = batch(64, 2, dtype=dtype) + 10
    for _ in range(200):
        y = layer(x)
        peer(x)
    exact = reference.training(x.double().numpy(), None, None, epsilon=layer.eps, axis=1)
    close_to(y, exact, units=1.05)  # one rounding, and what float32 adds to it
    target = x.double().mean(0).numpy()
    np.testing.assert_allclose(layer.running_mean.numpy(), target * (1 - 0.9**200), rtol=200 * U32)
    print("torch's running mean of", target, "after 200 updates:", peer.running_mean)


def test_frozen_survives_train_and_requires_grad():
    model = bt.freeze(torch.nn.Sequential(torch.nn.Linear(3, 3), bt.BatchNorm1d(3)))
    x = batch(5, 3)
    before, expected = state(model), model[1](x)
    model.train()
    torch.testing.assert_close(model[1](x), expected, rtol=0, atol=0)
    assert_state(model, before)
    peer = torch.nn.BatchNorm1d(3).eval()
    torch.nn.Sequential(peer).train()(x)
    print("torch's is thawed by its parent's train():", peer.num_batches_tracked)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("make", [bt.BatchNorm1d, bt.BatchNormAct1d, bt.SyncBatchNorm])
def test_activation_checkpointing_updates_once(make, use_reentrant):
    layer, plain, peer = make(3), make(3), torch.nn.BatchNorm1d(3)
    x = batch(5, 3).requires_grad_()
    checkpoint(layer, x, use_reentrant=use_reentrant).square().sum().backward()
    again = x.detach().clone().requires_grad_()
    plain(again).square().sum().backward()
    assert_state(layer, state(plain))
    torch.testing.assert_close(x.grad, again.grad, rtol=0, atol=0)
    checkpoint(peer, x, use_reentrant=use_reentrant).sum().backward()
    print("torch updates twice:", peer.num_batches_tracked)


@pytest.mark.parametrize("size", [2, 3, 4, 100])
def test_virtual_batches_are_normalised_and_counted_one_by_one(size):
    x, mask = batch(8, 3, 5), torch.rand(8, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    layer, parts = bt.BatchNorm1d(3, virtual_batch_size=size), bt.BatchNorm1d(3)
    got = layer(x, mask)
    expected = torch.cat([parts(a, b) for a, b in zip(x.split(size), mask.split(size), strict=True)])
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert_state(layer, state(parts))
    with pytest.raises(TypeError, match="virtual_batch_size"):
        torch.nn.BatchNorm1d(3, virtual_batch_size=size)


def test_a_last_part_of_one_sample_is_an_error_before_anything_is_updated():
    layer = bt.BatchNorm1d(3, virtual_batch_size=2)
    before = state(layer)
    with pytest.raises(ValueError, match=r"Expected more than 1 .* virtual_batch_size=2 leaves .* shape \(5, 3\)"):
        layer(batch(5, 3))
    assert_state(layer, before)
    assert layer(batch(5, 3, 2)).shape == (5, 3, 2)  # one sample of two elements


def test_complex_and_integer_inputs_are_told_apart_from_real_ones():
    layer = bt.BatchNorm1d(3)
    for x, way_out in (
        (batch(4, 3).to(torch.complex64), "imaginary"),
        (torch.ones(4, 3, dtype=torch.int64), "float()"),
    ):
        for call in (layer, layer.eval(), lambda x: bt.batch_norm(x, None, None, training=True)):
            with pytest.raises(TypeError, match=way_out.replace("(", r"\(").replace(")", r"\)")):
                call(x)
    with pytest.raises(NotImplementedError, match="ComplexFloat"):
        torch.nn.BatchNorm1d(3)(batch(4, 3).to(torch.complex64))


BAD = [
    ({"eps": 0.0}, "BatchNorm1d: eps must be positive and finite; got 0.0"),
    ({"eps": -1.0}, "eps must be positive and finite; got -1.0"),
    ({"eps": math.nan}, "eps must be positive and finite; got nan"),
    ({"momentum": -0.1}, "momentum must be between 0 and 1.*got -0.1"),
    ({"momentum": 1.5}, "momentum must be between 0 and 1.*got 1.5"),
    ({"statistics": "ema"}, "statistics must be 'moving', 'debiased' or 'cumulative'; got 'ema'"),
    ({"statistics": "debiased", "momentum": None}, "'debiased' needs a momentum"),
    ({"eps": math.inf}, "eps must be positive and finite; got inf"),
    ({"eps": "1e-5"}, "BatchNorm1d: eps must be a number; got '1e-5'"),
    ({"momentum": "slow"}, "BatchNorm1d: momentum must be a number; got 'slow'"),
    ({"virtual_batch_size": 0}, "virtual_batch_size must be an integer of at least 1; got 0"),
    ({"virtual_batch_size": 2.5}, "BatchNorm1d: virtual_batch_size must be an integer of at least 1; got 2.5"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_are_errors_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        bt.BatchNorm1d(3, **arguments)
    if set(arguments) <= {"eps", "momentum"}:
        torch.nn.BatchNorm1d(3, **arguments)  # in silence


def test_the_functional_takes_any_momentum_as_torchs_does():
    x = batch(4, 3)
    buffers = [[torch.zeros(3), torch.ones(3)] for _ in range(2)]
    for function, pair in zip((bt.batch_norm, torch.nn.functional.batch_norm), buffers, strict=True):
        function(x, *pair, training=True, momentum=-1.2)
    torch.testing.assert_close(*buffers)


FORWARD = [
    (bt.BatchNorm2d, (4, 3), {}, ValueError, r"BatchNorm2d: expected 4D input \(got 2D input\); its shape is \(4, 3\)"),
    (bt.BatchNorm1d, (4, 3, 2, 2), {}, ValueError, r"expected 2D or 3D input \(got 4D input\)"),
    (bt.BatchNorm1d, (4, 5), {}, ValueError, "num_features=3 channels on axis 1; got 5"),
    (bt.BatchNorm1d, (4, 5), {}, RuntimeError, "num_features=3"),  # torch's type of error
    (bt.BatchNorm1d, (4, 3), {"mask": torch.ones(3, dtype=torch.bool)}, ValueError, r"mask must have the shape \(4,\)"),
    (bt.BatchNorm1d, (4, 3), {"mask": torch.ones(4)}, TypeError, "mask must be a boolean tensor.*float32"),
    (bt.BatchNorm1d, (4, 3), {"mask": [True] * 4}, TypeError, "mask must be a boolean tensor, .*; got a list"),
    (
        bt.BatchNormAct1d,
        (4, 3),
        {"residual": torch.ones(4, 1)},
        ValueError,
        r"residual must have .*\(4, 3\); got \(4, 1\)",
    ),
    (bt.SyncBatchNorm, (4,), {}, ValueError, "expected 2D or"),
]


@pytest.mark.parametrize(("make", "shape", "arguments", "kind", "message"), FORWARD)
def test_bad_inputs_name_the_layer_the_argument_and_the_value(make, shape, arguments, kind, message):
    with pytest.raises(kind, match=message):
        make(3)(torch.ones(shape), **arguments)


FUNCTIONAL = [
    ((None, None), {}, ValueError, "running_mean and running_var must be given where training is False"),
    ((torch.zeros(4), torch.ones(3)), {}, RuntimeError, "running_mean should contain 3 elements"),
    ((torch.zeros(3), torch.ones(3), torch.ones(2)), {}, RuntimeError, "weight should contain 3 elements"),
    ((None, None), {"training": True, "eps": 0.0}, ValueError, "eps must be positive in training; got 0.0"),
    ((torch.zeros(3), torch.ones(3)), {"eps": -1.0}, ValueError, "eps must be at least 0; got -1.0"),
]


@pytest.mark.parametrize(("args", "keywords", "kind", "message"), FUNCTIONAL)
def test_bad_arguments_of_the_functional_raise_torchs_types(args, keywords, kind, message):
    x = torch.ones(4, 3)
    with pytest.raises(kind, match=message):
        bt.batch_norm(x, *args, **keywords)
    with pytest.raises((ValueError, RuntimeError)):
        torch.nn.functional.batch_norm(x, *args, **keywords)


def test_debiased_statistics_are_right_from_the_first_update():
    layer, peer = bt.BatchNorm1d(2, statistics="debiased"), torch.nn.BatchNorm1d(2)
    torch.testing.assert_close(layer.eval()(torch.ones(3, 2)), torch.ones(3, 2), rtol=1e-5, atol=0)  # initial 0 and 1
    layer.train()
    moving = {"mean": np.zeros(2), "variance": np.ones(2)}
    for seed in range(5):
        x = batch(16, 2, seed=seed) * 5 + 7
        layer(x)
        peer(x)
        mean, variance = reference.moments(x.numpy(), axis=1)
        for name, value in (("mean", mean), ("variance", variance * 16 / 15)):
            moving[name] = 0.9 * moving[name] + 0.1 * value
        t = seed + 1
        expected_mean = moving["mean"] / (1 - 0.9**t)
        expected_variance = (moving["variance"] - 0.9**t) / (1 - 0.9**t)
        # Dividing by 1 - 0.9**t magnifies the roundings of the first updates tenfold.
        np.testing.assert_allclose(layer.running_mean.numpy(), expected_mean, rtol=100 * U32)
        np.testing.assert_allclose(layer.running_var.numpy(), expected_variance, rtol=100 * U32)
    np.testing.assert_allclose(layer.remaining.numpy(), 0.9**5, rtol=8 * U32)
    print("moving average after 5 updates:", peer.running_mean, peer.running_var)


@pytest.mark.parametrize("arguments", [{"momentum": None}, {"statistics": "cumulative"}])
def test_cumulative_statistics_are_torchs_with_momentum_none(arguments):
    layer, peer = bt.BatchNorm1d(2, **arguments), torch.nn.BatchNorm1d(2, momentum=None)
    for seed in range(4):
        x = batch(6, 2, seed=seed) + seed
        layer(x)
        peer(x)
    torch.testing.assert_close(layer.state_dict(), peer.state_dict())


def test_the_rule_tells_how_the_statistics_follow():
    assert bt.BatchNorm1d(2, eps=1e-3, momentum=0.25, statistics="debiased").rule == Rule(
        epsilon=1e-3, decay=0.75, ddof=1, statistics="debiased", guard=True
    )
    assert bt.BatchNorm1d(2, momentum=None, guard=False).rule == Rule(
        epsilon=1e-5, decay=1.0, ddof=1, statistics="cumulative", guard=False
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("eps", -1e-3, "eps must be positive and finite; got -0.001"),
        ("eps", 10**400, "eps must be positive and finite; got 1000"),
        ("momentum", 1.5, "momentum must be between 0 and 1, .* got 1.5"),
        ("momentum", "0.1", "momentum must be a number; got '0.1'"),
        ("statistics", "ema", "statistics must be 'moving', .* got 'ema'"),
        ("virtual_batch_size", 0, "virtual_batch_size must be an integer of at least 1; got 0"),
        ("num_features", -1, "num_features must be an integer of at least 0; got -1"),
        ("num_features", 2.5, "num_features must be an integer of at least 0; got 2.5"),
    ],
)
def test_bad_settings_are_refused_also_later(name, value, message):
    layer = bt.BatchNorm1d(3)
    with pytest.raises(ValueError, match=f"BatchNorm1d: {message}"):
        setattr(layer, name, value)  # torch's layer takes any, and gives NaN or statistics that run away
    with pytest.raises(ValueError, match=f"BatchNorm1d: {message}"):
        bt.BatchNorm1d(**{"num_features": 3, name: value})


@pytest.mark.parametrize("x", [None, [[1.0, 2.0]], np.ones((4, 3), "float32")], ids=["None", "list", "array"])
def test_an_input_that_is_no_tensor_is_named(x):
    with pytest.raises(TypeError, match=r"BatchNorm1d: the input must be a tensor; got \w+. Pass torch.as_tensor"):
        bt.BatchNorm1d(3)(x)
