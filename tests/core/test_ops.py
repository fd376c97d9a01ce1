"""The NumPy operations against the float64 reference: every dtype, layout, axis and mask."""

import ml_dtypes
import numpy as np
import pytest

from batchnorm.core import reference
from batchnorm.core.dtypes import unit_roundoff
from batchnorm.core.ops import batch_norm, batch_norm_grad, moments, normalize

EPSILON = 1e-3
U64 = 2.0**-53
DTYPES = ["float16", ml_dtypes.bfloat16, "float32", "float64"]
AXES = {  # shape, axis
    "dense": ((32, 5), -1),
    "channels last": ((4, 5, 6, 3), -1),
    "channels first": ((4, 3, 5, 6), 1),
    "axis 0": ((3, 40), 0),
    "sequence": ((6, 7, 3), 2),
    "one axis": ((9,), 0),
    "two axes": ((6, 3, 4, 2), (1, 3)),
    "two axes, backwards": ((6, 3, 4), (-1, 0)),
    "five axes": ((2, 3, 2, 3, 4), 1),
}


def draw(shape, dtype="float64", seed=0, mean=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * 1.5 + mean).astype(dtype)


def sorted_axes(axis, rank):
    return tuple(sorted({a % rank for a in np.atleast_1d(axis).tolist()}))


def channels_of(shape, kept):
    return tuple(shape[a] for a in kept)


def spread(values, shape, kept):
    return np.reshape(values, [n if i in kept else 1 for i, n in enumerate(shape)])


def statistics_bound(count):
    """Relative, for n summed deviations in float64: docs/NUMERICS.md, `moments`."""
    return (count + 4) * U64


def output_bound(y, x_hat, gamma, beta, count, dtype):
    """Absolute, per element: docs/NUMERICS.md, `batch_norm`."""
    inner = np.abs(gamma) * (count + 8) * U64 * (1 + np.abs(x_hat)) + 4 * U64 * (np.abs(y) + np.abs(beta))
    return unit_roundoff(dtype) * np.abs(y) * (1 + 2 * U64) + inner


