"""What a call of a layer is fed, measured by the kernels where it lies, and by the equations in its framework."""

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.core.record import LayerRecord
from batchnorm.errors import Refused

torch = pytest.importorskip("torch")
pytest.importorskip("numba")

from batchnorm.engines import calls, torch_bench  # noqa: E402
from batchnorm.engines.torch_bench import Plain, TensorCall, normalized  # noqa: E402

TYPES = {"float32": 2e-7, "float64": 5e-13, "float16": 2e-7, "bfloat16": 2e-7}
"""Of a standard deviation: differences are taken in the wide type, from a sample, and summed in double. In float32 two
roundings each, which average out over thousands of elements; in float64 a mean of 1e3 is itself rounded to
1.1e-13."""


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def record_of(channels, axis=1):
    return LayerRecord(
        name="bn", kind="BatchNorm2d", channels=channels, axis=axis, dtype="float32", epsilon=1e-5,
        epsilon_source="file", averaging="exponential", decay=0.9, momentum=0.1, ddof=1, mode="by-call",
        moving_mean=np.zeros(channels, "f"), moving_variance=np.ones(channels, "f"),
    )  # fmt: skip


def by_equations(monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(calls.Call, "_by_kernels", lambda *_: None)
        return call.moments()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", ["first", "last", "transposed"])
def test_moments_by_the_kernels_are_those_of_float64(dtype, layout, monkeypatch, rng):
    x = torch.from_numpy(rng.normal(1000 if dtype in ("float32", "float64") else 3, 1, (16, 5, 24, 24)))
    x = x.to(getattr(torch, dtype))
    x = x.to(memory_format=torch.channels_last) if layout == "last" else x
    x = x.transpose(2, 3) if layout == "transposed" else x
    call = TensorCall(torch, record_of(5), x)
    used = []
    monkeypatch.setattr(calls, "compiled_moments", lambda *given: used.append(1) or real(*given))
    found = call.moments()
    exact = x.double().numpy().astype(np.longdouble)
    wide = exact.transpose(1, 0, 2, 3).reshape(5, -1)
    assert used, "the kernels take every one of these"
    assert found.count == wide.shape[1]
    assert np.abs(found.mean - wide.mean(1)).max() < TYPES[dtype]
    assert np.abs(found.m2 / found.count - wide.var(1)).max() < 5 * TYPES[dtype]
    slow = by_equations(monkeypatch, call)
    assert slow.count == found.count
    # The equations in float32: a sum of 9216 squares in blocks is off by a few roundings.
    assert np.abs(slow.mean - found.mean).max() < 1e-6
    assert np.abs(slow.m2 - found.m2).max() / found.count < 5e-6


real = calls.compiled_moments


@pytest.mark.parametrize("size", [3, 40], ids=["small", "large"])
def test_a_mask_counts_alike_in_both_ways(size, monkeypatch, rng):
    x = rng.normal(5, 2, (8, 6, size * size)).astype("f")
    mask = rng.random((8, size * size)) < 0.6
    x[:, :, :][~np.broadcast_to(mask[:, None], x.shape)] = np.nan
    call = TensorCall(torch, record_of(6), torch.from_numpy(x), torch.from_numpy(mask))
    fast, slow = call.moments(), by_equations(monkeypatch, call)
    assert fast.count == slow.count == mask.sum()
    wide = x.transpose(1, 0, 2)[:, mask].astype(np.float64)
    for found in (fast, slow):
        assert np.abs(found.mean - wide.mean(1)).max() < 1e-6
        assert np.abs(found.m2 / found.count - wide.var(1)).max() < 1e-5


def test_nothing_counted_and_what_is_not_finite(rng):
    x = torch.from_numpy(rng.normal(0, 1, (8, 4, 40, 40)).astype("f"))
    nothing = torch.zeros(8, 40, 40, dtype=torch.bool)
    assert TensorCall(torch, record_of(4), x, nothing).moments().count == 0
    assert TensorCall(torch, record_of(4), x[:0]).moments().count == 0
    for bad in (np.nan, np.inf):
        x[3, 2, 1, 1] = bad
        with pytest.raises(Refused, match="not finite"):
            TensorCall(torch, record_of(4), x).moments()


def test_values_beyond_float32s_squares_are_taken_in_float64(rng):
    x = torch.from_numpy((1e30 * rng.normal(0, 1, (8, 4, 40, 40))).astype("f"))
    found = TensorCall(torch, record_of(4), x).moments()
    wide = x.double().numpy().transpose(1, 0, 2, 3).reshape(4, -1)
    assert np.allclose(found.m2 / found.count, wide.var(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_output_and_moments_from_one_call_of_the_kernels(dtype, rank, rng):
    kind = (torch.nn.BatchNorm1d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)[rank - 2]
    layer = kind(7, eps=1e-3).train()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    x = torch.from_numpy(rng.normal(2, 3, (64, 7, 5, 6, 4)[:rank])).to(getattr(torch, dtype))
    out, (count, mean, variance) = normalized(torch, x, Plain(layer.weight, layer.bias, layer.eps))
    wide = x.double().numpy().astype(np.longdouble)
    axes = tuple(axis for axis in range(rank) if axis != 1)
    shape = [-1 if axis == 1 else 1 for axis in range(rank)]
    assert count == x.numel() // 7
    assert np.abs(mean - wide.mean(axes)).max() < 1e-6
    assert np.abs(variance / wide.var(axes) - 1).max() < 1e-6
    # The output by the statistics that were handed out: a subtraction, two products and a sum, and the output's type.
    gamma, beta = (each.detach().double().numpy().reshape(shape) for each in (layer.weight, layer.bias))
    y = (wide - mean.reshape(shape)) / np.sqrt(variance + np.longdouble(1e-3)).reshape(shape) * gamma + beta
    assert out.dtype == x.dtype
    assert out.shape == x.shape
    off = np.abs(out.detach().double().numpy() - y).max()
    assert off < 4 * torch.finfo(x.dtype).eps * np.abs(y).max()


def test_only_pytorchs_own_layers_are_computed_here():
    class Own(torch.nn.BatchNorm2d):
        pass

    changed = torch.nn.BatchNorm2d(3)
    changed.forward = lambda input: 2 * input
    assert torch_bench.is_plain(torch, torch.nn.BatchNorm2d(3))
    assert not torch_bench.is_plain(torch, Own(3))
    assert not torch_bench.is_plain(torch, changed)


def test_a_layer_with_more_than_a_normalisation_keeps_its_own_code(rng):
    class Doubled(torch.nn.BatchNorm1d):
        def forward(self, input):
            return 2 * super().forward(input)

    torch.manual_seed(0)
    x = rng.normal(3, 2, (256, 5)).astype("f")
    plain = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 5), torch.nn.BatchNorm1d(5))
    twice = torch.nn.Sequential(Doubled(5), torch.nn.Linear(5, 5), torch.nn.BatchNorm1d(5))
    twice.load_state_dict(plain.state_dict())
    for model in (plain, twice):
        bn.recalibrate(model, x)
        assert "forward" not in vars(model[0]), "the replaced forward is gone"
    # What the second layer is fed has twice the spread: x @ W is linear, and the bias has none.
    ratio = twice[2].running_var / plain[2].running_var
    assert torch.allclose(ratio, torch.full_like(ratio, 4), rtol=1e-5)


def test_hooks_of_the_users_are_still_called(rng):
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.BatchNorm1d(5))
    model[0].register_forward_pre_hook(lambda _, given: (given[0] * 3,))
    model[0].register_forward_hook(lambda _, __, output: output + 7)
    bn.recalibrate(model, rng.normal(0, 1, (512, 5)).astype("f"))
    assert torch.allclose(model[0].running_var, torch.tensor(9.0), rtol=0.3)
    assert torch.allclose(model[1].running_mean, torch.tensor(7.0), atol=1e-5)
