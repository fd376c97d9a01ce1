"""A layer's second call of a kind, whose checks are looked up: the same as the first, and never on stale tensors."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.utils import prune

import batchnorm.torch as bt
from batchnorm.layers.torch import fast, quick

pytestmark = pytest.mark.skipif(not fast.ENABLED, reason="needs the extra fast")


ARGUMENTS = (
    {},
    {"affine": False},
    {"track_running_stats": False},
    {"momentum": None},
    {"statistics": "debiased"},
    {"guard": False},
    {"bias": False},
)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


@pytest.fixture
def started(monkeypatch):
    """Calls that went the short way."""
    calls = []
    start = quick.start
    monkeypatch.setattr(quick, "start", lambda *given: calls.append(given) or start(*given))
    return calls


def run(layer, *given):
    """Output, gradients, buffers."""
    leaves = [each.detach().clone().requires_grad_() for each in given]
    y = layer(*leaves)
    wanted = [*leaves, *(p for p in layer.parameters() if p.requires_grad)]
    found = torch.autograd.grad(y, wanted, numbers(*y.shape, seed=3).to(y.dtype))
    return [y.detach(), *found, *(each.clone() for each in layer.buffers())]


def agree(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_second_call_is_the_first_again(monkeypatch, started, arguments, training, dtype):
    made = bt.BatchNorm2d(6, **arguments).train(training)
    made = made.double() if dtype is torch.float64 else made
    other = copy.deepcopy(made)
    for seed in range(3):
        x = numbers(4, 6, 5, 7, seed=seed).to(dtype)
        found = run(made, x)
        with monkeypatch.context() as patch:
            patch.setattr(quick, "call", lambda layer, x, residual: layer._normalize(x, None, residual))
            agree(found, run(other, x))
    moving = training and arguments.get("track_running_stats", True)
    long_way = moving and ("momentum" in arguments or "statistics" in arguments)
    assert len(started) == (0 if long_way else 2)


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
def test_with_residual_and_activation(monkeypatch, started, activation):
    made = bt.BatchNormAct2d(6, activation=activation)
    other = copy.deepcopy(made)
    for seed in range(3):
        x, residual = numbers(4, 6, 5, 7, seed=seed), numbers(4, 6, 5, 7, seed=seed + 9)
        found = run(made, x, residual)
        with monkeypatch.context() as patch:
            patch.setattr(quick, "call", lambda layer, x, residual: layer._normalize(x, None, residual))
            agree(found, run(other, x, residual))
    assert len(started) == (0 if activation == "gelu" else 2)
    before = len(started)
    with pytest.raises(ValueError, match="residual must have the shape"):
        made(x, residual[:, :, :1])
    y = made(x, residual.contiguous(memory_format=torch.channels_last))
    assert len(started) == before
    torch.testing.assert_close(y, made(x, residual), rtol=0, atol=1e-5)


def every_second():
    """A number for each of 6 channels, which do not lie next to each other."""
    return torch.arange(1.0, 13.0).reshape(6, 2)[:, 0]


CHANGES = {
    "eps": lambda layer: setattr(layer, "eps", 0.5),
    "momentum": lambda layer: setattr(layer, "momentum", 0.7),
    "weight": lambda layer: setattr(layer, "weight", torch.nn.Parameter(torch.full((6,), 3.0))),
    "no weight": lambda layer: layer.register_parameter("weight", None),
    "weight's data": lambda layer: setattr(layer.weight, "data", torch.full((6,), 3.0)),
    "a view as the weight's data": lambda layer: setattr(layer.weight, "data", every_second()),
    "mean": lambda layer: setattr(layer, "running_mean", torch.full((6,), 3.0)),
    "mean's data": lambda layer: setattr(layer.running_mean, "data", torch.full((6,), 3.0)),
    "a view as the mean's data": lambda layer: setattr(layer.running_mean, "data", every_second()),
    "a view as the variance's data": lambda layer: setattr(layer.running_var, "data", every_second()),
    "a view as the data of what is skipped": lambda layer: setattr(
        layer.skipped_updates, "data", torch.zeros((6, 2), dtype=torch.int64)[:, 0]
    ),
    "shared memory": lambda layer: [each.share_memory_() for each in layer.state_dict().values()],
    "the counter's data": lambda layer: setattr(layer.num_batches_tracked, "data", torch.tensor(7)),
    "no counter": lambda layer: setattr(layer, "num_batches_tracked", None),
    "eval": lambda layer: layer.eval(),
    "frozen": lambda layer: layer.freeze(),
    "track_running_stats": lambda layer: setattr(layer, "track_running_stats", False),
    "double": lambda layer: layer.double().float(),
    "in parts": lambda layer: setattr(layer, "virtual_batch_size", 2),
    "parametrized": lambda layer: torch.nn.utils.parametrize.register_parametrization(
        layer, "weight", torch.nn.Softplus()
    ),
    "pruned": lambda layer: prune.l1_unstructured(layer, "bias", 2),
    "loaded": lambda layer: layer.load_state_dict({name: value * 2 + 1 for name, value in layer.state_dict().items()}),
    "assigned": lambda layer: layer.load_state_dict(
        {name: value * 2 + 1 for name, value in layer.state_dict().items()}, assign=True
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_nothing_of_what_has_changed_is_remembered(name, training):
    made, fresh = bt.BatchNorm1d(6).train(training), bt.BatchNorm1d(6).train(training)
    x = numbers(8, 6, 9)
    for layer in (made, fresh):
        torch.manual_seed(1)
        torch.nn.init.normal_(layer.bias)
    for _ in range(3):
        run(made, x)
    fresh.load_state_dict({name: value.clone() for name, value in made.state_dict().items()})
    for layer in (made, fresh):
        CHANGES[name](layer)
    for _ in range(2):
        agree(run(made, x), run(fresh, x))


def test_statistics_that_are_trained_get_their_gradients():
    made, x = bt.BatchNorm1d(6, affine=False).eval(), numbers(8, 6)
    for _ in range(2):
        made(x)
    statistics = made.running_mean.requires_grad_(), made.running_var.requires_grad_()
    theirs = torch.nn.functional.batch_norm(x.double(), *(each.detach().double() for each in statistics))
    for _ in range(3):
        y = made(x)
        torch.testing.assert_close(y.double(), theirs, rtol=1e-6, atol=1e-6)
        of_mean, of_variance = torch.autograd.grad(y.sum(), statistics)
        # At mean 0, variance 1 the derivatives are -1 and -x/2 a sample, over the root of 1 + epsilon, or its cube.
        torch.testing.assert_close(of_mean, torch.full((6,), -8 / (1 + 1e-5) ** 0.5))
        torch.testing.assert_close(of_variance, x.sum(0) / -2 / (1 + 1e-5) ** 1.5, rtol=1e-5, atol=1e-5)
    for each in statistics:
        each.requires_grad_(False)
    assert not made(x).requires_grad


def test_a_layer_made_of_another_remembers_nothing_of_it():
    made, x = bt.BatchNormAct1d(6), numbers(8, 6)
    for _ in range(2):
        made(x)
    assert made.__dict__["_known"]
    assert not bt.SyncBatchNorm.convert_sync_batchnorm(made).__dict__.get("_known")


def test_errors_are_those_of_the_first_call():
    made = bt.BatchNorm1d(6)
    for _ in range(2):
        made(numbers(8, 6))
    refused = (
        (numbers(8, 5), "num_features=6"),
        (numbers(8, 6, 2, 2), "2D or 3D"),
        (numbers(1, 6), "more than 1"),
        (torch.ones(8, 6, dtype=torch.int64), "floating"),
    )
    for wrong, message in refused:
        with pytest.raises((ValueError, TypeError), match=message):
            made(wrong)


def test_what_is_no_memory_goes_the_long_way(started):
    made = bt.BatchNorm1d(6).eval()
    x = numbers(4, 6)
    for _ in range(2):
        wanted = made(x)
    assert len(started) == 1
    left = []
    torch.func.grad(lambda x: (left.append(x * 1), x.sum())[1])(x)
    negative = torch.complex(x, -x).conj().imag
    assert negative.is_neg()
    for given in (left[0], negative, torch.nn.Parameter(x)):
        torch.testing.assert_close(made(given), wanted)
    zeros = torch._efficientzerotensor((4, 6))
    torch.testing.assert_close(made(zeros), made(torch.zeros(4, 6)))
    assert len(started) == 3  # the parameter, and the zeros with memory


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_is_not_where_a_cpu_tensor_goes(device):
    made, x = bt.BatchNorm1d(6), numbers(8, 6).requires_grad_()
    masked = torch.ones(8, dtype=torch.bool)
    wanted, grad = run(copy.deepcopy(made), x), numbers(8, 6, seed=3)
    with torch.device(device):
        for given in ((x,), (x, masked), (x,)):
            other = copy.deepcopy(made)
            y = other(*given)
            y.backward(grad)
            torch.testing.assert_close([y.detach(), x.grad], wanted[:2])
            x.grad = None


def test_copies_and_pickles_remember_nothing(started):
    made, x = bt.BatchNorm1d(6), numbers(8, 6)
    made(x), made(x)
    assert made.__dict__["_known"]
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    copies = copy.deepcopy(made), pickle.loads(pickle.dumps(made)), torch.load(file, weights_only=False)
    assert not any(each.__dict__["_known"] for each in copies)
    assert len(pickle.dumps(made)) == len(pickle.dumps(copies[0]))
    wanted = made(x)
    for each in copies:
        assert torch.equal(each(x), wanted)
        assert torch.equal(each(x), wanted)


def test_many_kinds_of_calls_are_not_all_kept():
    made = bt.BatchNorm1d(6)
    for size in range(2, 2 * quick.MOST):
        made(numbers(size, 6))
    assert len(made.__dict__["_known"]) <= quick.MOST


def test_saved_tensors_that_come_back_otherwise():
    made = bt.BatchNorm2d(6)
    x = numbers(4, 6, 5, 7).requires_grad_()
    wanted = run(copy.deepcopy(made), x)[1]
    for unpack in (lambda t: t.clone(), lambda t: t.clone(memory_format=torch.channels_last) if t.dim() == 4 else t):
        for _ in range(2):
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
                y = made(x)
            (found,) = torch.autograd.grad(y, x, numbers(4, 6, 5, 7, seed=3))
            # Another memory order adds in another order, or is composed in float32: a few roundings of the largest.
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * wanted.abs().max().item())


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_saved_tensors_that_come_back_in_another_type(in_subprocess, adds, masked):
    # Read by the kernel as float32 they would end in the middle: a subprocess, for memory may be written over.
    code = f"""
