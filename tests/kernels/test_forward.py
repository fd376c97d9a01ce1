"""Training and inference of the compiled kernels, held to the float64 reference."""

import numpy as np
import pytest

from batchnorm.core import reference
from batchnorm.kernels import cpu

from .calling import forward, inference, output_bound, parameters, per_channel

SHAPES = {
    "short planes": (4, 20, 9, 11),
    "few channels": (5, 3, 40, 41),
    "long rows": (2, 17, 300),
    "one channel": (3, 1, 70),
    "long enough to add up in float64": (1, 16, 9000),
    "planes of many units": (2, 2, 70000),
}


def check(x, axis, gamma, beta, got, epsilon=1e-3):
    """Output and statistics within their bounds of the reference, at any mean."""
    y, mean, variance = got
    wanted_mean, wanted_variance = reference.moments(x, axis=axis)
    sd = np.sqrt(wanted_variance)
    u = 2.0**-24
    # Lanes add at most 64 float32 numbers of either sign, errors of thousands of lanes average out: 3u bounds the mean
    # in standard deviations and 3e-7 is the promise for the variance, whatever the count (docs/NUMERICS.md).
    np.testing.assert_array_less(np.abs(mean - wanted_mean), 3 * u * sd + 2.0**-52 * np.abs(wanted_mean) + 1e-300)
    np.testing.assert_allclose(variance, wanted_variance, rtol=3e-7)
    wanted = reference.training(x, gamma, beta, epsilon=epsilon, axis=axis)
    g, b = per_channel(gamma, x, axis), per_channel(beta, x, axis)
    x_hat = (wanted - b) / g
    assert np.all(np.abs(y.astype(np.float64) - wanted) <= output_bound(wanted, x_hat, g, b, x.dtype.name))


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("shape", SHAPES)
def test_channels_first(shape, mean):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(SHAPES[shape]) + mean).astype(np.float32)
    gamma, beta = parameters(rng, x.shape[1])
    check(x, 1, gamma, beta, forward(x, gamma, beta))


def test_inference_is_the_same_map():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((3, 20, 9, 11)) + 5).astype(np.float32)
    gamma, beta = parameters(rng, 20)
    y, mean, variance = forward(x, gamma, beta)
    np.testing.assert_array_equal(inference(x, mean, variance, gamma, beta), y)
    mean, variance = rng.standard_normal(20), rng.random(20) + 0.5
    wanted = reference.inference(x, mean, variance, gamma, beta, epsilon=1e-3, axis=1)
    g, b = per_channel(gamma, x, 1), per_channel(beta, x, 1)
    assert np.all(
        np.abs(inference(x, mean, variance, gamma, beta) - wanted)
        <= output_bound(wanted, (wanted - b) / g, g, b, "float32")
    )


@pytest.mark.parametrize("shape", ["short planes", "few channels", "planes of many units"])
def test_the_same_bits_at_any_number_of_threads(shape):
    x = np.random.default_rng(2).standard_normal(SHAPES[shape]).astype(np.float32)
    x = np.concatenate([x] * 6)  # large enough for threads
    results = []
    for count in (1, 2):
        before = cpu.set_threads(count)
        try:
            results.append([one.tobytes() for one in forward(x)])
        finally:
            cpu.set_threads(before)
    assert results[0] == results[1]


@pytest.mark.parametrize("value", [3.1e7, -0.1, 1e30, 3e38])
def test_a_constant_channel_is_exactly_beta(value):
    x = np.full((4, 16, 50), value, np.float32)
    _, beta = parameters(np.random.default_rng(0), 16)
    y, _, variance = forward(x, None, beta)
    assert np.array_equal(y, np.broadcast_to(beta[:, None], x.shape))
    assert not variance.any()


def test_a_first_element_far_from_the_mean_costs_no_accuracy():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 20, 50)).astype(np.float32)
    x[0, :, 0] += 300.0
    check(x, 1, np.ones(20, np.float32), np.zeros(20, np.float32), forward(x))


def test_squares_beyond_float32_stay_finite():
    x = (np.random.default_rng(0).standard_normal((4, 20, 50)) * 1e30).astype(np.float32)
    check(x, 1, np.ones(20, np.float32), np.zeros(20, np.float32), forward(x))
