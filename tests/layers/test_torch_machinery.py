"""torch's machinery around a layer keeps working: state dicts, dtypes, torch.func, compile, export, fusing, SWA."""

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as bt

PAIRS = [(getattr(bt, name), getattr(torch.nn, name)) for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")]
SHAPES = {"BatchNorm1d": (5, 3, 4), "BatchNorm2d": (5, 3, 4, 4), "BatchNorm3d": (5, 3, 2, 3, 4)}
MODES = [{}, {"statistics": "debiased"}, {"momentum": None}, {"guard": False}, {"virtual_batch_size": 2}]
# torch.compile instantiates the autograd.Function it is given, which torch itself deprecates.
COMPILES = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def batch(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def trained(layer, shape=(5, 3, 4, 4)):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(7))
    for seed in range(3):
        layer(batch(*shape, seed=seed))
    return layer


def assert_same(one, other):
    torch.testing.assert_close(dict(one), dict(other), rtol=0, atol=0)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_state_dicts_load_both_ways_and_the_layer_is_torchs(ours, theirs):
    shape = SHAPES[theirs.__name__]
    peer, layer, back = trained(theirs(3), shape), ours(3), theirs(3)
    assert isinstance(layer, theirs)
    assert layer.load_state_dict(peer.state_dict()) == back.load_state_dict(layer.state_dict())
    assert_same(back.state_dict(), peer.state_dict())
    x = batch(*shape, seed=9)
    torch.testing.assert_close(layer.eval()(x), peer.eval()(x))


def test_debiased_layers_take_foreign_statistics_as_they_are_and_fresh_ones_as_fresh():
    peer = trained(torch.nn.BatchNorm2d(3))
    layer = bt.BatchNorm2d(3, statistics="debiased")
    layer.load_state_dict(peer.state_dict())
    assert layer.remaining.tolist() == [0.0] * 3
    x = batch(5, 3, 4, 4, seed=9)
    torch.testing.assert_close(layer.eval()(x), peer.eval()(x))
    layer.load_state_dict(torch.nn.BatchNorm2d(3).state_dict())
    assert layer.remaining.tolist() == [1.0] * 3
    ours = trained(bt.BatchNorm2d(3, statistics="debiased"))
    layer.load_state_dict(ours.state_dict())
    assert_same(layer.state_dict(), ours.state_dict())
    back = torch.nn.BatchNorm2d(3)
    assert back.load_state_dict(ours.state_dict(), strict=False).unexpected_keys == ["remaining"]
    torch.testing.assert_close(back.eval()(x), ours.eval()(x))


def test_loading_forgets_what_the_guard_skipped_before():
    layer = bt.BatchNorm1d(2, momentum=None)
    layer(torch.full((3, 2), torch.nan))
    layer.load_state_dict(torch.nn.BatchNorm1d(2).state_dict())
    assert layer.skipped_updates.tolist() == [0, 0]
    layer(torch.full((3, 2), torch.nan))
    layer.reset_running_stats()
    assert layer.skipped_updates.tolist() == [0, 0]


@pytest.mark.parametrize("arguments", MODES, ids=str)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_deepcopy_and_pickle_go_on_like_the_original(arguments, copied):
    layer = trained(bt.BatchNorm2d(3, **arguments))
    twin, x = copied(layer), batch(4, 3, 2, 2)
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    assert_same(twin.named_buffers(), layer.named_buffers())
    assert repr(twin) == repr(layer)


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to("cpu", torch.float16)])
def test_16_bit_modules_keep_every_bit_of_their_statistics(cast):
    layer = trained(bt.BatchNorm2d(3, statistics="debiased"))
    before = {name: value.clone() for name, value in layer.named_buffers()}
    cast(layer)
    assert layer.weight.dtype in (torch.float16, torch.bfloat16)
    assert_same(layer.named_buffers(), before)
    fresh = cast(bt.BatchNorm2d(3, statistics="debiased"))
    fresh.load_state_dict(layer.state_dict())
    fresh.load_state_dict(cast(torch.nn.BatchNorm2d(3)).state_dict(), assign=True)
    assert fresh.running_var.dtype == torch.float32
    assert bt.BatchNorm1d(3, dtype=torch.bfloat16).running_mean.dtype == torch.float32
    assert layer.double().running_mean.dtype == torch.float64