import torch, batchnorm.torch as bt
torch.manual_seed(0)
x, made = torch.randn(64, 16, 9).requires_grad_(), bt.BatchNormAct1d(16)
given = (x, torch.randn(64, 16, 9)) if {adds} else (x,)
named = {{"mask": torch.rand(64, 9) < 0.8}} if {masked} else {{}}
wanted, = torch.autograd.grad(made(*given, **named).pow(2).sum(), x)
def narrow(t):
    return t if t.dtype == torch.bool else t.bfloat16()
for unpack in (torch.Tensor.bfloat16, torch.Tensor.float):
    for _ in range(3):
        with torch.autograd.graph.saved_tensors_hooks(narrow, lambda t: t if t.dtype == torch.bool else unpack(t)):
            y = made(*given, **named)
            total = y.pow(2).sum()
        found, = torch.autograd.grad(total, x)
        print(((found - wanted).norm() / wanted.norm()).item() < 0.05)
"""
    assert in_subprocess(code).split() == ["True"] * 6


def test_saved_parameters_that_come_back_otherwise(in_subprocess):
    # Their own types and views, where x is as it was: a subprocess, for the kernel would read and write beyond an end.
    code = """
import torch, batchnorm.torch as bt
torch.manual_seed(0)
x = torch.randn(64, 16, 9).requires_grad_()
ways = torch.Tensor.bfloat16, torch.Tensor.double, lambda t: torch.stack([t, t * 0], 1)[:, 0]
for activation in (None, "silu"):
    made = bt.BatchNormAct1d(16, activation=activation)
    for each in made.parameters():
        torch.nn.init.normal_(each)
    wanted, = torch.autograd.grad(made(x).pow(2).sum(), x)
    for way in ways:
        for _ in range(2):
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: way(t) if t.dim() == 1 else t):
                y = made(x)
                total = y.pow(2).sum()
            found, *_ = torch.autograd.grad(total, [x, *made.parameters()])
            print(((found - wanted).norm() / wanted.norm()).item() < 0.05)
