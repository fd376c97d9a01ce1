"""SyncBatchNorm over gloo processes equals one process on the joined batch: forward, gradients, statistics.

Four processes are started once; each runs every scenario and saves what it got.
"""

import pytest
import torch
import torch.distributed as dist

import batchnorm.torch as bt

SIZES = {"unequal": (5, 1, 3, 2), "empty": (4, 0, 3, 0), "groups": (3, 2, 0, 4), "single": (1, 1, 1, 1)}
EVEN = (2, 2, 2, 2)
WORLD, CHANNELS = 4, 3
GROUPS = ([0, 1], [2, 3])


def joined(sizes, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), CHANNELS, 5, generator=generator) * 2 + offset
    return x, torch.randn(x.shape, generator=generator), torch.rand(sum(sizes), 5, generator=generator) < 0.7


def share(tensor, sizes, ranks):
    first = sum(sizes[: ranks[0]])
    return tensor[first : first + sum(sizes[rank] for rank in ranks)]


def layer_of(make, activation=False, **keywords):
    layer = make(CHANNELS, **({"activation": "silu"} if activation else {}), **keywords)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
    return layer


def scenarios():
    """Name: sizes, layer settings, mask or not, residual or not, offset of the mean, dtype."""
    return {
        "unequal": ("unequal", {}, False, False, 0.0, torch.float32),
        "empty": ("empty", {}, False, False, 0.0, torch.float32),
        "single": ("single", {}, False, False, 0.0, torch.float32),
        "masked": ("empty", {"statistics": "debiased"}, True, False, 0.0, torch.float32),
        "activated": ("unequal", {"activation": True}, True, True, 0.0, torch.float32),
        "large mean": ("unequal", {}, False, False, 1e4, torch.float32),
        "float16": ("empty", {"momentum": None}, False, False, 0.0, torch.float16),
        "bfloat16": ("unequal", {}, True, False, 0.0, torch.bfloat16),
        "groups": ("groups", {}, False, False, 0.0, torch.float32),
    }


def run(layer, x, grad, mask, residual):
    x = x.clone().requires_grad_()
    added = (residual,) if residual is not None else ()
    for _ in range(2):
        y = layer(x, *added, mask=mask)
    y.backward(grad)
    return {
        "y": y.detach(),
        "x": x.grad,
        "gamma": layer.weight.grad,
        "beta": layer.bias.grad,
        "mean": layer.running_mean,
        "variance": layer.running_var,
        "tracked": layer.num_batches_tracked,
    }


def scenario(name, ranks, group=None, synchronised=True):
    sizes_name, settings, masked, with_residual, offset, dtype = scenarios()[name]
    sizes = SIZES[sizes_name]
    activation = settings.get("activation", False)
    x, grad, mask = (share(each, sizes, ranks) for each in joined(sizes, offset=offset))
    if synchronised:
        layer = layer_of(bt.SyncBatchNormAct if activation else bt.SyncBatchNorm, process_group=group, **settings)
    else:
        layer = layer_of(bt.BatchNormAct1d if activation else bt.BatchNorm1d, **settings)
    x, grad = x.to(dtype), grad.to(dtype)
    return run(layer, x, grad, mask if masked else None, x * 0.5 if with_residual else None)


def second_derivative(layer, x, mask):
    x = x.double().requires_grad_()
    (dx,) = torch.autograd.grad(layer.double()(x, mask=mask).pow(3).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.pow(2).sum(), x)
    return {"ddx": ddx}


def skips(layer, x):
    layer(x)
    return {"mean": layer.running_mean, "skipped": layer.skipped_updates}


def with_bad(x):
    x = x.clone()
    x[0, 1, 0] = torch.nan
    return x


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv1d(CHANNELS, CHANNELS, 1), torch.nn.BatchNorm1d(CHANNELS))


def data_parallel(x, joined_size):
    """DDP's gradients of the joined batch's mean loss: DDP averages over processes, so each scales by their number."""
    model = bt.SyncBatchNorm.convert_sync_batchnorm(network())
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    (parallel(x).pow(3).sum() / joined_size * WORLD).backward()
    return {name: value.grad for name, value in model.named_parameters()}


def compiled(x):
    torch.compiler.reset()
    layer = bt.SyncBatchNorm(CHANNELS)
    x = x.clone().requires_grad_()
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    y.pow(3).sum().backward()
    return {"y": y.detach(), "x": x.grad, "mean": layer.running_mean}


def converted_after_calls(x):
    """As a model is converted that has run before: what the plain layer remembers of its calls is not for this one."""
    layer = bt.BatchNorm1d(CHANNELS)
    for _ in range(3):
        layer(x)
    layer.reset_running_stats()
    layer = bt.SyncBatchNorm.convert_sync_batchnorm(layer)
    x = x.clone().requires_grad_()
    for _ in range(2):
        y = layer(x)
    y.pow(3).sum().backward()
    return {"y": y.detach(), "x": x.grad, "mean": layer.running_mean}


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    groups = [dist.new_group(ranks) for ranks in GROUPS]
    results = {}
    for name in scenarios():
        results[name] = scenario(name, [rank], groups[rank // 2] if name == "groups" else None)
    sizes = SIZES["empty"]
    x, _, mask = (share(each, sizes, [rank]) for each in joined(sizes))
    results["second"] = second_derivative(bt.SyncBatchNorm(CHANNELS), x, mask)
    bad, _, _ = joined(sizes)
    results["guard"] = skips(bt.SyncBatchNorm(CHANNELS), share(with_bad(bad), sizes, [rank]))
    frozen = bt.freeze(bt.SyncBatchNorm(CHANNELS)).train()
    results["frozen"] = {"y": frozen(x)} if rank == 0 else {}  # no communication: the other processes need not come
    x, _, _ = (share(each, SIZES["unequal"], [rank]) for each in joined(SIZES["unequal"]))
    results["parallel"] = data_parallel(x, sum(SIZES["unequal"]))
    results["compiled"] = compiled(x)
    x, _, _ = (share(each, EVEN, [rank]) for each in joined(EVEN))
    results["converted"] = converted_after_calls(x)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def assert_equal_to_whole(parts, whole, tolerance):
    for key in ("y", "x"):
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), whole[key], **tolerance)
    for key in ("gamma", "beta"):  # each process has its own share, as DistributedDataParallel expects
        torch.testing.assert_close(sum(part[key] for part in parts), whole[key], **tolerance)
    for part in parts:
        for key in ("mean", "variance", "tracked"):
            torch.testing.assert_close(part[key], whole[key], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in scenarios() if name != "groups"])
