"""CPU tensors through the compiled kernels, held to the same layer in float64 without them."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import batchnorm.torch as bt
from batchnorm.kernels import pool
from batchnorm.layers.torch import fast, masked, run

pytestmark = [
    pytest.mark.skipif(not fast.ENABLED, reason="needs the extra fast"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
LAYOUTS = {
    "dense": lambda: numbers(40, 6),
    "1-D": lambda: numbers(4, 6, 30),
    "1-D, channels last": lambda: numbers(4, 30, 6).movedim(-1, 1),
    "2-D": lambda: numbers(4, 6, 9, 7),
    "2-D, channels last": lambda: numbers(4, 6, 9, 7).contiguous(memory_format=torch.channels_last),
    "2-D, a part of an image": lambda: numbers(4, 6, 12, 9)[:, :, 2:9, 1:8],
    "2-D, every second sample": lambda: numbers(8, 6, 9, 7)[::2],
    "3-D": lambda: numbers(2, 6, 4, 5, 3),
    "large enough for threads": lambda: numbers(8, 20, 40, 40),
}
# Of the largest value: the promises of docs/NUMERICS.md for float32; a rounding of 16-bit numbers, of inputs too.
BOUNDS = {
    torch.float32: (5e-7, 1e-6),
    torch.float64: (1e-14, 1e-13),
    torch.bfloat16: (2.0**-8, 2.0**-7),
    torch.float16: (2.0**-11, 2.0**-10),
}


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


@pytest.fixture
def taken(monkeypatch):
    """How many calls the kernels have taken."""
    calls = []
    for module, name in ((run, "forward"), (masked.cpu, "forward")):
        whole = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, whole=whole, **named: calls.append(given) or whole(*given, **named)
        )
    return calls


def layer(like, dtype=torch.float32, **keywords):
    made = getattr(bt, f"BatchNormAct{max(1, like.dim() - 2)}d")(like.shape[1], **{"activation": None, **keywords})
    for seed, parameter in enumerate(made.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    made.running_mean.copy_(numbers(like.shape[1], seed=5))
    made.running_var.copy_(numbers(like.shape[1], seed=6).abs() + 0.5)
    return made.to(torch.float64) if dtype is torch.float64 else made


def step(made, x, residual, grad):
    """Output and gradients."""
    x = x.detach().requires_grad_()
    given = [x] if residual is None else [x, residual.detach().requires_grad_()]
    y = made(*given)
    return y, *torch.autograd.grad(y, [*given, *made.parameters()], grad)


def largest_error(one, other):
    return ((one.double() - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_output_and_gradients_are_those_of_the_layer_in_float64(monkeypatch, taken, name, activation, adds, training):
    x = LAYOUTS[name]()
    residual = x.flip(0).clone(memory_format=torch.preserve_format) if adds else None
    if adds:
        residual = torch.empty_strided(x.shape, x.stride()).copy_(x.flip(0)) if x._base is None else x * 0.5
        x = x if residual.stride() == x.stride() else x.clone()
    grad = numbers(*x.shape, seed=1)
    found = step(layer(x, activation=activation).train(training), x, residual, grad)
    assert len(taken) == 1
    assert found[0].stride() == torch.empty_like(x).stride()
    monkeypatch.setattr(fast, "ENABLED", False)
    wide = [None if each is None else each.double() for each in (x, residual, grad)]
    exact = step(layer(x, torch.float64, activation=activation).train(training), *wide)
    bounds = BOUNDS[torch.float32]
    for number, (one, other) in enumerate(zip(found, exact, strict=True)):
        assert one.dtype == torch.float32
        assert largest_error(one, other) <= bounds[number > 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_other_types(monkeypatch, taken, dtype, training):
    x, grad = (numbers(4, 6, 9, 7, seed=seed).to(dtype) for seed in (0, 1))
    found = step(layer(x, dtype).train(training), x, None, grad)
    assert len(taken) == 1
    monkeypatch.setattr(fast, "ENABLED", False)
    exact = step(layer(x, torch.float64).train(training), x.double(), None, grad.double())
    bounds = BOUNDS[dtype]
    for number, (one, other) in enumerate(zip(found[:2], exact[:2], strict=True)):
        assert one.dtype == dtype
        assert largest_error(one, other) <= bounds[number > 0]
    for one, other in zip(found[2:], exact[2:], strict=True):
        assert largest_error(one, other) <= BOUNDS[torch.float32][1]


@pytest.mark.parametrize("arguments", [{}, {"momentum": None}, {"statistics": "debiased"}, {"guard": False}], ids=str)
def test_statistics_follow_as_torchs_do(taken, arguments):
    ours = bt.BatchNorm2d(6, **arguments)
    theirs = torch.nn.BatchNorm2d(6, momentum=arguments.get("momentum", 0.1))
    for seed in range(3):
        x = numbers(8, 6, 9, 7, seed=seed)
        with torch.no_grad():
            ours(x), theirs(x)
    assert len(taken) == 3
    assert ours.num_batches_tracked == 3
    if not arguments.get("statistics"):
        # Sums of 504 numbers in torch's float32, and three updates: 20 roundings of the largest.
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1.2e-6, atol=1.2e-6)
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1.2e-6, atol=1.2e-6)
    else:
        pooled = torch.stack([numbers(8, 6, 9, 7, seed=seed).mean((0, 2, 3)) for seed in range(3)])
        weights = 0.9 ** torch.tensor([2.0, 1, 0])
        wanted = (weights[:, None] * pooled).sum(0) / weights.sum()
        torch.testing.assert_close(ours.running_mean, wanted, rtol=1e-5, atol=1e-5)


def test_a_mask_and_a_mask_of_nothing(monkeypatch, taken):
    x, grad = numbers(4, 6, 9, 7), numbers(4, 6, 9, 7, seed=1)
    for mask in (torch.arange(4 * 63).reshape(4, 9, 7) % 3 != 0, torch.zeros(4, 9, 7, dtype=torch.bool)):
        results = []
        for enabled, dtype in ((True, torch.float32), (False, torch.float64)):
            monkeypatch.setattr(fast, "ENABLED", enabled)
            made, leaf = layer(x, dtype), x.to(dtype).requires_grad_()
            y = made(leaf, mask=mask)
            results.append((y, *torch.autograd.grad(y, [leaf, *made.parameters()], grad.to(dtype)), made.running_var))
        for one, other in zip(*results, strict=True):
            assert largest_error(one, other) <= 1e-6
    assert len(taken) == 1  # nothing to count is for the composition


def test_writing_by_address_is_told_to_autograd(taken):
    made = bt.BatchNorm1d(6)
    x = numbers(40, 6).requires_grad_()
    kept = (made.running_mean * made.running_mean.detach().requires_grad_()).sum()
    made(x)
    assert len(taken) == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()
    y = made(x)
    x.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_that_lie_otherwise(taken):
    x = numbers(4, 6, 9, 7)
    for grad in (torch.ones(()).expand(4, 6, 9, 7), numbers(4, 9, 7, 6).movedim(-1, 1)):
        ours, theirs = layer(x), torch.nn.BatchNorm2d(6)
        theirs.load_state_dict(ours.state_dict())
        one, other = (torch.autograd.grad(made(leaf), leaf, grad)[0] for made in (ours, theirs.double())
                      for leaf in [x.to(made.weight.dtype).requires_grad_()])  # fmt: skip
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6 * max(1.0, other.abs().max().item()))
    assert len(taken) == 2


@pytest.mark.parametrize("training", [True, False])
def test_channels_last_with_a_last_axis_of_one_and_a_gradient_that_lies_otherwise(taken, training):
    # As a sequence (N, L, C) comes to a 2-D layer. torch 2.13 takes the gradient, a contiguous one, for channels last:
    # the sum of its 36 numbers, which is bias' gradient, is off by several of them.
    x = numbers(4, 9, 6).transpose(1, 2).unsqueeze(-1)
    assert x.stride() == (54, 1, 6, 1)
    grad, dense = numbers(4, 6, 9, 1, seed=1), x.clone(memory_format=torch.contiguous_format)
    found = step(layer(x).train(training), x, None, grad)
    exact = step(layer(x, torch.float64).train(training), dense.double(), None, grad.double())
    assert len(taken) == 2
    for number, (one, other) in enumerate(zip(found, exact, strict=True)):
        assert largest_error(one, other) <= BOUNDS[torch.float32][number > 0]
    *_, theirs = step(torch.nn.BatchNorm2d(6).train(training), x, None, grad)
    assert largest_error(theirs, grad.double().sum((0, 2, 3))) > 0.01


def test_large_outputs_come_from_the_pool_and_behave(taken):
    x = numbers(4, 16, 1, 1).expand(4, 16, 380, 380).contiguous() + torch.arange(380.0)
    x.requires_grad_()
    made = bt.BatchNorm2d(16)
    pool.clear()
    y = made(x)
    assert x.numel() * 4 > pool.BIG
    address = y.data_ptr()
    y.relu_()  # in place, on memory that torch did not allocate
    y.sum().backward()
    theirs = torch.nn.BatchNorm2d(16).double()
    wanted = torch.relu(theirs(x.detach().double()))
    assert largest_error(y, wanted) <= 5e-7
    del y
    again = made(x.detach())
    assert again.data_ptr() == address or pool.kept()
    assert again.storage_offset() == 0
    assert again.clone().numel() == x.numel()


def test_what_follows_operations_gets_operations(taken):
    made = layer(numbers(4, 6, 5)).eval()
    x = numbers(4, 6, 5)
    wanted = made(x)
    assert len(taken) == 1
    traced = torch.jit.trace(made, x)
    assert not any("first" in str(node) for node in traced.graph.nodes())
    torch.testing.assert_close(traced(x + 1), made(x + 1))
    recorded = make_fx(lambda x: made(x))(x)
    torch.testing.assert_close(recorded(x + 1), made(x + 1))
    torch.testing.assert_close(torch.func.vmap(made)(torch.stack([x, x]))[1], wanted)
    primal, tangent = torch.func.jvp(made, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(primal, wanted)
    assert tangent.abs().max() > 0.1
    turned = (torch.complex(numbers(4, 6, 5), -x).conj()).imag
    assert turned.is_neg()
    torch.testing.assert_close(made(turned), wanted)


def test_batched_gradients(taken):
    made = layer(numbers(4, 6, 5))
    x = numbers(4, 6, 5).requires_grad_()
    grads = torch.stack([numbers(4, 6, 5, seed=seed) for seed in (1, 2)])
    y = made(x)
    (together,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    alone = torch.stack([torch.autograd.grad(y, x, grad, retain_graph=True)[0] for grad in grads])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6 * alone.abs().max().item())
    assert len(taken) == 1


def test_without_the_kernels_the_layer_says_the_same(in_subprocess):
    code = (
        "import torch, batchnorm.torch as bt; from batchnorm.layers.torch import fast; torch.manual_seed(0)\n"
        "y = bt.BatchNorm1d(3)(torch.randn(8, 3)); print(fast.ENABLED, round(y.abs().sum().item(), 4))"
    )
    on, off = (in_subprocess(code, environment={"BATCHNORM_KERNELS": value}).split() for value in "10")
    assert (on[0], off[0]) == ("True", "False")
    assert on[1] == off[1]
