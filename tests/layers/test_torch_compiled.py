"""The custom operators that a compiled graph calls: right by themselves, in a graph, and absent where they must be."""

import copy
import shutil

import pytest
import torch
from torch.library import opcheck

import batchnorm.torch as bt
from batchnorm.layers.torch import compiled, fast

pytestmark = [
    pytest.mark.skipif(not fast.ENABLED, reason="needs the extra fast"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler"
)
BACKEND = "aot_eager"
"""Graphs as the compiler sees them, run without compiling: a tenth of the time."""
KINDS = {
    "plain": (None, False, True),
    "no parameters": (None, False, False),
    "activation": ("silu", False, True),
    "residual": (None, True, True),
    "both": ("relu", True, True),
}


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def arguments(name, dtype=torch.float32, shape=(4, 6, 5, 7)):
    activation, adds, affine = KINDS[name]
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    x, residual = (numbers(*shape, seed=seed).to(dtype).requires_grad_() for seed in (0, 1))
    gamma, beta = (numbers(shape[1], seed=seed).to(wide).requires_grad_() for seed in (2, 3))
    return x, gamma if affine else None, beta if affine else None, residual if adds else None, 1e-3, activation


@pytest.fixture
def every_size(monkeypatch):
    """The operator at any size; how often it was called."""
    monkeypatch.setattr(compiled, "LEAST", 0)
    calls = []
    run = compiled.run_for
    monkeypatch.setattr(compiled, "run_for", lambda *given: calls.append(given) or run(*given))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", KINDS)
def test_torch_finds_nothing_wrong_with_the_operators(name, dtype):
    given = arguments(name, dtype)
    opcheck(torch.ops.batchnorm.normalize, given)
    statistics = torch.ops.batchnorm.normalize(*given)[1].detach()
    x, gamma, beta, residual = (None if each is None else each.detach() for each in given[:4])
    upstream = numbers(*x.shape, seed=5).to(dtype)
    opcheck(torch.ops.batchnorm.normalize_backward, (upstream, x, gamma, beta, residual, statistics, *given[4:]))


@pytest.mark.parametrize("name", KINDS)
def test_both_derivatives(name):
    *tensors, epsilon, activation = arguments(name, torch.float64, (3, 2, 4))
    there = [each for each in tensors if each is not None]

    def function(*given):
        rest = iter(given)
        filled = [None if each is None else next(rest) for each in tensors]
        return torch.ops.batchnorm.normalize(*filled, epsilon, activation)[0]

    assert torch.autograd.gradcheck(function, there)
    assert torch.autograd.gradgradcheck(function, there)


@pytest.mark.parametrize("name", KINDS)
def test_what_the_kernels_cannot_walk_is_composed(monkeypatch, name):
    given = arguments(name)
    grad = numbers(4, 6, 5, 7, seed=4)
    there = [each for each in given[:4] if each is not None]
    results = []
    for enabled in (True, False):
        monkeypatch.setattr(fast, "ENABLED", enabled)
        y, statistics = torch.ops.batchnorm.normalize(*given)
        results.append((y, statistics, *torch.autograd.grad(y, there, grad)))
    for one, other in zip(*results, strict=True):
        # Both compute in float32, with the bounds of docs/NUMERICS.md: 5e-7 of the largest value, gradients 1e-6.
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6 * max(1.0, other.abs().max().item()))


def step(layer, x, residual, grad, call=None):
    """Output, gradients, buffers."""
    leaves = [each.detach().requires_grad_() for each in (x, residual) if each is not None]
    y = layer(*leaves) if call is None else call(*leaves)
    return y.detach(), *torch.autograd.grad(y, [*leaves, *layer.parameters()], grad), *layer.buffers()


@pytest.mark.parametrize("backend", [BACKEND, pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])])
@pytest.mark.parametrize(("activation", "adds"), [(None, False), ("relu", True)])
def test_a_compiled_layer_calls_the_kernel_and_says_what_the_eager_one_says(every_size, activation, adds, backend):
    torch._dynamo.reset()
    eager = bt.BatchNormAct2d(6, activation=activation)
    other = copy.deepcopy(eager)
    graph = torch.compile(other, fullgraph=True, dynamic=True, backend=backend)
    for size in (4, 6):
        x, residual, grad = (numbers(size, 6, 5, 7, seed=seed) for seed in range(3))
        found = step(other, x, residual if adds else None, grad, graph)
        wanted = step(eager, x, residual if adds else None, grad)
        for one, two in zip(found, wanted, strict=True):
            # The same kernels; the running statistics are updated by torch's operations, two roundings apart.
            torch.testing.assert_close(one, two, rtol=3e-7, atol=3e-7)
    assert not any(each.requires_grad for each in other.buffers())
    assert len(every_size) == 4  # two forward, two backward
    other.eval(), eager.eval()
    torch.testing.assert_close(graph(x, residual), eager(x, residual), rtol=0, atol=2e-6)
    assert len(every_size) == 4


def test_small_inputs_are_composed_and_a_constant_channel_is_beta_either_way(monkeypatch, every_size):
    x = torch.full((8, 6, 4, 4), 3.1e7)
    for least in (0, x.numel() + 1):
        torch._dynamo.reset()
        monkeypatch.setattr(compiled, "LEAST", least)
        made = bt.BatchNorm2d(6)
        torch.nn.init.normal_(made.bias)
        y = torch.compile(made, fullgraph=True, backend=BACKEND)(x)
        assert torch.equal(y, made.bias.detach()[:, None, None].expand_as(y))
    assert len(every_size) == 1


def test_checkpoints_and_transforms_in_a_graph(every_size):
    torch._dynamo.reset()
    made = bt.BatchNorm1d(6)
    other = copy.deepcopy(made)
    x = numbers(8, 6).requires_grad_()

    def remembered(layer, x):
        return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).square().sum()

    found = torch.compile(lambda x: remembered(made, x), fullgraph=True, backend=BACKEND)(x)
    (one,) = torch.autograd.grad(found, x)
    (two,) = torch.autograd.grad(remembered(other, x), x)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert made.num_batches_tracked == 1
    torch.testing.assert_close(made.running_var, other.running_var)
    assert every_size
    other, calls = bt.BatchNorm1d(6, track_running_stats=False), len(every_size)
    gradient = torch.func.grad(lambda x: other(x).pow(3).sum())
    torch.testing.assert_close(
        torch.compile(gradient, backend=BACKEND)(x.detach()), gradient(x.detach()), rtol=0, atol=1e-5
    )
    many = numbers(3, 8, 6)
    mapped = torch.func.vmap(other)
    torch.testing.assert_close(torch.compile(mapped, backend=BACKEND)(many), mapped(many), rtol=0, atol=1e-5)
    assert len(every_size) == calls


def test_exported_graphs_hold_torchs_operators(every_size):
    made = bt.BatchNorm2d(6)
    for training in (True, False):
        program = torch.export.export(made.train(training), (numbers(4, 6, 5, 7),))
        targets = [str(node.target) for node in program.graph.nodes]
        assert not any("batchnorm.normalize" in each for each in targets)
        assert training or any("batch_norm" in each for each in targets)
    assert not every_size
