"""The equations in float32 itself, as the layers of the frameworks use them, and the merge of parts."""

import numpy as np
import pytest

from batchnorm.core import equations, reference
from batchnorm.core.equations import Limits, Moments

U32 = 2.0**-24
U64 = 2.0**-53
EPSILON = 1e-3
LAYOUTS = {"channels first": (0, (1,)), "channels last": (1, (0,))}


def batch(mean, count=4096, channels=3, seed=0):
    return (np.random.default_rng(seed).standard_normal((channels, count)) + mean).astype(np.float32)


def forward(x, axes, refine):
    count = x.shape[axes[0]]
    got = equations.moments(np, x, axes, count, refine=refine)
    return got, equations.standardize(x, got.high, got.low, equations.inv_std(np, got.variance, EPSILON))


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_output_is_within_5e_7_at_any_mean(layout, mean):
    axis, axes = LAYOUTS[layout]
    x = batch(mean)
    x = x if axis == 0 else np.ascontiguousarray(x.T)
    got, y = forward(x, axes, refine=axis == 1)  # NumPy adds rows one after another
    assert y.dtype == got.variance.dtype == np.float32
    wanted = reference.training(x, None, None, epsilon=EPSILON, axis=axis)
    true_mean, true_variance = reference.moments(x, axis=axis)
    # Three roundings of y itself, half the variance's error, and the mean's, which `low` brings under a rounding of sd.
    assert np.max(np.abs(y - wanted)) <= 5e-7 * np.max(np.abs(wanted))
    assert np.max(np.abs(got.variance.ravel() - true_variance) / true_variance) <= 2 * (5e-7 - 3 * U32)
    both = got.high.ravel().astype(np.float64) + got.low.ravel()
    assert np.max(np.abs(both - true_mean) / np.sqrt(true_variance)) <= 2 * U32


def test_without_runs_rows_added_one_by_one_are_over_that_bound():
    x = np.ascontiguousarray(batch(1e4, count=16384).T)
    wanted = reference.training(x, None, None, epsilon=EPSILON)
    errors = [np.max(np.abs(forward(x, (0,), refine)[1] - wanted)) / np.max(np.abs(wanted)) for refine in (False, True)]
    assert errors[0] > 1e-6
    assert errors[1] < 5e-7


def test_output_is_standardize_and_affine():
    x, (gamma, beta) = batch(1e6), np.random.default_rng(3).normal(size=(2, 3, 1)).astype(np.float32)
    got = equations.moments(np, x, (1,), x.shape[1])
    inverse = equations.inv_std(np, got.variance, EPSILON)
    wanted = equations.affine(equations.standardize(x, got.high, got.low, inverse), gamma, beta)
    for b in (beta, None):
        for centered, low in ((x - got.high, got.low), (x - got.high - got.low, None)):
            y = equations.output(centered, low, gamma * inverse, b)
            # Four roundings of the terms each.
            np.testing.assert_allclose(
                y, wanted if b is not None else wanted - beta, atol=16 * U32 * np.max(np.abs(wanted))
            )


