"""The second pass alone: any number near the mean will do, and its derivative is the whole derivative."""

import numpy as np
import pytest

from batchnorm.core import equations


@pytest.mark.parametrize("offset", [0.0, 0.3, -2.0])
def test_it_is_exact_around_any_number_near_the_mean(offset):
    x = np.random.default_rng(0).normal(5, 2, (50, 3))
    got = equations.moments_around(np, x, np.full((1, 3), 5.0 + offset), (0,), 50)
    # 50 numbers up to about 60 (squares of distances up to 8): 50 * 60 * u
    np.testing.assert_allclose(got.mean, x.mean(0, keepdims=True), rtol=0, atol=50 * 60 * 2.0**-53)
    np.testing.assert_allclose(got.variance, x.var(0, keepdims=True), rtol=0, atol=50 * 60 * 2.0**-53)


def test_parts_of_a_batch_add_up_by_way_of_total():
    x = np.random.default_rng(0).normal(5, 2, (50, 3))
    mask = np.random.default_rng(1).random((50, 1)) < 0.7
    count, high = int(mask.sum()), np.full((1, 3), 5.0)
    whole = equations.moments_around(np, x, high, (0,), count, mask)
    totals = []

    def first_half(here):
        other = {0: x[30:] - high, 1: (x[30:] - high) ** 2}[len(totals)]
        totals.append(here + np.where(mask[30:], other, 0).sum(0, keepdims=True))
        return totals[-1]

    split = equations.moments_around(np, x[:30], high, (0,), count, mask[:30], total=first_half)
    np.testing.assert_allclose(split.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(split.variance, whole.variance, rtol=1e-13)