"""
    assert in_subprocess(code).split() == ["True"] * 12


@pytest.mark.parametrize("masked", [False, True])
def test_a_saved_input_that_comes_back_in_another_type_of_as_many_bytes(masked):
    made, x = bt.BatchNorm1d(16), numbers(64, 16, 9).bfloat16().requires_grad_()
    more = (torch.ones(64, 9, dtype=torch.bool),) if masked else ()
    (wanted,) = torch.autograd.grad(made(x, *more).float().pow(3).sum(), x)
    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.half() if t.dtype is x.dtype else t):
            y = made(x, *more)
        (found,) = torch.autograd.grad(y.float().pow(3).sum(), x)
        # x has 8 bits: its float16 is the same number, and the gradient its own rounding away, twice.
        assert (found.float() - wanted.float()).norm() < 2 * 2**-8 * wanted.float().norm()


def test_parameters_that_are_not_trained_get_no_gradient(started):
    made, x = bt.BatchNorm1d(6), numbers(8, 6)
    made.weight.requires_grad_(False)
    for _ in range(2):
        made(x.clone().requires_grad_()).sum().backward()
        assert made.weight.grad is None
        assert made.bias.grad is not None
    assert started


def test_a_second_derivative(started):
    made = bt.BatchNormAct1d(3, activation="silu").double()
    x = numbers(5, 3).double().requires_grad_()
    made(x)
    assert torch.autograd.gradgradcheck(made, (x,))
    assert started


def test_once_under_checkpointing(started):
    made, x = bt.BatchNorm1d(6), numbers(8, 6).requires_grad_()
    for reentrant in (True, False):
        for _ in range(3):
            torch.utils.checkpoint.checkpoint(made, x, use_reentrant=reentrant).sum().backward()
    assert made.num_batches_tracked == 6
    assert len(started) >= 6


def test_a_child_after_a_fork_goes_on_alone(in_subprocess):
    code = """
