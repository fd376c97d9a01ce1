"""Tensors that are not on the CPU: never for its kernels, and on a GPU the numbers of the CPU in float64.

What needs a GPU is skipped without one; what needs two, for NCCL takes no two processes on one, without two.
"""

import copy

import pytest
import torch
import torch.distributed as dist

import batchnorm.torch as bt
from batchnorm.layers.torch import fast, masked, run, sync

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
DEVICES = ["meta", pytest.param("cuda", marks=gpu)]
# Of the largest value: sums of 252 numbers in another order, or a rounding of 16-bit numbers, of inputs too.
BOUNDS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def layer(**keywords):
    made = bt.BatchNormAct2d(6, **keywords)
    for seed, parameter in enumerate(made.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    made.running_mean.copy_(numbers(6, seed=5))
    made.running_var.copy_(numbers(6, seed=6).abs() + 0.5)
    return made


def step(made, given, grad, **named):
    """Output, gradients, statistics."""
    leaves = [each.detach().requires_grad_() for each in given]
    y = made(*leaves, **named)
    found = torch.autograd.grad(y, [*leaves, *made.parameters()], grad)
    return [y.detach(), *found, made.running_mean.clone(), made.running_var.clone()]


def assert_near(found, exact, dtype):
    for one, other in zip(found, exact, strict=True):
        assert ((one.cpu().double() - other).abs().max() / other.abs().max()).item() <= BOUNDS[dtype]


@pytest.mark.parametrize("device", DEVICES)
def test_the_kernels_of_the_cpu_are_not_asked(monkeypatch, device):
    def refuse(*_given, **_named):
        pytest.fail(f"a kernel of the CPU was called for tensors on {device}")

    for module in (run, masked.cpu):
        for name in ("forward", "backward"):
            monkeypatch.setattr(module, name, refuse)
    made, mask = layer().to(device), torch.ones(4, 9, 7, dtype=torch.bool, device=device)
    x, residual = (torch.ones(4, 6, 9, 7, device=device, requires_grad=True) for _ in range(2))
    for training in (True, False):
        made.train(training)
        for _ in range(2):
            for named in ({}, {"residual": residual}, {"mask": mask}):
                y = made(x, **named)
                assert (y.device.type, y.shape) == (device, x.shape)
                y.sum().backward()
    assert x.grad.device.type == device


@gpu
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_a_gpu_says_what_the_cpu_says_in_float64(dtype, order, adds, training):
    x, residual, grad = (
        numbers(4, 6, 9, 7, seed=seed).to(dtype).contiguous(memory_format=LAYOUTS[order]) for seed in range(3)
    )
    given = [x, residual] if adds else [x]
    made = layer(activation="silu").train(training)
    exact = step(copy.deepcopy(made).double(), [each.double() for each in given], grad.double())
    made = (made.double() if dtype is torch.float64 else made).cuda()
    found = step(made, [each.cuda() for each in given], grad.cuda())
    assert found[0].dtype == dtype
    assert found[0].stride() == x.stride()
    assert_near(found, exact, dtype)


@gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_16_bit_module_on_a_gpu_keeps_float32_statistics(dtype):
    made, x = bt.BatchNorm2d(6, momentum=1.0).to("cuda", dtype), numbers(4, 6, 9, 7).to(dtype)
    y = made(x.cuda())
    assert (y.dtype, made.running_mean.dtype) == (dtype, torch.float32)
    assert_near([made.running_mean], [x.double().mean((0, 2, 3))], torch.float32)


@gpu
@pytest.mark.parametrize("named", [{}, {"mask": torch.arange(252).reshape(4, 9, 7) % 3 != 0}], ids=["whole", "masked"])
def test_a_layer_goes_to_the_gpu_and_back_between_calls(named):
    made, exact, grad = layer(), layer().double(), numbers(4, 6, 9, 7, seed=3)
    for seed, device in enumerate(("cpu", "cpu", "cuda", "cuda", "cpu", "cpu")):
        x, made = numbers(4, 6, 9, 7, seed=seed), made.to(device)
        found = step(made, [x.to(device)], grad.to(device), **{k: v.to(device) for k, v in named.items()})
        assert found[0].device.type == device
        assert_near(found, step(exact, [x.double()], grad.double(), **named), torch.float32)
    assert made.num_batches_tracked == 6


@gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_autocast_and_compilation_on_a_gpu():
    made, x = bt.BatchNorm2d(6).cuda(), numbers(4, 6, 9, 7).cuda()
    theirs = torch.nn.BatchNorm2d(6).cuda()
    for given in (x, x.half()):
        with torch.autocast("cuda"):
            assert made(given).dtype == theirs(given).dtype
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    assert_near([compiled(x)], [made(x).cpu().double()], torch.float32)


SIZES = (3, 5)


def on_rank(rank, folder, backend, device):
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(SIZES))
    results = []
    for dtype in BOUNDS:
        x, grad = (numbers(8, 6, 9, 7, seed=seed).to(dtype).split(SIZES)[rank].to(device) for seed in (0, 1))
        made = bt.SyncBatchNorm(6, dtype=torch.float64 if dtype is torch.float64 else None).to(device)
        results.append([each.cpu() for each in step(made, [x], grad)])
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "device"),
    [
        ("gloo", "cpu"),
        pytest.param(
            *("nccl", "cuda"),
            marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for each process"),
        ),
    ],
)
def test_two_processes_are_one_batch(tmp_path, backend, device):
    torch.multiprocessing.spawn(on_rank, (str(tmp_path), backend, device), nprocs=len(SIZES))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(SIZES))]
    for case, dtype in enumerate(BOUNDS):
        x, grad = (numbers(8, 6, 9, 7, seed=seed).to(dtype).double() for seed in (0, 1))
        exact = step(bt.BatchNorm2d(6).double(), [x], grad)
        y, dx, dgamma, dbeta, mean, variance = zip(*(rank[case] for rank in ranks), strict=True)
        assert_near([torch.cat(y), torch.cat(dx), sum(dgamma), sum(dbeta), mean[1], variance[1]], exact, dtype)
        assert torch.equal(mean[0], mean[1])


@gpu
def test_nccl_alone(monkeypatch, tmp_path):
    # One process on one GPU is what most machines can do: the same collectives, of one part.
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        monkeypatch.setattr(sync, "active_group", lambda group: dist.group.WORLD)
        for dtype in BOUNDS:
            x, grad = (numbers(4, 6, 9, 7, seed=seed).to(dtype) for seed in (0, 1))
            made = bt.SyncBatchNorm(6, dtype=torch.float64 if dtype is torch.float64 else None).cuda()
            exact = step(bt.BatchNorm2d(6).double(), [x.double()], grad.double())
            assert_near(step(made, [x.cuda()], grad.cuda()), exact, dtype)
    finally:
        dist.destroy_process_group()


def test_without_the_extra_nothing_is_different_on_another_device(monkeypatch):
    monkeypatch.setattr(fast, "ENABLED", False)
    y = bt.BatchNorm2d(6).to("meta")(torch.empty(4, 6, 9, 7, device="meta"))
    assert y.shape == (4, 6, 9, 7)