@pytest.mark.parametrize("case", AXES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments(case, dtype):
    shape, axis = AXES[case]
    x, kept = draw(shape, dtype), sorted_axes(axis, len(shape))
    mean, variance = (one.reshape(channels_of(shape, kept)) for one in reference.moments(x, axis=kept))
    got = moments(x, axis)
    assert got.count * mean.size == x.size
    assert got.mean.dtype == got.variance.dtype == np.float64
    bound = statistics_bound(got.count)
    assert np.all(np.abs(got.mean - mean) <= bound * np.sqrt(variance) + U64 * np.abs(mean))
    assert np.all(np.abs(got.variance - variance) <= bound * variance)


@pytest.mark.parametrize("case", AXES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_norm_and_normalize(case, dtype):
    shape, axis = AXES[case]
    x, kept = draw(shape, dtype), sorted_axes(axis, len(shape))
    channels = channels_of(shape, kept)
    gamma, beta = draw(channels, seed=1), draw(channels, seed=2)
    wanted = reference.training(x, gamma, beta, epsilon=EPSILON, axis=kept)
    y, batch = batch_norm(x, gamma, beta, epsilon=EPSILON, axis=axis)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    g, b = spread(gamma, shape, kept), spread(beta, shape, kept)
    bound = output_bound(wanted, (wanted - b) / g, g, b, batch.count, dtype)
    assert np.all(np.abs(y.astype(np.float64) - wanted) <= bound)

    wanted = reference.inference(x, batch.mean, batch.variance, gamma, beta, epsilon=EPSILON, axis=kept)
    y = normalize(x, batch.mean, batch.variance, gamma, beta, epsilon=EPSILON, axis=axis)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert np.all(np.abs(y.astype(np.float64) - wanted) <= output_bound(wanted, (wanted - b) / g, g, b, 0, dtype))


@pytest.mark.parametrize("case", AXES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients(case, dtype):
    shape, axis = AXES[case]
    x, grad, kept = draw(shape, dtype), draw(shape, dtype, 3), sorted_axes(axis, len(shape))
    channels = channels_of(shape, kept)
    gamma = draw(channels, seed=1)
    dx, dgamma, dbeta = reference.backward(grad, x, gamma, epsilon=EPSILON, axis=kept)
    got = batch_norm_grad(grad, x, gamma, epsilon=EPSILON, axis=axis)
    assert (got.x.shape, got.x.dtype) == (x.shape, x.dtype)
    # Sums of n terms g*x_hat, each off by n roundings of x_hat; |g|, |x_hat|, |gamma*inv_std| are at most 8 here.
    count = x.size / max(1, gamma.size)
    sums = (count + 16) * U64 * 8 * 8 * count
    np.testing.assert_allclose(got.gamma, dgamma.reshape(channels), rtol=0, atol=sums)
    np.testing.assert_allclose(got.beta, dbeta.reshape(channels), rtol=0, atol=sums)
    inner = (count + 16) * U64 * 8**4
    if count > 1:
        assert np.all(np.abs(got.x - dx) <= unit_roundoff(dtype) * np.abs(dx) + inner)
    else:  # a single element per channel: 1/sqrt(epsilon) = 32 magnifies an exact cancellation
        assert np.all(np.abs(got.x) <= inner)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [-1, 1, (1, 2)], ids=str)
def test_masks(axis, dtype):
    x = draw((6, 4, 3), dtype)
    kept = sorted_axes(axis, 3)
    mask = np.random.default_rng(5).random([n for i, n in enumerate(x.shape) if i not in kept]) < 0.6
    x[np.broadcast_to(spread_mask(~mask, x.shape, kept), x.shape)] *= 30  # padding that would show
    grad = draw(x.shape, seed=3)
    got = moments(x, axis, mask=mask)
    mean, variance = (one.reshape(got.mean.shape) for one in reference.moments(x, axis=kept, mask=mask))
    assert got.count == mask.sum()
    bound = statistics_bound(x.size)
    assert np.all(np.abs(got.mean - mean) <= bound * np.sqrt(variance) + U64 * np.abs(mean))
    assert np.all(np.abs(got.variance - variance) <= bound * variance)
    y, _ = batch_norm(x, epsilon=EPSILON, axis=axis, mask=mask)
    wanted = reference.training(x, None, None, epsilon=EPSILON, axis=kept, mask=mask)
    assert np.all(np.abs(y.astype(np.float64) - wanted) <= output_bound(wanted, wanted, 1, 0, x.size, dtype))
    dx, dgamma, dbeta = reference.backward(grad, x, None, epsilon=EPSILON, axis=kept, mask=mask)
    back = batch_norm_grad(grad, x, epsilon=EPSILON, axis=axis, mask=mask)
    scale = max(1.0, float(np.max(np.abs(wanted)))) ** 2 * 8  # |x_hat| reaches 60 in the padding
    assert np.all(np.abs(back.x.astype(np.float64) - dx) <= unit_roundoff(dtype) * np.abs(dx) + bound * scale)
    np.testing.assert_allclose(back.gamma.ravel(), dgamma, atol=bound * scale * x.size)
    np.testing.assert_allclose(back.beta.ravel(), dbeta, atol=bound * scale * x.size)


def spread_mask(mask, shape, kept):
    return mask.reshape([1 if i in kept else n for i, n in enumerate(shape)])


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (6, 1, 1), (1, 4, 1), (6, 1), (1, 4)], ids=str)
def test_masks_broadcast(shape):
    x = draw((6, 4, 3))
    mask = np.arange(np.prod(shape)).reshape(shape) % 3 != 1
    full = np.broadcast_to(mask.reshape((*mask.shape, 1)[:3] if mask.ndim == 2 else shape), (6, 4, 1))[..., 0]
    got, wanted = moments(x, mask=mask), moments(x, mask=np.ascontiguousarray(full))
    assert got.count == full.sum()
    assert np.array_equal(got.mean, wanted.mean)
    assert np.array_equal(got.variance, wanted.variance)


