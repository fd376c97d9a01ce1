"""PyTorch's own samples for batch_norm and BatchNorm1d/2d/3d (they ship in torch.testing._internal), through ours."""

import copy

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import batchnorm.torch as bt

# torch scripts its forward-mode decompositions on first use, and deprecates doing so.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

OPINFO = next(op for op in op_db if op.name == "nn.functional.batch_norm" and not op.variant_test_name)
MODULES = [info for info in module_db if info.name in ("nn.BatchNorm1d", "nn.BatchNorm2d", "nn.BatchNorm3d")]


def cloned(sample, requires_grad=True):
    def one(value):
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad and requires_grad)

    return one(sample.input), [one(arg) for arg in sample.args], sample.kwargs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opinfo_samples_give_torchs_output_gradients_and_running_statistics(dtype):
    seen = 0
    for sample in OPINFO.sample_inputs("cpu", dtype, requires_grad=True):
        results = []
        for function in (bt.batch_norm, torch.nn.functional.batch_norm):
            x, args, kwargs = cloned(sample)
            y = function(x, *args, **kwargs)
            leaves = [each for each in (x, *args) if isinstance(each, torch.Tensor) and each.requires_grad]
            grads = torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape))
            results.append((y, grads, args[:2]))
        assert_close(*results)  # torch's own tolerances for the dtype
        seen += 1
    assert seen >= 12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_opinfo_samples_in_half_precision_are_the_float64_result_rounded_once(dtype):
    unit, worst, theirs = torch.finfo(dtype).eps / 2, 0.0, 0.0
    for sample in OPINFO.sample_inputs("cpu", dtype, requires_grad=False):
        x, args, kwargs = cloned(sample)
        wide = [None if arg is None else arg.double() for arg in args]
        exact = torch.nn.functional.batch_norm(x.double(), *wide, **kwargs)
        copies = [None if arg is None else arg.clone() for arg in args]
        peer = torch.nn.functional.batch_norm(x, *copies, **kwargs)
        got = bt.batch_norm(x, *args, **kwargs)
        assert got.dtype == dtype
        if x.numel():
            scale = exact.abs().clamp(min=torch.finfo(dtype).smallest_normal) * unit
            worst = max(worst, float(((got - exact).abs() / scale).max()))
            theirs = max(theirs, float(((peer - exact).abs() / scale).max()))
    print("torch's error in half units in the last place:", theirs)
    # Half a unit for the one rounding; what float32 adds where gamma * x_hat and beta cancel stays under 5 % of that.
    assert worst <= 1.05


def test_opinfo_samples_pass_gradcheck_and_gradgradcheck_in_both_modes():
    for sample in OPINFO.sample_inputs("cpu", torch.float64, requires_grad=True):
        x, args, kwargs = cloned(sample)
        mean, variance, gamma, beta = args

        def function(x, gamma, beta, mean=mean, variance=variance, kwargs=kwargs):
            kept = [None if each is None else each.clone() for each in (mean, variance)]
            return bt.batch_norm(x, *kept, gamma, beta, **kwargs)

        assert gradcheck(function, (x, gamma, beta), check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(function, (x, gamma, beta), check_fwd_over_rev=True)


def pairs(info, dtype, training):
    for sample in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training):
        arguments = sample.constructor_input
        theirs = info.module_cls(*arguments.args, **arguments.kwargs).to(dtype)
        ours = getattr(bt, info.module_cls.__name__)(*arguments.args, **arguments.kwargs).to(dtype)
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter)
        ours.load_state_dict(theirs.state_dict())
        yield ours.train(training), theirs.train(training), sample.forward_input.args[0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)
def test_module_inputs_give_torchs_output_gradients_and_state(info, training):
    for ours, theirs, x in pairs(info, torch.float32, training):
        results = []
        for layer in (ours, theirs):
            mine = x.detach().clone().requires_grad_()
            for _ in range(3):
                y = layer(mine)
            y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
            results.append((y, mine.grad, [p.grad for p in layer.parameters()]))
        assert_close(*results)
        mine, their = ours.state_dict(), theirs.state_dict()
        assert list(mine) == list(their)
        if training and x.numel() == 0:  # torch counts empty batches, ours does not: the one difference
            assert int(mine.pop("num_batches_tracked")) == 0
            del their["num_batches_tracked"]
        assert_close(mine, their)


@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)
def test_module_inputs_pass_gradcheck(info):
    for ours, _, x in pairs(info, torch.float64, True):
        names = [name for name, _ in ours.named_parameters()]

        def function(x, *values, ours=ours, names=names):
            layer = copy.deepcopy(ours)
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

        parameters = [p.detach().clone().requires_grad_() for p in ours.parameters()]
        assert gradcheck(function, (x, *parameters), fast_mode=True)
        assert gradgradcheck(function, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)
def test_module_error_inputs_raise_at_construction_already(info):
    errors = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    for error in errors:
        arguments = error.module_error_input.constructor_input
        with pytest.raises(error.error_type, match=error.error_regex):
            getattr(bt, info.module_cls.__name__)(*arguments.args, **arguments.kwargs)