def test_gradients_around_high_are_those_of_x_hat():
    x = batch(1e2).astype(np.float64)
    grad = np.random.default_rng(4).normal(size=x.shape)
    got = equations.moments(np, x, (1,), x.shape[1])._replace(low=np.full((3, 1), 0.03))
    inverse = equations.inv_std(np, got.variance, EPSILON)
    x_hat = equations.standardize(x, got.high, got.low, inverse)
    wanted = equations.parameter_gradients(np, grad, x_hat, (1,))
    own = equations.parameter_gradients(np, grad, x - got.high, (1,))
    sums = equations.of_x_hat(own, got.low, inverse)
    np.testing.assert_allclose(sums, wanted, rtol=1e-10)
    back = equations.around_high(sums, got.low, inverse)
    centered = x - got.high - got.low
    of_centered = equations.of_x_hat(equations.parameter_gradients(np, grad, centered, (1,)), None, inverse)
    np.testing.assert_allclose(of_centered, wanted, rtol=1e-10)
    alike = [
        (x_hat, wanted),
        (x - got.high, back),
        (centered, equations.around_high(of_centered, None, inverse)),
    ]
    dx = [equations.input_gradient(np, grad, values, inverse, each, x.shape[1], None) for values, each in alike]
    np.testing.assert_allclose(dx[1], dx[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dx[2], dx[0], rtol=1e-10, atol=1e-12)


def test_the_low_part_of_the_mean_is_needed():
    x = batch(1e6)
    got = equations.moments(np, x, (1,), x.shape[1])
    mean, variance = reference.moments(x, axis=0)
    # One float32 near 1e6 is a multiple of 1/16: up to 3 % of a standard deviation away.
    assert np.max(np.abs(got.high.ravel() - mean) / np.sqrt(variance)) > 1e-3
    assert np.max(np.abs(got.high.ravel().astype(np.float64) + got.low.ravel() - mean)) <= 2 * U32


@pytest.mark.parametrize("value", [0.0, 3.1e7, 100.1, -1e30, 3e38, 1e-45])
@pytest.mark.parametrize("refine", [False, True])
def test_a_constant_channel_in_float32_is_exactly_zero(value, refine):
    x = np.full((2, 1000), value, np.float32)
    got, y = forward(x, (1,), refine)
    assert got.variance.tolist() == [[0.0], [0.0]]
    assert got.mean.tolist() == [[np.float32(value)]] * 2
    assert not np.any(y)


def test_a_constant_channel_around_padding_is_exactly_zero():
    x = np.full((2, 6), 3.1e7, np.float32)
    mask = np.array([[False, True, True, False, True, True]])
    x[:, ~mask[0]] = np.nan
    got = equations.moments(np, x, (1,), 4, mask)
    assert got.variance.tolist() == [[0.0], [0.0]]
    assert got.mean.tolist() == [[np.float32(3.1e7)]] * 2


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("mean", [0.0, 1e2, 1e6])
def test_what_rounding_takes_from_the_mean_is_worked_out_or_measured(mean, far):
    asked = []

    def choose(condition, yes, no):
        asked.append((bool(condition), no()))
        return yes() if condition else no()

    x = batch(mean)
    if far:
        x[1, 0] += np.float32(-3e6)
    got = equations.moments(np, x, (1,), x.shape[1], choose=choose)
    ((measured, worked_out),) = asked
    assert measured == far
    true_mean, true_variance = reference.moments(x, axis=0)
    both = got.high.ravel().astype(np.float64) + got.low.ravel()
    # The distance of the first element is at most 4 standard deviations where nothing is measured: 4u, and the sum's u.
    assert np.max(np.abs(both - true_mean) / np.sqrt(true_variance)) <= 5 * U32
    # One square makes up the variance of a channel with a far element, and is rounded again in each addition: NumPy
    # makes 128 in a row.
    bound = 64 * U32 if far else 2 * (5e-7 - 3 * U32)
    assert np.max(np.abs(got.variance.ravel() - true_variance) / true_variance) <= bound
    if far and mean == 0:
        assert abs(got.high[1, 0] + worked_out[1, 0] - true_mean[1]) > 1e-3  # without the measurement


def test_values_near_1e30_stay_finite():
    x = np.float32(1e30) * (1 + batch(0, 100) * 1e-12)
    _, y = forward(x.astype(np.float32), (1,), refine=False)
    assert np.isfinite(y).all()


# -- debias, renorm, sample variance ----------------------------------------------------------------------------------


def test_debias_takes_the_initial_value_out_where_there_is_something_else():
    remaining = np.array([1.0, 0.99**10, 0.0])
    moving = np.array([1.0, 0.91000736, 0.5])
    got = equations.without_initial(np, moving, 1.0, remaining)
    assert got[0] == 1.0
    assert got[1] == pytest.approx(reference.debias(0.91000736, 1.0, 0.99, 10), rel=1e-12)
    assert got[1] == pytest.approx(0.05883, abs=5e-6)  # the figure of the question
    assert got[2] == 0.5


@pytest.mark.parametrize("count", [1, 2, 5, np.array([1.0, 2.0, 5.0])])
def test_the_stored_variance_has_the_divisor_count_minus_ddof(count):
    counts = np.broadcast_to(count, (3,))
    got = np.broadcast_to(equations.sample_variance(np, np.full(3, 2.0), count, 1), (3,))
    assert got.tolist() == [2.0 if n <= 1 else 2.0 * n / (n - 1) for n in counts]


def test_renorm_limits():
    batch_moments = Moments(4, np.array([3.0]), np.array([0.0]), np.array([15.0]))
    r, d = equations.renorm(np, batch_moments, np.array([1.0]), np.array([2.0]), 1.0, Limits())
    assert (r.item(), d.item()) == (2.0, 1.0)
    r, d = equations.renorm(np, batch_moments, np.array([1.0]), np.array([2.0]), 1.0, Limits(0.0, 1.5, 0.25))
    assert (r.item(), d.item()) == (1.5, 0.25)
    r, d = equations.renorm(np, batch_moments, np.array([5.0]), np.array([0.0]), 4.0, Limits(dmax=0.5))
    assert (r.item(), d.item()) == (19**0.5 / 2, -0.5)  # the standard deviation is at least sqrt(epsilon) = 2


def test_fold_is_inference_as_one_linear_map():
    values = [np.array(v) for v in ([0.5, -3.0], [0.2, 4.0], [1.5, -0.5], [0.1, 7.0])]
    scale, shift = equations.fold(np, *values, EPSILON)
    for c in range(2):
        wanted = reference.fold(*(float(v[c]) for v in values), EPSILON)
        assert (scale[c], shift[c]) == pytest.approx(wanted, rel=4 * U64)


# -- merging parts ----------------------------------------------------------------------------------------------------


def parts_of(x, cuts):
    pieces = np.split(x, cuts)
    each = [equations.moments(np, one, (0,), max(len(one), 1)) if len(one) else None for one in pieces]
    shape = x[:1].shape
    return Moments(
        np.array([len(one) for one in pieces], x.dtype).reshape(-1, 1, 1),
        *(
            np.stack([np.zeros(shape, x.dtype) if m is None else getattr(m, name) for m in each])
            for name in ("high", "low", "variance")
        ),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mean", [0.0, 1e6])
@pytest.mark.parametrize("cuts", [[100], [1, 2, 500], [0, 10], [250, 250, 600, 1000]], ids=str)
def test_parts_of_any_size_merge_to_the_whole(cuts, mean, dtype):
    x = batch(mean, 1000).T.astype(dtype)
    got = equations.merge_all(np, parts_of(x, cuts))
    true_mean, true_variance = reference.moments(x)
    u = U32 if dtype == "float32" else U64
    assert got.count.item() == 1000
    both = got.high.ravel().astype(np.float64) + got.low.ravel()
    # Each part's sums are naive over at most 1000 rows: a random walk of 1000 roundings, 32u, three of them deviations.
    assert np.max(np.abs(both - true_mean)) <= 100 * u + U64 * mean
    assert np.max(np.abs(got.variance.ravel() - true_variance)) <= 100 * u * np.max(true_variance)


def test_the_distance_of_the_parts_is_in_the_variance():
    # Shifted batches: averaging their variances gives 1 where the truth is 1 + 2/3*9 (update_bn and mmengine lose it).
    shifts = np.array([-3.0, 0.0, 3.0])
    pieces = np.array([-1.0, 1.0]) + shifts[:, None]
    merged = equations.merge_all(np, Moments(np.full((3, 1), 2.0), shifts[:, None], np.zeros((3, 1)), np.ones((3, 1))))
    assert merged.variance.item() == pytest.approx(np.var(pieces), rel=4 * U64)
    assert merged.variance.item() == pytest.approx(7.0)


def test_empty_parts_change_nothing_and_all_empty_is_zero():
    full = Moments(np.array([[3.0]]), np.array([[2.0]]), np.array([[0.5]]), np.array([[4.0]]))
    padded = Moments(
        np.array([[0.0], [3.0], [0.0]]),
        np.array([[np.nan], [2.0], [7.0]]),
        np.array([[np.nan], [0.5], [7.0]]),
        np.array([[np.nan], [4.0], [7.0]]),
    )
    for parts in (full, padded):
        got = equations.merge_all(np, parts)
        assert (got.count.item(), got.mean.item(), got.variance.item()) == (3.0, 2.5, 4.0)
    nothing = equations.merge_all(np, Moments(*(np.zeros((2, 1)) for _ in range(4))))
    assert (nothing.count.item(), nothing.mean.item(), nothing.variance.item()) == (0.0, 0.0, 0.0)


def test_a_mask_may_differ_from_channel_to_channel():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (5, 4, 3))
    x[..., 1] = 0.1
    mask = rng.random(x.shape) < 0.5
    mask[0, 0], mask[2, 3] = False, True
    x[~mask] = np.nan
    count = mask.sum((0, 1), keepdims=True)
    got = equations.moments(np, x, (0, 1), count, mask)
    for c in range(3):
        mean, variance = reference.moments(x[..., c][mask[..., c]].reshape(-1, 1))
        np.testing.assert_allclose(got.mean[0, 0, c], mean[0], rtol=1e-15)
        np.testing.assert_allclose(got.variance[0, 0, c], variance[0], rtol=1e-14, atol=0)
    assert got.variance[0, 0, 1] == 0


def test_each_channel_has_a_first_counted_element_of_its_own():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (99, 3)).astype(np.float32)
    x[:, 1] = 1e30  # its square is infinite: 0 only if an element of this very channel is subtracted first
    mask = rng.random(x.shape) < 0.5
    got = equations.moments(np, x, (0,), mask.sum(0, keepdims=True).astype(np.float32), mask)
    assert got.variance[0, 1] == 0
    assert got.mean[0, 1] == np.float32(1e30)


