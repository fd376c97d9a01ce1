"""Laws that hold for any input: shift and scale, split and merge, sums of gradients, derivatives."""

import functools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm.core.accumulator import Accumulator
from batchnorm.core.ops import batch_norm, batch_norm_grad, moments

U = 2.0**-53
few = settings(max_examples=40, deadline=None, derandomize=True)

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(2, 60)
means = st.sampled_from([0.0, 1.0, -30.0, 1e3])
spreads = st.sampled_from([1e-3, 1.0, 50.0])


def draw(seed, count, mean, sd, channels=3):
    return np.random.default_rng(seed).standard_normal((count, channels)) * sd + mean


@few
@given(seeds, counts, means, spreads, st.floats(-1e3, 1e3))
def test_a_shift_moves_the_mean_and_nothing_else(seed, count, mean, sd, shift):
    x = draw(seed, count, mean, sd)
    one, two = moments(x), moments(x + shift)
    # x + shift is itself rounded by u*|x + shift|, which is what may show.
    rounding = U * (np.max(np.abs(x)) + abs(shift) + abs(mean)) * 4
    np.testing.assert_allclose(two.mean, one.mean + shift, rtol=0, atol=rounding)
    deviation = np.sqrt(one.variance)
    assert np.all(np.abs(two.variance - one.variance) <= (count + 4) * 2 * U * one.variance + 2 * rounding * deviation)


@few
@given(seeds, counts, means, spreads, st.integers(-30, 30))
def test_a_power_of_two_scales_exactly(seed, count, mean, sd, exponent):
    x, factor = draw(seed, count, mean, sd), 2.0**exponent
    one, two = moments(x), moments(x * -factor)
    assert np.array_equal(two.mean, -factor * one.mean)
    assert np.array_equal(two.variance, factor**2 * one.variance)
    y, _ = batch_norm(x, epsilon=1e-3)
    scaled, _ = batch_norm(x * factor, epsilon=1e-3 * factor**2)
    np.testing.assert_allclose(scaled, y, rtol=4 * U)  # only epsilon*factor^2 may round


@few
@given(seeds, counts, means, spreads)
def test_the_output_has_mean_beta_and_variance_gamma_squared(seed, count, mean, sd):
    x, gamma, beta = draw(seed, count, mean, sd), np.array([2.0, -0.5, 1.0]), np.array([1.0, 0.0, -3.0])
    y, batch = batch_norm(x, gamma, beta, epsilon=1e-3)
    out = moments(y)
    np.testing.assert_allclose(out.mean, beta, rtol=0, atol=(count + 12) * U * 8)
    wanted = gamma**2 * batch.variance / (batch.variance + 1e-3)
    added = 8 * U * (np.abs(beta) + 1) * np.sqrt(wanted)  # y is rounded where beta is added
    assert np.all(np.abs(out.variance - wanted) <= (count + 12) * 8 * U * wanted + added)


@few
@given(seeds, st.integers(4, 60), means, spreads, st.data())
def test_a_split_batch_is_the_whole_batch(seed, count, mean, sd, data):
    x = draw(seed, count, mean, sd)
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1), min_size=1, max_size=4)))
    whole = moments(x)
    merged = functools.reduce(Accumulator.merge, map(Accumulator.of, np.split(x, cuts)))
    assert merged.count == count
    large = np.max(np.abs(x))
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=0, atol=(count + 16) * U * sd * 8 + 8 * U * large)
    tolerance = (count + 16) * 2 * U * whole.variance + 16 * U * large * np.sqrt(whole.variance)
    assert np.all(np.abs(merged.variance(0) - whole.variance) <= tolerance)


@few
@given(seeds, counts, st.data())
def test_masking_is_leaving_out(seed, count, data):
    x = draw(seed, count, 1.0, 2.0)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any)))
    masked, left = moments(x, mask=mask), moments(x[mask])
    assert masked.count == left.count
    np.testing.assert_allclose(masked.mean, left.mean, rtol=0, atol=(count + 4) * U * 16)
    np.testing.assert_allclose(masked.variance, left.variance, rtol=(count + 4) * 2 * U, atol=1e-30)


@few
@given(seeds, counts, means, spreads)
def test_the_gradient_sums_to_zero_and_is_orthogonal_to_x_hat_up_to_epsilon(seed, count, mean, sd):
    x, grad = draw(seed, count, mean, sd), draw(seed + 1, count, 0.0, 1.0)
    epsilon = 1e-3
    got = batch_norm_grad(grad, x, epsilon=epsilon)
    batch = moments(x)
    inv_std = 1 / np.sqrt(batch.variance + epsilon)
    x_hat = (x - batch.mean) * inv_std
    rounding = (count + 16) * 16 * U * inv_std * np.sum(np.abs(grad), axis=0) * (1 + np.max(np.abs(x_hat), axis=0)) ** 2
    rounding += (
        U * np.abs(batch.mean) * inv_std**2 * np.sum(np.abs(grad), axis=0) * 16
    )  # of x_hat, written plainly here
    assert np.all(np.abs(got.x.sum(axis=0)) <= rounding)
    # sum(dx*x_hat) = inv_std * sum(grad*x_hat) * (1 - mean(x_hat^2)) = inv_std^3 * epsilon * sum(grad*x_hat)
    wanted = inv_std**3 * epsilon * got.gamma
    assert np.all(np.abs(np.sum(got.x * x_hat, axis=0) - wanted) <= rounding * (1 + np.max(np.abs(x_hat), axis=0)))


@few
@given(seeds, st.integers(2, 6), st.booleans())
def test_the_gradient_is_the_derivative(seed, count, masked):
    x, weight = draw(seed, count, 0.5, 1.0, 2), draw(seed + 1, count, 0.0, 1.0, 2)
    gamma, epsilon = np.array([1.5, -0.7]), 0.1
    mask = np.arange(count) != count - 1 if masked else None
    got = batch_norm_grad(weight, x, gamma, epsilon=epsilon, mask=mask)

    def loss(value):
        return np.sum(weight * batch_norm(value, gamma, epsilon=epsilon, mask=mask)[0])

    step = 1e-5
    for i in np.ndindex(x.shape):
        nudge = np.zeros_like(x)
        nudge[i] = step
        numeric = (loss(x + nudge) - loss(x - nudge)) / (2 * step)
        # step^2/6 of the third derivative (at most 1e3 at epsilon .1, three factors 1/sqrt(.1)) and u*|loss|/step.
        assert abs(numeric - got.x[i]) <= 1e-7