def test_16_bit_output_and_gradients_keep_their_dtypes():
    layer, x = bt.BatchNormAct2d(3).half(), batch(5, 3, 4, 4).half().requires_grad_()
    y = layer(x, x)
    y.sum().backward()
    assert {y.dtype, x.grad.dtype, layer.weight.grad.dtype} == {torch.float16}


def test_meta_layers_materialise():
    layer = bt.BatchNorm2d(3, device="meta", statistics="debiased").to_empty(device="cpu")
    layer.reset_parameters()
    assert_same(layer.named_buffers(), bt.BatchNorm2d(3, statistics="debiased").named_buffers())


def test_a_torch_state_dict_assigned_to_a_meta_layer_leaves_nothing_on_meta():
    layer, peer = bt.BatchNorm2d(3, device="meta", statistics="debiased"), trained(torch.nn.BatchNorm2d(3))
    layer.load_state_dict(peer.state_dict(), assign=True)
    assert not any(value.is_meta for value in layer.buffers())
    x = batch(4, 3, 2, 2)
    torch.testing.assert_close(layer.eval()(x), peer.eval()(x))
    layer.train()(x)
    assert layer.num_batches_tracked == 4


def test_float64_statistics_of_float32_batches_stay_float64():
    layer = bt.BatchNorm1d(2)
    layer.running_mean, layer.running_var = layer.running_mean.double(), layer.running_var.double()
    layer.running_mean += 1 + 2.0**-40
    layer(torch.ones(4, 2))
    torch.testing.assert_close(
        layer.running_mean, torch.full((2,), 1 + 0.9 * 2.0**-40, dtype=torch.float64), rtol=2.0**-50, atol=0
    )


def test_the_door_imports_torch_and_no_other_framework():
    code = "import sys, batchnorm.torch; print({'jax', 'keras', 'tensorflow', 'flax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("ours", "theirs"), PAIRS[1:])
def test_channels_last_goes_in_and_comes_out(ours, theirs):
    shape = SHAPES[theirs.__name__]
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = batch(*shape).contiguous(memory_format=layout).requires_grad_()
    plain = x.detach().contiguous().requires_grad_()
    layer, other = ours(3), ours(3)
    y, z = layer(x), other(plain)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    assert x.grad.is_contiguous(memory_format=layout)
    assert layer.eval()(x).is_contiguous(memory_format=layout)


def test_autocast_gives_what_torchs_layer_gives():
    results = []
    for layer in (bt.BatchNorm2d(4), torch.nn.BatchNorm2d(4)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), layer, torch.nn.ReLU())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(batch(5, 3, 6, 6))
        y.float().square().mean().backward()
        results.append((y, model[0].weight.grad, layer.running_mean, layer.running_var))
    assert results[0][0].dtype == torch.bfloat16
    torch.testing.assert_close(*results, rtol=2**-7, atol=2**-7)  # bfloat16: the convolutions' gradients are sums in it


# -- torch.func -------------------------------------------------------------------------------------------------------


def test_func_grad_updates_the_layers_own_buffers():
    layer, plain, x = bt.BatchNorm1d(3), bt.BatchNorm1d(3), batch(5, 3)
    got = torch.func.grad(lambda x: layer(x).pow(3).sum())(x)
    leaf = x.clone().requires_grad_()
    plain(leaf).pow(3).sum().backward()
    torch.testing.assert_close(got, leaf.grad)
    # One adds by torch's operations, the other by the kernels: three roundings of a tenth of values near 1.
    torch.testing.assert_close(dict(layer.named_buffers()), dict(plain.named_buffers()), rtol=2e-7, atol=2e-8)
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):  # torch's
        torch.func.grad(lambda x: torch.nn.BatchNorm1d(3)(x).sum() * 0 + _captured(x))(x)


CAPTURED = torch.nn.BatchNorm1d(3)


def _captured(x):
    return CAPTURED(x).sum()


@pytest.mark.parametrize("arguments", [{}, {"statistics": "debiased"}, {"momentum": None}], ids=str)
def test_vmap_in_training_with_batched_buffers_is_a_loop(arguments):
    layers = [bt.BatchNorm1d(3, **arguments) for _ in range(2)]
    loop = copy.deepcopy(layers)
    parameters, buffers = torch.func.stack_module_state(layers)
    x = batch(2, 5, 3)

    def call(parameters, buffers, x):
        return torch.func.functional_call(layers[0], (parameters, buffers), (x,))

    for _ in range(2):
        y = torch.func.vmap(call)(parameters, buffers, x)
        expected = torch.stack([layer(each) for layer, each in zip(loop, x, strict=True)])
    torch.testing.assert_close(y, expected)
    for index, layer in enumerate(loop):
        torch.testing.assert_close({name: value[index] for name, value in buffers.items()}, dict(layer.named_buffers()))


