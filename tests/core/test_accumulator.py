"""Streams of batches: order does not matter, and the distance between batches is not lost."""

import functools

import numpy as np
import pytest

from batchnorm.core import reference
from batchnorm.core.accumulator import Accumulator, merge_moments
from batchnorm.errors import ArgumentError

U = 2.0**-53


def shifted_batches(mean=0.0):
    """Batches whose means differ, as in the measured case of update_bn: unequal sizes, one far away."""
    random = np.random.default_rng(0)
    return [
        random.standard_normal((n, 3)) * 1.1 + shift + mean for n, shift in ((32, 0.0), (32, 4.0), (5, -6.0), (1, 9))
    ]


@pytest.mark.parametrize("mean", [0.0, 1e6])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)], ids=str)
def test_unequal_shifted_batches_merge_to_the_population(order, mean):
    batches = shifted_batches(mean)
    got = functools.reduce(Accumulator.merge, [Accumulator.of(batches[i]) for i in order])
    whole = np.concatenate(batches)
    true_mean, true_variance = reference.moments(whole)
    assert got.count == 70
    # Means are stored as one float64: each merge rounds mean (u*mean) and, through d, the variance by 2*sd*u*mean.
    np.testing.assert_allclose(got.mean, true_mean, rtol=0, atol=8 * U * (mean + 10))
    np.testing.assert_allclose(got.variance(0), true_variance, rtol=(80 + 8 * mean) * U)
    np.testing.assert_allclose(got.variance(1), true_variance * 70 / 69, rtol=(80 + 8 * mean) * U)


def test_averaging_the_variances_instead_loses_the_distance_of_the_batches():
    batches = shifted_batches()
    _, true_variance = reference.moments(np.concatenate(batches))
    averaged = np.mean([reference.moments(one)[1] for one in batches], axis=0)  # what update_bn does
    assert np.all(averaged < true_variance / 4)
    merged = functools.reduce(Accumulator.merge, map(Accumulator.of, batches))
    np.testing.assert_allclose(merged.variance(0), true_variance, rtol=80 * U)


def test_merging_is_associative_up_to_rounding():
    a, b, c = (Accumulator.of(one) for one in shifted_batches()[:3])
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    np.testing.assert_allclose(left.mean, right.mean, rtol=0, atol=40 * U)
    np.testing.assert_allclose(left.m2, right.m2, rtol=8 * U)


def test_nothing_merged_is_nothing_changed():
    some = Accumulator.of(shifted_batches()[0])
    nothing = Accumulator(0, np.zeros(3), np.zeros(3))
    assert some.merge(nothing) is some
    assert nothing.merge(some) is some


def test_channels_counted_apart_may_be_empty_apart():
    a = Accumulator(np.array([0.0, 2.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.array([0.0, 2.0, 0.0]))
    b = Accumulator(np.array([3.0, 2.0, 0.0]), np.array([5.0, 3.0, 0.0]), np.array([6.0, 2.0, 0.0]))
    got = a.merge(b)
    assert got.count.tolist() == [3.0, 4.0, 0.0]
    assert got.mean.tolist() == [5.0, 2.0, 0.0]
    assert got.m2.tolist() == [6.0, 8.0, 0.0]
    assert got.variance(0).tolist() == [2.0, 2.0, 0.0]


def test_one_element_has_no_spread_to_correct():
    assert Accumulator.of(np.ones((1, 2))).variance(1).tolist() == [0.0, 0.0]


def test_merge_moments_against_the_reference():
    x, y = shifted_batches()[:2]
    (mx, vx), (my, vy) = reference.moments(x), reference.moments(y)
    count, mean, variance = merge_moments(32, mx, vx, 32, my, vy)
    for c in range(3):
        n, m, m2 = reference.merge(32, mx[c], vx[c] * 32, 32, my[c], vy[c] * 32)
        assert (count, mean[c], variance[c]) == pytest.approx((n, m, m2 / n), rel=8 * U)
    assert merge_moments(0, 0.0, 0.0, 2, 1.0, 3.0) == (2, 1.0, 3.0)


@pytest.mark.parametrize("counts", [(-1, 2), (2, -1), (0, 0)])
def test_merge_moments_refuses_counts_that_count_nothing(counts):
    with pytest.raises(ArgumentError, match=f"merge_moments: counts .* got {counts[0]} and {counts[1]}"):
        merge_moments(counts[0], 0.0, 1.0, counts[1], 0.0, 1.0)
