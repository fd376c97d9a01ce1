"""Training and inference of the compiled kernels, held to the float64 reference."""

import ml_dtypes
import numpy as np
import pytest

from batchnorm.core import reference
from batchnorm.kernels import cpu

from .calling import check_forward, check_output, forward, inference, parameters

FIRST = {
    "short planes": ((4, 20, 9, 11), 1),
    "few channels": ((5, 3, 40, 41), 1),
    "long rows": ((2, 17, 300), 1),
    "one channel": ((3, 1, 70), 1),
    "added up in float64": ((1, 16, 9000), 1),
    "planes of many units": ((2, 2, 70000), 1),
    "channels outermost": ((17, 300), 0),
}
LAST = {
    "few rows": ((300, 64), 1),
    "few narrow rows": ((70, 3), 1),
    "features": ((1100, 40), 1),
    "a few": ((3000, 3), 1),
    "images": ((5, 12, 11, 20), 3),
    "rows of many columns": ((33, 4100), 1),
    "many rows": ((3000, 24), 1),
    "tiny planes": ((70, 16, 2, 7), 1),
    "one row": ((1, 20), 1),
}
SHAPES = FIRST | LAST


def drawn(shape, mean=0.0, dtype=np.float32, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) + mean).astype(dtype)


@pytest.mark.parametrize("mean", [0.0, 1e6])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_layout_at_any_mean(shape, mean):
    dims, axis = SHAPES[shape]
    x = drawn(dims, mean)
    gamma, beta = parameters(np.random.default_rng(1), dims[axis])
    check_forward(x, axis, gamma, beta, forward(x, gamma, beta, axis=axis))


@pytest.mark.parametrize("shape", ["short planes", "few channels", "features", "few rows", "tiny planes", "a few"])
def test_masks(shape):
    dims, axis = SHAPES[shape]
    x = drawn(dims, 3.0)
    mask = np.random.default_rng(2).random(dims[:axis] + dims[axis + 1 :]) < 0.6
    mask[0] = False  # the first counted element is not the first
    gamma, beta = parameters(np.random.default_rng(1), dims[axis])
    check_forward(x, axis, gamma, beta, forward(x, gamma, beta, axis=axis, mask=mask), mask=mask)
    x[np.broadcast_to(np.expand_dims(~mask, axis), dims)] = np.nan
    y, mean, variance = forward(x, gamma, beta, axis=axis, mask=mask)
    assert np.isfinite(mean).all()
    assert np.isfinite(variance).all()
    assert np.array_equal(np.isnan(y), np.isnan(x))


def test_everything_masked_writes_nothing():
    x, mask = drawn((4, 20, 30)), np.zeros((4, 30), bool)
    y, mean, _ = forward(x, mask=mask)
    assert np.isnan(y).all()
    assert np.isnan(mean).all()


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16, np.float16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", ["short planes", "features", "few rows", "few narrow rows"])
def test_element_types(shape, dtype):
    dims, axis = SHAPES[shape]
    x = drawn(dims, 1.0, dtype)
    gamma, beta = parameters(np.random.default_rng(1), dims[axis], dtype)
    check_forward(x, axis, gamma, beta, forward(x, gamma, beta, axis=axis))


@pytest.mark.parametrize(
    ("activation", "shape", "added"),
    [
        ("relu", "short planes", True),
        ("relu6", "short planes", False),
        ("leaky_relu", "features", False),
        ("silu", "features", True),
        ("relu6", "few rows", False),
        ("silu", "few narrow rows", True),
    ],
)
def test_activation_and_residual(activation, shape, added):
    dims, axis = SHAPES[shape]
    x, residual = drawn(dims), drawn(dims, seed=1) if added else None
    x.flat[5] = np.float32(40.0)
    gamma, beta = parameters(np.random.default_rng(1), dims[axis])
    got = forward(x, gamma, beta, axis=axis, residual=residual, activation=activation)
    check_forward(x, axis, gamma, beta, got, residual=residual, activation=activation)
    y, mean, variance = got
    again = inference(x, mean, variance, gamma, beta, axis=axis, residual=residual, activation=activation)
    np.testing.assert_array_equal(again, y)


@pytest.mark.parametrize(
    "shape", ["short planes", "few channels", "features", "few rows", "few narrow rows", "tiny planes"]
)
def test_inference(shape):
    dims, axis = SHAPES[shape]
    x = drawn(dims, 5.0)
    rng = np.random.default_rng(3)
    gamma, beta = parameters(rng, dims[axis])
    mean, variance = rng.standard_normal(dims[axis]) + 5, rng.random(dims[axis]) + 0.5
    z = reference.inference(x, mean, variance, gamma, beta, epsilon=1e-3, axis=axis)
    check_output(inference(x, mean, variance, gamma, beta, axis=axis), z, x, gamma, beta, axis)


