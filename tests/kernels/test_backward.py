"""The way back through the compiled kernels, held to the float64 reference."""

import ml_dtypes
import numpy as np
import pytest

from batchnorm.kernels import cpu

from .calling import backward, check_backward, forward, parameters, per_channel
from .test_forward import SHAPES, drawn


def both_ways(dims, axis, dtype=np.float32, *, mean=0.0, residual=False, mask=None, activation="identity"):
    x, grad = drawn(dims, mean, dtype), drawn(dims, dtype=dtype, seed=1)
    added = drawn(dims, dtype=dtype, seed=2) if residual else None
    gamma, beta = parameters(np.random.default_rng(3), dims[axis], dtype)
    given = {"axis": axis, "mask": mask, "residual": added, "activation": activation}
    _, batch_mean, variance = forward(x, gamma, beta, **given)
    got = backward(grad, x, batch_mean, variance, gamma, beta, **given)
    check_backward(grad, x, axis, gamma, beta, got, mask=mask, residual=added, activation=activation)
    return got


@pytest.mark.parametrize("mean", [0.0, 1e6])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_layout_at_any_mean(shape, mean):
    both_ways(*SHAPES[shape], mean=mean)


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16, np.float16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", ["short planes", "features", "few rows"])
def test_element_types(shape, dtype):
    both_ways(*SHAPES[shape], dtype)


@pytest.mark.parametrize("shape", ["short planes", "few channels", "features"])
def test_masks(shape):
    dims, axis = SHAPES[shape]
    mask = np.random.default_rng(2).random(dims[:axis] + dims[axis + 1 :]) < 0.6
    both_ways(dims, axis, mask=mask)


@pytest.mark.parametrize(
    ("activation", "shape", "residual"),
    [
        ("relu", "short planes", True),
        ("relu6", "short planes", False),
        ("leaky_relu", "features", False),
        ("silu", "features", True),
        ("relu6", "few rows", False),
        ("silu", "few narrow rows", True),
    ],
)
def test_activation_and_residual(activation, shape, residual):
    both_ways(*SHAPES[shape], residual=residual, activation=activation)


@pytest.mark.parametrize("shape", ["short planes", "features"])
def test_nan_in_ignored_padding_stays_there(shape):
    dims, axis = SHAPES[shape]
    x, mask = drawn(dims), np.random.default_rng(2).random(dims[:axis] + dims[axis + 1 :]) < 0.6
    full = np.broadcast_to(np.expand_dims(mask, axis), dims)
    x[~full] = np.nan
    grad = drawn(dims, seed=1)
    grad[~full] = 0.0
    _, mean, variance = forward(x, axis=axis, mask=mask)
    dx, dgamma, dbeta, _ = backward(grad, x, mean, variance, axis=axis, mask=mask)
    for one in (dx, dgamma, dbeta):
        assert np.isfinite(one).all()


@pytest.mark.parametrize("shape", ["short planes", "features", "few rows", "few channels"])
def test_in_inference_the_statistics_are_constants(shape):
    dims, axis = SHAPES[shape]
    x, grad = drawn(dims), drawn(dims, seed=1)
    gamma, beta = parameters(np.random.default_rng(3), dims[axis])
    rng = np.random.default_rng(4)
    mean, variance = rng.standard_normal(dims[axis]), rng.random(dims[axis]) + 0.5
    dx, dgamma, dbeta, _ = backward(grad, x, mean, variance, gamma, beta, axis=axis, training=False)
    scale = per_channel(gamma / np.sqrt(variance + 1e-3), x, axis)
    np.testing.assert_allclose(dx, grad * scale, rtol=3 * 2.0**-24)  # scale, then the product
    axes = tuple(i for i in range(x.ndim) if i != axis)
    x_hat = (x - per_channel(mean, x, axis)) / np.sqrt(per_channel(variance, x, axis) + 1e-3)
    sizes = np.abs(grad).sum(axes, dtype=np.float64)
    assert np.all(np.abs(dbeta - grad.sum(axes, dtype=np.float64)) <= 66 * 2.0**-24 * sizes)
    assert np.all(np.abs(dgamma - (grad * x_hat).sum(axes)) <= 8 * 66 * 2.0**-24 * sizes)


@pytest.mark.parametrize("shape", ["short planes", "features", "few rows"])
def test_the_gradient_may_overwrite_the_one_it_comes_from(shape):
    dims, axis = SHAPES[shape]
    x, grad = drawn(dims), drawn(dims, seed=1)
    _, mean, variance = forward(x, axis=axis)
    wanted = backward(grad, x, mean, variance, axis=axis)[0]
    sums = np.empty((2, dims[axis]))
    places = [cpu.view_of(one) for one in (grad, x, grad, mean, variance, sums[0], sums[1])]
    cpu.backward(*places, axis=axis, epsilon=1e-3)
    np.testing.assert_array_equal(grad, wanted)


@pytest.mark.parametrize("shape", ["short planes", "few channels", "features", "few rows", "a few"])
def test_the_same_bits_at_any_number_of_threads(shape):
    dims, axis = SHAPES[shape]
    x, grad = (np.concatenate([drawn(dims, seed=seed)] * 10) for seed in (0, 1))
    _, mean, variance = forward(x, axis=axis)
    results = []
    for count in (1, 2):
        before = cpu.set_threads(count)
        try:
            results.append([one.tobytes() for one in backward(grad, x, mean, variance, axis=axis)[:3]])
        finally:
            cpu.set_threads(before)
    assert results[0] == results[1]
