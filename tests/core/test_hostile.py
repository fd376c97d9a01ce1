"""Arrays that break things: empty, single, NaN, odd strides, odd types, wrong shapes."""

import numpy as np
import pytest

from batchnorm.core.ops import batch_norm, batch_norm_grad, moments, normalize
from batchnorm.core.plan import plan
from batchnorm.errors import ArgumentError

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)

LAYOUTS = {
    "reversed": X[::-1, ::-1][::-1, ::-1],
    "transposed": np.ascontiguousarray(X.T).T,
    "every other": np.repeat(X, 2, axis=0)[::2],
    "from a wider array": np.pad(X, 3)[3:-3, 3:-3],
    "read-only": np.frombuffer(X.tobytes(), np.float32).reshape(X.shape),
    "big-endian": X.astype(">f4"),
    "unaligned": np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(X.shape),
    "a list": X.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_memory_layout_changes_no_number(layout):
    odd = LAYOUTS[layout]
    for axis in (0, 1):
        got, wanted = moments(odd, axis), moments(X, axis)
        # Another order of the axes in memory is another order of the sums.
        np.testing.assert_allclose(got.mean, wanted.mean, rtol=0, atol=10 * 2.0**-53)
        np.testing.assert_allclose(got.variance, wanted.variance, rtol=10 * 2.0**-53)
        y, _ = batch_norm(odd, epsilon=1e-3, axis=axis)
        np.testing.assert_allclose(y, batch_norm(X, epsilon=1e-3, axis=axis)[0], rtol=2.0**-23, atol=1e-15)


def test_broadcast_views_with_stride_0():
    x = np.broadcast_to(np.float32([[1.0], [3.0]]), (2, 5))
    assert moments(x, 0).variance.tolist() == [0.0, 0.0]
    assert moments(x, 1).variance.tolist() == [1.0] * 5


def test_the_input_is_never_written():
    x, grad = X.copy(), X[::-1].copy()
    batch_norm_grad(grad, x, epsilon=1e-3)
    batch_norm(x, epsilon=1e-3, mask=np.arange(6) < 4)
    normalize(x, np.zeros(4), np.ones(4), epsilon=1e-3)
    assert np.array_equal(x, X)
    assert np.array_equal(grad, X[::-1])


def test_one_element_per_channel_has_variance_0():
    got = moments([[7.0, 8.0]])
    assert (got.count, got.mean.tolist(), got.variance.tolist()) == (1, [7.0, 8.0], [0.0, 0.0])
    y, _ = batch_norm([[7.0, 8.0]], None, [0.5, -0.5], epsilon=1e-3)
    assert y.tolist() == [[0.5, -0.5]]


def test_no_channels_at_all():
    assert moments(np.empty((5, 0))).mean.shape == (0,)
    assert batch_norm(np.empty((5, 0)), epsilon=1e-3)[0].shape == (5, 0)


def test_an_empty_input_can_be_normalised_but_not_summarised():
    assert normalize(np.empty((0, 3)), np.zeros(3), np.ones(3), epsilon=1e-3).shape == (0, 3)
    for call in (moments, lambda x: batch_norm(x, epsilon=1e-3), lambda x: batch_norm_grad(x, x, epsilon=1e-3)):
        with pytest.raises(ArgumentError, match=r"no element to take statistics of .* shape \(0, 3\): it is empty"):
            call(np.empty((0, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_nan_shows_in_its_channel_without_a_word_from_numpy(bad):
    x = X.copy()
    x[2, 1] = bad
    y, batch = batch_norm(x, epsilon=1e-3)
    assert np.isnan(y[2, 1])
    assert not np.isfinite(batch.variance[1])
    assert np.isfinite(np.delete(y, 1, axis=1)).all()
    assert np.isnan(batch_norm_grad(X, x, epsilon=1e-3).x[:, 1]).all()


def test_nan_in_padding_stays_in_the_padding():
    x, mask = X.copy(), np.arange(6) != 2
    x[2] = np.nan
    y, batch = batch_norm(x, epsilon=1e-3, mask=mask)
    assert np.isnan(y[2]).all()
    assert np.isfinite(y[mask]).all()
    assert np.isfinite(batch.variance).all()
    grad = X * mask[:, None]  # a loss that ignores padding
    back = batch_norm_grad(grad, x, epsilon=1e-3, mask=mask)
    assert all(np.isfinite(one).all() for one in back)
    grad[2] = 1.0  # one that does not
    assert np.isnan(batch_norm_grad(grad, x, epsilon=1e-3, mask=mask).gamma).all()


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (np.ones((2, 2), complex), "complex128"),
        ([["a", "b"]], "<U1"),
        ([[None, 1]], "object"),
        (np.zeros((2, 2), "M8[s]"), r"datetime64\[s\]"),
        (np.zeros((2, 2), "m8[s]"), r"timedelta64\[s\]"),
        (np.zeros(3, [("a", "f4")]), "a"),
    ],
)
def test_what_is_no_real_number_is_refused(x, dtype):
    with pytest.raises(TypeError, match=f"moments: the input must hold real numbers; got dtype .*{dtype}"):
        moments(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: moments(np.ones((4, 3)), 5),
            r"moments: axis must be between -2 and 1 for an input of shape \(4, 3\); got 5\. Pass the axis that holds",
        ),
        (lambda: moments(np.ones((4, 3)), (0, -2)), r"moments: axis must name each channel axis once; got \(0, -2\)"),
        (lambda: moments(np.ones((4, 3)), ()), r"moments: axis must name each channel axis once; got \(\)"),
        (lambda: moments(np.ones((4, 3)), "x"), "moments: axis must be an integer or a sequence of integers; got 'x'"),
        (lambda: moments(np.ones((4, 3)), 1.0), r"axis must be an integer or a sequence of integers; got 1\.0"),
        (lambda: moments(3.0), "moments: the input must have at least one axis, the channels; got a single number"),
        (
            lambda: moments(np.ones((4, 3, 2)), mask=np.ones((4, 2), bool)),
            r"moments: mask must have the shape \(4, 3\) .* or broadcast to \(4, 3, 1\), .*; got \(4, 2\)",
        ),
        (lambda: moments(np.ones((4, 3)), mask=np.ones((4, 3), bool)), r"got \(4, 3\)"),
        (lambda: moments(np.ones((4, 3)), mask=np.bool_(True)), r"mask must have the shape \(4,\)"),
        (lambda: moments(np.ones((4, 3)), mask=np.zeros(4, bool)), "every position is masked"),
        (
            lambda: normalize(np.ones((4, 3)), np.zeros(4), np.ones(3), epsilon=1e-3),
            r"normalize: mean must have the shape \(3,\) of the channel axes; got \(4,\)",
        ),
        (lambda: batch_norm(np.ones((4, 3)), [1.0], epsilon=1e-3), r"batch_norm: gamma must have the shape \(3,\)"),
        (lambda: batch_norm(np.ones((4, 3)), epsilon=-1e-3), r"batch_norm: epsilon must be at least 0; got -0\.001"),
        (lambda: batch_norm(np.ones((4, 3)), epsilon=np.nan), "epsilon must be at least 0; got nan"),
        (
            lambda: batch_norm_grad(np.ones((3, 4)), np.ones((4, 3)), epsilon=1e-3),
            r"batch_norm_grad: grad must have the shape of x, \(4, 3\); got \(3, 4\)",
        ),
    ],
)
def test_bad_arguments_name_the_function_and_the_values(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(
        TypeError, match="moments: mask must be boolean, True where an element counts; got dtype float64"
    ):
        moments(np.ones((4, 3)), mask=np.ones(4))


def test_plans_are_shapes_only():
    one = plan((4, 3, 5), (2, 0))
    assert (one.kept, one.reduced, one.channel_shape) == ((0, 2), (1,), (4, 5))
    assert (one.broadcast_shape, one.count) == ((4, 1, 5), 3)
    assert plan((4, 3, 5), (2, 0)) is one