import os, torch, batchnorm.torch as bt
from batchnorm.kernels import launch
torch.set_num_threads(2); launch.set_threads(2)
layer, x = bt.BatchNorm2d(64), torch.randn(4, 64, 40, 40)
with torch.no_grad():
    wanted = [layer(x) for _ in range(3)][-1]
    if not (child := os.fork()):
        # Not torch.equal: torch's own loops ask OpenMP in a child.
        os._exit(0 if layer(x).numpy().tobytes() == wanted.numpy().tobytes() else 1)
print(os.waitpid(child, 0)[1])
"""
    assert in_subprocess(code, environment={"OMP_NUM_THREADS": "2"}).strip() == "0"


def test_code_from_the_cache_finds_threads_to_run_on(in_subprocess, tmp_path):
    """Numba starts its threads where a loop is compiled, or loaded by itself; not for who calls one that was loaded."""
    threads = "import numpy, batchnorm as bn; bn.moments(numpy.ones((4, 64, 40, 40), 'f'), axis=1)"
    layer = """
import torch, batchnorm.torch as bt
from batchnorm.kernels import launch
torch.set_num_threads(2)
launch.set_threads(2)
with torch.no_grad():
    bt.BatchNorm2d(64)(torch.ones(4, 64, 40, 40))
"""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    for code in (threads, layer, layer):  # compiles the loop; what calls it; neither
        in_subprocess(code, environment=cache)


def test_a_graph_keeps_its_statistics_whatever_is_called_after():
    made, fresh = bt.BatchNorm1d(6).double(), bt.BatchNorm1d(6).double()
    inputs = [numbers(8, 6, seed=seed).double().requires_grad_() for seed in range(4)]
    made(inputs[3])
    outputs = [made(x) for x in inputs]  # all graphs at once: only one of them has the memory that is used again
    for x, y in zip(inputs, outputs, strict=True):
        grad = numbers(8, 6, seed=9).double()
        agree(torch.autograd.grad(y, x, grad), torch.autograd.grad(fresh(x), x, grad))
    del outputs, y

    def second(layer, x, then):
        (once,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        then()
        return torch.autograd.grad(once.pow(2).sum(), x)

    x = inputs[0]
    agree(second(made, x, lambda: made(inputs[1])), second(bt.BatchNorm1d(6).double(), x, lambda: None))


def test_threads_that_share_a_layer_share_no_memory():
    made = bt.BatchNorm1d(6, track_running_stats=False)
    inputs = [numbers(64, 6, seed=seed) * (seed + 1) for seed in range(4)]
    wanted = [made(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: all(torch.equal(made(inputs[k]), wanted[k]) for _ in range(300)), range(4)))
    assert found == [True] * 4


def test_memory_is_used_again_once_nobody_holds_it(monkeypatch):
    made, x, extra = bt.BatchNorm1d(6), numbers(8, 6).requires_grad_(), []
    monkeypatch.setattr(quick, "room", lambda words, room=quick.room: extra.append(words) or room(words))
    for _ in range(4):
        made(x).sum().backward()
    assert len(extra) == 1
    held = made(x)
    made(x)
    assert len(extra) == 2
    del held
    made(x)
    assert len(extra) == 2