def test_a_mask_of_true_is_no_mask():
    x = draw((6, 4, 3))
    assert np.array_equal(batch_norm(x, epsilon=1.0, mask=np.ones((6, 4), bool))[0], batch_norm(x, epsilon=1.0)[0])


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_error_does_not_grow_with_the_mean(mean, layout, dtype):
    x = draw((256, 3), dtype, mean=mean * 1.5)
    x, axis = (np.ascontiguousarray(x.T), 0) if layout == "first" else (x, 1)
    wanted = reference.training(x, None, None, epsilon=EPSILON, axis=axis)
    y, batch = batch_norm(x, epsilon=EPSILON, axis=axis)
    assert np.all(np.abs(y - wanted) <= output_bound(wanted, wanted, 1, 0, 256, dtype))
    _, variance = reference.moments(x, axis=axis)
    assert np.all(np.abs(batch.variance - variance) <= statistics_bound(256) * variance)
    # What Keras on torch and NumPy, Flax and Haiku do in float32, for contrast: wrong by orders of magnitude.
    if dtype == "float32" and mean >= 1e4:
        reduced = 1 - axis
        peers = np.mean(x * x, axis=reduced) - np.mean(x, axis=reduced) ** 2
        assert np.max(np.abs(peers - variance) / variance) > 1


def test_normalize_subtracts_first_where_the_peers_scale_and_shift():
    x = (np.float32(1e6) + np.linspace(-2, 2, 65, dtype=np.float32))[:, None]
    y = normalize(x, [1e6], [2.0], epsilon=1e-5)
    wanted = reference.inference(x, [1e6], [2.0], None, None, epsilon=1e-5)
    scale = np.float32(1 / np.sqrt(2.00001))
    peers = x * scale + np.float32(-1e6 * float(scale))
    assert np.max(np.abs(y - wanted)) <= 2.0**-24 * np.max(np.abs(wanted)) * (1 + 1e-6)
    assert np.max(np.abs(peers - wanted)) > 1e-3


@pytest.mark.parametrize("value", [3.1e7, 100.1, 1e30, 1e-30, 0.0, -7.7])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_channel_gives_exactly_beta_and_no_variance(value, dtype):
    x = np.full((50, 7, 2), value, dtype)
    y, batch = batch_norm(x, [2.0, 3.0], [0.25, -0.1], epsilon=EPSILON)
    assert batch.variance.tolist() == [0.0, 0.0]
    assert np.all(y == np.array([0.25, -0.1], dtype))


def test_huge_values_stay_finite():
    x = np.array([[1e30], [-1e30], [3e38]], np.float32)
    y, batch = batch_norm(x, epsilon=EPSILON)
    assert np.isfinite(batch.variance).all()
    np.testing.assert_allclose(y, reference.training(x, None, None, epsilon=EPSILON), rtol=2.0**-24 * (1 + 1e-6))


def test_the_golden_case_of_the_question():
    got = normalize([[1.0], [5.0]], [0.05885344], [0.91000736], [0.80644524], epsilon=1e-3)
    np.testing.assert_allclose(got.ravel(), [0.795190530, 4.174857687], rtol=1e-9)


def test_the_numbers_of_a_channel_do_not_depend_on_its_neighbours():
    x = draw((64, 3))
    alone = batch_norm(x[:, :1].copy(), epsilon=EPSILON)[0]
    x[:, 1], x[:, 2] = np.nan, np.inf
    y, batch = batch_norm(x, epsilon=EPSILON)
    # NumPy adds a single column in blocks and several row by row: the sums differ by their rounding.
    np.testing.assert_allclose(y[:, :1], alone, rtol=0, atol=statistics_bound(64) * 4)
    assert np.isnan(y[:, 1:]).all()
    assert np.isnan(batch.variance[1:]).all()


def test_axis_as_list_or_numpy_integer():
    x = draw((4, 3, 2))
    wanted = moments(x, (1, 2))
    for axis in ([1, 2], (np.int64(1), 2), np.array([1, 2]), (2, 1)):
        assert np.array_equal(moments(x, axis).mean, wanted.mean)
    assert np.array_equal(moments(x, np.int32(1)).mean, moments(x, 1).mean)


def test_wider_than_float64_stays_wide():
    x = draw((8, 2)).astype(np.longdouble)
    assert batch_norm(x, epsilon=1.0)[0].dtype == np.longdouble
