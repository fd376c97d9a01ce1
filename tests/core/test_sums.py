"""Sums in short runs: every way to cut an axis, against exactly rounded ones."""

import math

import numpy as np
import pytest

from batchnorm.core.sums import has_runs, in_runs, mean_in_runs, runs

U32 = 2.0**-24


class Unknown(np.ndarray):
    """An array that does not say its lengths, as a tensor of a graph may not."""

    @property
    def shape(self):
        return (None,) * self.ndim


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4096, 3), (0,)),
        ((1009, 3), (0,)),
        ((3, 4096), (1,)),
        ((64, 9, 7, 3), (0, 1, 2)),
        ((6, 3, 130, 5), (0, 2, 3)),
        ((2, 67, 3, 200), (1, 3)),
        ((5, 8, 8, 3), (0, 1, 2)),
        ((7, 3), (0,)),
        ((7, 3), ()),
    ],
    ids=str,
)
def test_every_cut_is_the_exact_sum(shape, axes):
    x = np.random.default_rng(0).uniform(0.5, 1.5, shape).astype(np.float32)
    got = in_runs(np, x, axes)
    assert got.dtype == np.float32
    assert got.shape == tuple(1 if i in axes else n for i, n in enumerate(shape))
    rows = np.moveaxis(x, axes, range(len(axes))).reshape(math.prod(x.shape[i] for i in axes), -1)
    wanted = np.array([math.fsum(column) for column in rows.T.astype(np.float64)])
    # Chains of at most 64 additions of positive numbers: half of u each at worst, in up to three stages.
    assert np.max(np.abs(got.ravel() - wanted) / wanted) <= 96 * U32
    count = math.prod(x.shape[i] for i in axes)
    assert not has_runs(x, axes, count + 1)
    assert has_runs(x, axes, count) == (1009 not in shape and 67 not in shape)
    if axes and has_runs(x, axes, count):
        mean = mean_in_runs(np, x, axes)
        assert (mean.dtype, mean.shape) == (got.dtype, got.shape)
        # And a division in each stage.
        assert np.max(np.abs(mean.ravel() - wanted / count) / wanted * count) <= 100 * U32


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 67, 1009, 4096, 131072, 65 * 1009])
def test_runs_are_short_and_multiply_to_the_length(length):
    found = runs(length)
    assert all(n <= 64 for n in found)
    assert math.prod(found) == length if found else length > 64


def test_one_number_after_another_takes_sides_and_runs_do_not():
    # Ones and a rounding's worth more: 2**24 + 1 is not a float32, so beyond 2**24 a plain sum loses every one of them.
    x = np.full((2**17, 1), 256 + 2**-9, np.float32)
    exact = 2**17 * (256 + 2**-9)
    assert abs(np.add.reduce(np.concatenate([x, x], 1), axis=0)[0] - exact) / exact > 4e-6
    assert abs(in_runs(np, x, (0,)).item() - exact) / exact <= U32
    assert mean_in_runs(np, x, (0,)).item() == 256 + 2**-9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_unknown_length_is_summed_twice(dtype):
    x = np.random.default_rng(1).uniform(0.5, 1.5, (5000, 3)).astype(dtype)
    got = np.asarray(in_runs(Namespace, x.view(Unknown), (0,)))
    wanted = np.array([math.fsum(column) for column in x.T.astype(np.float64)])
    assert got.dtype == dtype
    assert np.max(np.abs(got.ravel() - wanted) / wanted) <= 2 * U32  # the sum's own rounding, and the correction's


class Namespace:
    """NumPy for arrays that do not say their lengths."""

    @staticmethod
    def sum(values, axis, keepdims=False):
        return np.add.reduce(np.asarray(values), axis=axis, keepdims=keepdims).view(Unknown)

    where, isfinite = np.where, np.isfinite


def test_nothing_and_what_is_not_finite_pass_through():
    assert in_runs(np, np.zeros((0, 3), np.float32), (0,)).tolist() == [[0.0] * 3]
    x = np.ones((200, 3))
    x[150, 1], x[3, 2] = np.inf, np.nan
    assert np.array_equal(in_runs(np, x, (0,)), [[200.0, np.inf, np.nan]], equal_nan=True)