def test_vmap_in_training_without_buffers_is_a_loop_and_with_shared_ones_torchs_error():
    x = batch(2, 5, 3)
    bare = torch.func.replace_all_batch_norm_modules_(bt.BatchNorm1d(3))
    torch.testing.assert_close(torch.func.vmap(bare)(x), torch.stack([bare(each) for each in x]))
    layer = bt.BatchNorm1d(3)
    with pytest.raises(RuntimeError, match=r"running_mean or running_var.* were not batched"):
        torch.func.vmap(torch.nn.BatchNorm1d(3))(x)
    with pytest.raises(RuntimeError, match=r"stack_module_state.*replace_all_batch_norm_modules_"):
        torch.func.vmap(layer)(x)
    assert_same(layer.named_buffers(), bt.BatchNorm1d(3).named_buffers())


# -- compile and export -----------------------------------------------------------------------------------------------


@COMPILES
@pytest.mark.parametrize("arguments", MODES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_compiled_without_graph_breaks_is_eager(arguments, masked):
    torch.compiler.reset()
    layer = bt.BatchNormAct2d(3, **arguments)
    eager, x = copy.deepcopy(layer), batch(4, 3, 4, 4)
    mask = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.7 if masked else None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, eager):
        leaf = x.clone().requires_grad_()
        for _ in range(2):
            y = call(leaf, leaf, mask)
        y.square().sum().backward()
        results.append((y, leaf.grad))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(eager.named_buffers()))
    torch.testing.assert_close(compiled.eval()(x), eager.eval()(x))


@COMPILES
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_with_dynamic_batch_size(backend):
    torch.compiler.reset()
    layer = bt.BatchNorm2d(3)
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for size in (4, 6):
        leaf, other = (batch(size, 3, 4, 4).requires_grad_() for _ in range(2))
        y, z = compiled(leaf), eager(other)
        y.pow(3).sum().backward()
        z.pow(3).sum().backward()
        torch.testing.assert_close((y, leaf.grad), (z, other.grad))
    torch.testing.assert_close(dict(layer.named_buffers()), dict(eager.named_buffers()))


@COMPILES
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_compiled_under_a_checkpoint_updates_once(use_reentrant):
    torch.compiler.reset()
    layer, plain, x = bt.BatchNorm1d(3), bt.BatchNorm1d(3), batch(5, 3).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        checkpoint(compiled, x, use_reentrant=use_reentrant).square().sum().backward()
        plain(x)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(plain.named_buffers()))


def small_model():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), bt.BatchNorm2d(4), bt.BatchNormAct2d(4, statistics="debiased")
    )
    trained(model, (5, 3, 6, 6))
    return model


DYNAMIC = ({0: torch.export.Dim("batch")},)


def test_exported_for_inference_it_is_the_standard_operator():
    model, x = small_model().eval(), batch(2, 3, 6, 6)
    exported = torch.export.export(model, (x,), dynamic_shapes=DYNAMIC)
    names = [node.target.name() for node in exported.graph.nodes if node.op == "call_function"]
    assert names == ["aten::conv2d", "aten::batch_norm", "aten::batch_norm", "aten::relu"]
    x = batch(7, 3, 6, 6)
    torch.testing.assert_close(exported.module()(x), model(x))


def test_exported_in_training_it_updates_its_statistics():
    model, x = small_model(), batch(2, 3, 6, 6)
    exported = torch.export.export(model, (x,), dynamic_shapes=DYNAMIC).module()
    x = batch(7, 3, 6, 6)
    torch.testing.assert_close(exported(x), model(x))
    after = {name: value for name, value in exported.named_buffers() if "skipped" not in name}
    torch.testing.assert_close(after, {k: v for k, v in model.named_buffers() if "skipped" not in k})


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::DeprecationWarning:onnx.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_export_writes_the_standard_operator(dynamo):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    # No convolution before it: exporters fold the pair, which is what the standard operator is for.
    model = torch.nn.Sequential(bt.BatchNorm2d(3), torch.nn.Tanh(), bt.BatchNormAct2d(3, statistics="debiased"))
    model, x, file = trained(model, (5, 3, 6, 6)).eval(), batch(2, 3, 6, 6), io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=dynamo, **({"verbose": False, "optimize": False} if dynamo else {}))
    graph = onnx.load_from_string(file.getvalue()).graph
    assert [node.op_type for node in graph.node].count("BatchNormalization") == 2
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach())