@pytest.mark.parametrize("masked", [False, True])
def test_the_tangent_is_the_derivative_and_its_transpose_the_gradient(masked):
    rng = np.random.default_rng(1)
    x, tangent, grad = rng.normal(2, 1, (3, 7, 2))
    mask = rng.random((7, 1)) < 0.6 if masked else None
    count = 7 if mask is None else int(mask.sum())

    high = equations.moments(np, x, (0,), count, mask).high

    def normalized(x):
        batch = equations.moments_around(np, x, high, (0,), count, mask)
        return batch.low, equations.inv_std(np, batch.variance, 1e-3)

    low, inverse = normalized(x)
    x_hat = equations.standardize(x, high, low, inverse)
    sums = equations.of_x_hat(equations.counted_sums(np, tangent, x - high, (0,), mask), low, inverse)
    moved = equations.statistics_tangent(inverse, sums, count)
    h = 1e-6  # the error of a central difference is of h**2 and of u64/h
    for got, up, down in zip(moved, normalized(x + h * tangent), normalized(x - h * tangent), strict=True):
        np.testing.assert_allclose(got, (up - down) / (2 * h), rtol=0, atol=1e-8)
    gamma, gamma_tangent, beta_tangent = rng.normal(1, 1, (3, 1, 2))
    parameters = gamma_tangent, beta_tangent
    along = equations.output_tangent(tangent, x - high, low, inverse, gamma * inverse, sums, count, parameters)
    x_hat_tangent = inverse * (tangent - moved[0]) + (x - high - low) * moved[1]
    wanted = gamma * x_hat_tangent + gamma_tangent * x_hat + beta_tangent
    np.testing.assert_allclose(along, wanted, rtol=1e-12)
    back = equations.parameter_gradients(np, grad, x_hat, (0,))
    gradient = equations.input_gradient(np, grad, x_hat, gamma * inverse, back, count, mask)
    transposed = np.sum(gradient * tangent) + np.sum(back[1] * gamma_tangent) + np.sum(back[0] * beta_tangent)
    np.testing.assert_allclose(np.sum(grad * along), transposed, rtol=1e-12)