def test_processes_equal_one_process_on_the_joined_batch(ranks, name):
    whole = scenario(name, range(WORLD), synchronised=False)
    dtype = scenarios()[name][-1]
    # float32: 1e-6 of numbers up to about 10. Half precision: one rounding either way.
    scale = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6
    assert_equal_to_whole([rank[name] for rank in ranks], whole, {"rtol": scale, "atol": 10 * scale})


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_a_process_group_synchronises_only_its_own(ranks, group):
    whole = scenario("groups", group, synchronised=False)
    assert_equal_to_whole([ranks[rank]["groups"] for rank in group], whole, {"rtol": 1e-6, "atol": 1e-5})


@pytest.mark.slow
def test_double_backward_goes_through_the_other_processes(ranks):
    x, _, mask = joined(SIZES["empty"])
    whole = second_derivative(bt.BatchNorm1d(CHANNELS), x, mask)["ddx"]
    torch.testing.assert_close(torch.cat([rank["second"]["ddx"] for rank in ranks]), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_data_parallel_training_takes_it_on_cpu_and_gets_the_gradients_of_the_joined_batch(ranks):
    x, _, _ = joined(SIZES["unequal"])
    model = network()
    (model(x).pow(3).sum() / len(x)).backward()
    for rank in ranks:
        for name, value in model.named_parameters():
            # The convolution's bias has the gradient 0, up to the rounding of 55 numbers of about 10.
            torch.testing.assert_close(rank["parallel"][name], value.grad, rtol=1e-5, atol=550 * 2**-24)


@pytest.mark.slow
def test_compiled_without_graph_breaks_it_still_communicates(ranks):
    x, _, _ = joined(SIZES["unequal"])
    layer, leaf = bt.BatchNorm1d(CHANNELS), x.clone().requires_grad_()
    y = layer(leaf)
    y.pow(3).sum().backward()
    torch.testing.assert_close(torch.cat([rank["compiled"]["y"] for rank in ranks]), y.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat([rank["compiled"]["x"] for rank in ranks]), leaf.grad, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(ranks[1]["compiled"]["mean"], layer.running_mean)


@pytest.mark.slow
def test_a_layer_that_is_converted_after_calls_communicates(ranks):
    x, _, _ = joined(EVEN)
    layer, leaf = bt.BatchNorm1d(CHANNELS), x.clone().requires_grad_()
    for _ in range(2):
        y = layer(leaf)
    y.pow(3).sum().backward()
    torch.testing.assert_close(torch.cat([rank["converted"]["y"] for rank in ranks]), y.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(torch.cat([rank["converted"]["x"] for rank in ranks]), leaf.grad, rtol=1e-6, atol=1e-5)
    for rank in ranks:
        torch.testing.assert_close(rank["converted"]["mean"], layer.running_mean, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_nan_on_one_process_is_skipped_on_all(ranks):
    x, _, _ = joined(SIZES["empty"])
    whole = skips(bt.BatchNorm1d(CHANNELS), with_bad(x))
    for rank in ranks:
        assert rank["guard"]["skipped"].tolist() == [0, 1, 0]
        torch.testing.assert_close(rank["guard"]["mean"], whole["mean"])


@pytest.mark.slow
def test_a_frozen_layer_does_not_communicate(ranks):
    x, _, _ = joined(SIZES["empty"])
    torch.testing.assert_close(ranks[0]["frozen"]["y"], x[:4] / (1 + 1e-5) ** 0.5)


def test_alone_it_is_the_ordinary_layer_and_conversion_keeps_everything():
    model = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3, momentum=None), bt.BatchNorm2d(3, statistics="debiased"), bt.BatchNormAct2d(3)
    )
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    model(x)
    parameters, state = list(model.parameters()), {name: value.clone() for name, value in model.state_dict().items()}
    expected = model.eval()(x)
    converted = bt.SyncBatchNorm.convert_sync_batchnorm(model.train())
    assert [type(layer) for layer in converted] == [bt.SyncBatchNorm, bt.SyncBatchNorm, bt.SyncBatchNormAct]
    assert isinstance(converted[0], torch.nn.modules.batchnorm._BatchNorm)
    assert all(one is other for one, other in zip(converted.parameters(), parameters, strict=True))
    torch.testing.assert_close(dict(converted.state_dict()), state, rtol=0, atol=0)
    torch.testing.assert_close(converted.eval()(x), expected)
    assert (converted[1].statistics, converted[2].activation) == ("debiased", "relu")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        converted.train()(x[:1, :, :1, :1])
    with pytest.raises(ValueError, match="virtual_batch_size splits a batch"):
        bt.SyncBatchNorm.convert_sync_batchnorm(bt.BatchNorm1d(3, virtual_batch_size=2))