# -- utilities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"statistics": "debiased"}, {"momentum": None}], ids=str)
def test_fusing_utilities_fold_what_inference_does(arguments):
    convolution, layer = torch.nn.Conv2d(2, 3, 1), trained(bt.BatchNorm2d(3, **arguments)).eval()
    x = batch(4, 2, 5, 5)
    torch.testing.assert_close(fuse_conv_bn_eval(convolution.eval(), layer)(x), layer(convolution(x)))
    linear, flat = torch.nn.Linear(2, 3).eval(), trained(bt.BatchNorm1d(3, **arguments), (5, 3)).eval()
    x = batch(4, 2)
    torch.testing.assert_close(fuse_linear_bn_eval(linear, flat)(x), flat(linear(x)))


def test_quantization_fuses_our_layers_where_it_is_told_how():
    """It looks layers up by their exact class, and asks for the way of any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization announces that it will move
        from torch.ao.quantization import fuse_modules
        from torch.ao.quantization.fuser_method_mappings import fuse_conv_bn
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), trained(bt.BatchNorm2d(3))).eval()
    x = batch(4, 2, 5, 5)
    kinds = (torch.nn.Conv2d, bt.BatchNorm2d)
    custom = {"additional_fuser_method_mapping": {kinds: fuse_conv_bn}}
    fused = fuse_modules(model, [["0", "1"]], fuse_custom_config_dict=custom)
    assert type(fused[1]) is torch.nn.Identity
    torch.testing.assert_close(fused(x), model(x))


def test_traced_by_fx_a_layer_is_one_node_as_torchs_is():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.act = bt.BatchNorm1d(3, virtual_batch_size=2), bt.BatchNormAct1d(3)

        def forward(self, x, mask):
            return self.act(self.norm(x, mask=mask), x, mask=mask)

    model, x, mask = Block(), batch(4, 3, 5), torch.ones(4, 5, dtype=torch.bool)
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["norm", "act"]
    torch.testing.assert_close(traced(x, mask), model(x, mask), rtol=0, atol=0)
    torch.testing.assert_close(traced.act.running_var, model.act.running_var, rtol=0, atol=0)


def test_jit_traced_in_training_it_updates_its_statistics():
    layer, x = bt.BatchNorm1d(3), batch(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its end, and a trace the shapes it takes for constant
        traced = torch.jit.trace(copy.deepcopy(layer), x, check_trace=False)
        traced(x)
    layer(x)
    layer(x)
    torch.testing.assert_close(traced.running_mean, layer.running_mean)


def test_torchs_own_conversion_to_sync_takes_our_layers():
    model = torch.nn.Sequential(trained(bt.BatchNorm2d(3)))
    x = batch(4, 3, 2, 2)
    expected = copy.deepcopy(model)(x)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(converted[0]) is torch.nn.SyncBatchNorm
    torch.testing.assert_close(converted(x), expected)


@pytest.mark.parametrize("statistics", ["moving", "debiased"])
def test_update_bn_of_averaged_weights_gives_the_plain_mean(statistics):
    results = []
    for layer in (bt.BatchNorm1d(3, statistics=statistics), torch.nn.BatchNorm1d(3)):
        model = torch.nn.Sequential(layer)
        torch.optim.swa_utils.update_bn([batch(6, 3, seed=seed) for seed in range(3)], model)
        results.append((layer.running_mean, layer.running_var))
        assert layer.momentum == 0.1
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNormAct2d", "SyncBatchNorm"])
def test_bias_false_and_affine_false_are_torchs(name):
    make = getattr(bt, name)
    assert make(3, bias=False).bias is None
    assert make(3, affine=False).weight is None
    assert list(make(3, bias=False).state_dict()) == ["weight", "running_mean", "running_var", "num_batches_tracked"]


def test_repr_tells_what_differs_from_torchs():
    assert repr(bt.BatchNorm1d(3)).endswith("track_running_stats=True)")
    assert "statistics=debiased, virtual_batch_size=4" in repr(
        bt.BatchNorm1d(3, statistics="debiased", virtual_batch_size=4)
    )
    assert "activation=silu" in repr(bt.BatchNormAct1d(3, activation="silu"))
