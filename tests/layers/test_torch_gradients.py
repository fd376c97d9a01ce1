"""Gradients of the PyTorch layers: closed form against the float64 reference, and derivatives of every order."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import batchnorm.torch as bt
from batchnorm.core import reference
from batchnorm.layers.torch.activations import ACTIVATIONS

# torch scripts its forward-mode decompositions on first use, and deprecates doing so.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

CHANNELS = 2
SHAPE = (6, CHANNELS, 3)
MASKS = {"none": None, "some": torch.arange(18).reshape(6, 3) % 3 != 0, "all": torch.zeros(6, 3, dtype=torch.bool)}


def leaf(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def stateless(layer, *rest):
    def function(x, gamma, beta, *residual):
        return torch.func.functional_call(layer, {"weight": gamma, "bias": beta}, (x, *residual, *rest))

    return function


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_pass_gradcheck_and_gradgradcheck_in_reverse_and_forward_mode(mask):
    function = stateless(bt.BatchNorm1d(CHANNELS, dtype=torch.float64), mask)
    inputs = leaf(*SHAPE), leaf(CHANNELS, seed=1), leaf(CHANNELS, seed=2)
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_activations_and_residuals_pass_gradcheck_and_gradgradcheck(activation):
    function = stateless(bt.BatchNormAct1d(CHANNELS, dtype=torch.float64, activation=activation), MASKS["some"])
    inputs = leaf(*SHAPE), leaf(CHANNELS, seed=1), leaf(CHANNELS, seed=2), leaf(*SHAPE, seed=3)
    assert gradcheck(function, inputs, check_forward_ad=True)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_the_derivatives_to_the_last_digits_of_float64(name):
    z = torch.linspace(-7, 7, 141, dtype=torch.float64).add(1e-3).requires_grad_()  # beside the kinks
    (wanted,) = torch.autograd.grad(ACTIVATIONS[name].apply(z).sum(), z)
    # A few roundings of terms up to 7: half of them are of the 2**-53 that a rounding is.
    torch.testing.assert_close(ACTIVATIONS[name].slope(z.detach()), wanted, rtol=1e-15, atol=64 * 2**-53)


@pytest.mark.parametrize("training", [True, False])
def test_virtual_batches_and_inference_pass_gradcheck_and_gradgradcheck(training):
    layer = bt.BatchNorm1d(CHANNELS, dtype=torch.float64, virtual_batch_size=4).train(training)
    inputs = leaf(*SHAPE), leaf(CHANNELS, seed=1), leaf(CHANNELS, seed=2)
    assert gradcheck(stateless(layer), inputs)
    assert gradgradcheck(stateless(layer), inputs)


@pytest.mark.parametrize("mask", [None, MASKS["some"]], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_those_of_the_reference(dtype, mask):
    x, grad = leaf(*SHAPE, dtype=dtype), leaf(*SHAPE, seed=1, dtype=dtype).detach()
    layer = bt.BatchNorm1d(CHANNELS, dtype=dtype)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(2))
    layer(x, mask).backward(grad)
    gamma = layer.weight.detach().numpy()
    expected = reference.backward(
        grad.numpy(), x.detach().numpy(), gamma, epsilon=layer.eps, axis=1, mask=None if mask is None else mask.numpy()
    )
    # Sums of 18 numbers of size about 1, each off by a few roundings of numbers up to about 6: 18 * 6 * u.
    tolerance = 108 * torch.finfo(dtype).eps / 2
    for got, want in zip((x.grad, layer.weight.grad, layer.bias.grad), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=tolerance)


def test_gradient_of_a_shifted_batch_does_not_lose_the_spread():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    grad = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    shifted = (x + 1e4).requires_grad_()
    bt.BatchNorm1d(3)(shifted).backward(grad)
    expected, _, _ = reference.backward(grad.numpy(), shifted.detach().numpy(), None, epsilon=1e-5, axis=1)
    # The mean is carried in two numbers, so 1e4 costs nothing: 64 terms of size about 3, in float32.
    np.testing.assert_allclose(shifted.grad.numpy(), expected, rtol=0, atol=64 * 3 * 2**-24)


def test_only_what_needs_a_gradient_gets_one():
    layer = bt.BatchNorm1d(2)
    layer.weight.requires_grad_(False)
    x = torch.randn(4, 2)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad.tolist() == [4.0, 4.0]


def test_hessian_by_every_route_is_torchs():
    x = leaf(5, 2).detach()

    def ours(x):
        return bt.batch_norm(x, None, None, training=True).pow(3).sum()

    def theirs(x):
        return torch.nn.functional.batch_norm(x, None, None, training=True).pow(3).sum()

    expected = torch.func.hessian(theirs)(x)
    for outer in (torch.func.jacrev, torch.func.jacfwd):
        for inner in (torch.func.jacrev, torch.func.jacfwd):
            torch.testing.assert_close(outer(inner(ours))(x), expected)


def test_forward_over_reverse_without_create_graph_keeps_the_tangent_of_the_statistics():
    x, tangent = leaf(5, 2).detach(), leaf(5, 2, seed=1).detach()

    def derivative(function):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x.clone().requires_grad_(), tangent)
            (grad,) = torch.autograd.grad(function(dual, None, None, training=True).pow(3).sum(), dual)
            return torch.autograd.forward_ad.unpack_dual(grad).tangent

    torch.testing.assert_close(derivative(bt.batch_norm), derivative(torch.nn.functional.batch_norm))