@pytest.mark.parametrize(
    "shape", ["short planes", "few channels", "planes of many units", "features", "few rows", "a few"]
)
def test_the_same_bits_at_any_number_of_threads(shape):
    dims, axis = SHAPES[shape]
    x = np.concatenate([drawn(dims)] * 10)  # large enough for threads
    results = []
    for count in (1, 2):
        before = cpu.set_threads(count)
        try:
            results.append([one.tobytes() for one in forward(x, axis=axis)])
        finally:
            cpu.set_threads(before)
    assert results[0] == results[1]


@pytest.mark.parametrize("value", [3.1e7, -0.1, 1e30, 3e38])
@pytest.mark.parametrize(("shape", "axis"), [((4, 16, 50), 1), ((100, 16), 1), ((2500, 16), 1)])
def test_a_constant_channel_is_exactly_beta(shape, axis, value):
    x = np.full(shape, value, np.float32)
    _, beta = parameters(np.random.default_rng(0), 16)
    y, _, variance = forward(x, None, beta, axis=axis)
    assert np.array_equal(y, np.broadcast_to(beta if x.ndim == 2 else beta[:, None], shape))
    assert not variance.any()


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 20, 50), 1), ((200, 20), 1), ((300, 3), 1), ((1500, 20), 1), ((3000, 3), 1)]
)
def test_samples_far_from_the_mean_cost_no_accuracy(shape, axis):
    x = drawn(shape)
    x.reshape(shape[0], -1)[0] += 300.0  # the samples that the shift is taken from are off by many deviations
    ones = np.ones(shape[axis], np.float32)
    check_forward(x, axis, ones, 0 * ones, forward(x, ones, 0 * ones, axis=axis))


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 20, 50), 1), ((200, 20), 1), ((300, 3), 1), ((1500, 20), 1), ((3000, 3), 1)]
)
def test_squares_beyond_float32_stay_finite(shape, axis):
    x = drawn(shape) * np.float32(1e30)
    ones = np.ones(shape[axis], np.float32)
    check_forward(x, axis, ones, 0 * ones, forward(x, ones, 0 * ones, axis=axis))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("shape", "axis"), [((4, 20, 50), 1), ((200, 20), 1), ((1500, 20), 1)])
def test_a_nan_shows_in_its_channel_only(shape, axis, bad):
    x = drawn(shape)
    x[2, 5] = bad
    y, _, variance = forward(x, axis=axis)
    assert np.isnan(y[2, 5]).all()
    assert np.array_equal(np.isfinite(variance), np.arange(20) != 5)
    assert np.isfinite(np.delete(y, 5, axis=1)).all()


def test_activations_of_what_is_not_finite():
    x = np.float32([[-np.inf, np.nan, np.inf, -200.0, 200.0]] * 2).reshape(2, 5)
    zero, one = np.zeros(5), np.full(5, 1 - 1e-3)
    relu = inference(x, zero, one, axis=1, activation="relu6")
    np.testing.assert_array_equal(relu[0], np.float32([0, np.nan, 6, 0, 6]))
    silu = inference(np.tile(x, (40, 1)), zero, one, axis=1, residual=np.zeros((80, 5), np.float32), activation="silu")
    np.testing.assert_array_equal(np.isnan(silu[0]), [True, True, False, False, False])
    assert abs(silu[0, 3]) < 1e-30
    assert silu[0, 4] == pytest.approx(200.0, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(6, 20, 30), (180, 20), (180 * 20, 20)])
def test_moving_statistics_follow_with_the_guard(shape, dtype):
    x, count = drawn(shape, 2.0), int(np.prod(shape)) // 20
    x[0, 3] = np.nan
    moving_mean, moving_variance = np.zeros(20, dtype), np.ones(20, dtype)
    skipped = np.zeros(20, np.int64)
    for _ in range(2):
        moving = cpu.Moving(*map(cpu.view_of, (moving_mean, moving_variance)), 0.9, 1, True, cpu.view_of(skipped))
        _, mean, variance = forward(x, moving=moving)
    assert skipped.tolist() == [2 * (channel == 3) for channel in range(20)]
    counted = skipped == 0
    # 2 updates of two roundings each, in the moving statistics' own type.
    np.testing.assert_allclose(moving_mean, np.where(counted, 0.19 * mean, 0), rtol=8 * np.finfo(dtype).eps)
    stored = 0.81 + 0.19 * variance * count / (count - 1)
    np.testing.assert_allclose(moving_variance, np.where(counted, stored, 1), rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("shape", ["short planes", "features", "few rows", "tiny planes"])
def test_in_place(shape):
    dims, axis = SHAPES[shape]
    x = drawn(dims)
    wanted = forward(x, axis=axis)[0]
    forward(x, axis=axis, out=x)
    np.testing.assert_array_equal(x, wanted)
