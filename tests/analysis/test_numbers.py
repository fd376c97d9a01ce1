"""What is printed is what was computed: formula gives y to the last bit, digits are the shortest that round-trip."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm.analysis.explain import Request, explain_layer
from batchnorm.analysis.numbers import digits, shown
from batchnorm.analysis.reasons import updates_until
from batchnorm.core.dtypes import unit_roundoff
from batchnorm.core.record import LayerRecord

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
NAMES = {"sqrt": np.sqrt, "nan": math.nan, "inf": math.inf}
ANY = st.one_of(
    st.floats(-1e4, 1e4),
    st.floats(allow_nan=False),
    st.sampled_from([0.0, -0.0, 1e-36, -1e-36, 1e36, -1e36, 1.0, -1.0, 5e-324, 1e15, 2.0**53 + 2, 9.9e15, 0.1]),
)
VARIANCE = st.one_of(st.floats(0, 1e4), st.sampled_from([0.0, 1e-36, 1e-30, 6e-8, 1.0, 1e36, 0.91000736]))
EPSILON = st.sampled_from([1e-3, 1e-5, 1.001e-5, 1e-12, 0.1])


def stored(values, dtype):
    with np.errstate(all="ignore"):
        return np.array(values, np.float64).astype(DTYPES[dtype])


def record(dtype, channels, axis=-1, **arrays):
    return LayerRecord(
        name="bn", kind="K", channels=channels, axis=axis, dtype=dtype, epsilon_source="file", averaging="exponential",
        decay=0.99, momentum=0.99, ddof=0, **({"epsilon": 1e-3} | arrays),
    )  # fmt: skip


@st.composite
def layers(draw):
    dtype, channels = draw(st.sampled_from(list(DTYPES))), draw(st.integers(1, 3))
    many = st.lists(ANY, min_size=channels, max_size=channels)
    layer = record(
        dtype,
        channels,
        epsilon=draw(EPSILON),
        gamma=draw(st.none() | many.map(lambda values: stored(values, dtype))),
        beta=draw(st.none() | many.map(lambda values: stored(values, dtype))),
        moving_mean=stored(draw(many), dtype),
        moving_variance=stored(draw(st.lists(VARIANCE, min_size=channels, max_size=channels)), dtype),
    )
    x = stored(draw(st.lists(many, min_size=1, max_size=3)), draw(st.sampled_from(list(DTYPES))))
    return layer, x


@settings(max_examples=150, deadline=None)
@given(layers(), st.sampled_from(["inference", "training"]))
def test_formula_evaluates_to_y_exactly(case, mode):
    layer, x = case
    for channel in explain_layer(layer, Request(x=x, mode=mode)).explained:
        for value in channel.values:
            with np.errstate(all="ignore"):
                y = eval(value.formula, {"__builtins__": {}}, NAMES)  # noqa: S307
            assert np.array_equal(y, value.y, equal_nan=True), (value.formula, y, value.y)


@settings(max_examples=100, deadline=None)
@given(layers())
def test_y_is_the_layer_on_the_numbers_as_stored(case):
    """Printing the shortest digits moves each number by at most half a unit in its last place, y by a few of them."""
    layer, x = case
    u = unit_roundoff(layer.dtype) + unit_roundoff(x.dtype)
    for channel in explain_layer(layer, Request(x=x)).explained:
        c = channel.channel
        gamma = 1.0 if layer.gamma is None else layer.gamma[c]
        beta = 0.0 if layer.beta is None else layer.beta[c]
        mean, variance = layer.moving_mean[c], layer.moving_variance[c]
        for value in channel.values:
            own = x[value.index]
            if not all(map(is_normal, (own, gamma, beta, mean, variance))):
                continue  # subnormals are off by an absolute amount instead
            numbers = [float(v) for v in (own, gamma, beta, mean, variance)]
            with np.errstate(all="ignore"):
                y, allowed = by_hand(*numbers, layer.epsilon, u)
            if np.isfinite(y) and np.isfinite(allowed):
                assert abs(value.y - y) <= allowed


def is_normal(value):
    return value == 0 or abs(float(value)) >= float(ml_dtypes.finfo(np.asarray(value).dtype).smallest_normal)


def by_hand(x, gamma, beta, mean, variance, epsilon, u):
    """The output, and how far from it printed digits may lead: u for each of gamma, x, mean and beta, u/2 for the root
    of the variance; and the float64 arithmetic itself, whose products may be subnormal."""
    inverse = 1 / np.sqrt(np.float64(variance) + epsilon)
    size = abs(gamma) * inverse * (abs(x) + abs(mean))
    return gamma * (x - mean) * inverse + beta, 3 * u * size + u * abs(beta) + 1e-300


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_half_round_trips_in_the_fewest_digits(dtype):
    every = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])
    with np.errstate(invalid="ignore"):
        every = every[np.isfinite(every.astype(np.float64))]
    values = shown(every)
    np.testing.assert_array_equal(values.astype(DTYPES[dtype]), every)
    picked = np.random.default_rng(0).integers(0, every.size, 300)
    for value, own in zip(values[picked], every[picked], strict=True):
        significant = len(digits(value).split("e")[0].replace(".", "").lstrip("-0").rstrip("0"))
        if significant > 1:
            shorter = float(f"{float(own):.{significant - 2}e}")
            assert np.float64(shorter).astype(DTYPES[dtype]) != own, (own, value, shorter)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_single_precision_round_trips(value):
    assert np.float32(shown(np.float32(value))) == np.float32(value)
    assert float(digits(float(shown(np.float32(value))))) == float(shown(np.float32(value)))


def test_large_integers_are_reckoned_as_floats():
    """3*(9100000000000000 - 1) is exact in Python's integers, and off by one unit of a float's last place from y."""
    layer = record("float64", 1, gamma=np.array([3.0]), moving_mean=np.array([1.0]), moving_variance=np.array([0.0]))
    (channel,) = explain_layer(layer, Request(x=[9.1e15])).explained
    assert eval(channel.values[0].formula, {"__builtins__": {}}, NAMES) == channel.values[0].y  # noqa: S307


def test_digits():
    assert [digits(v) for v in (1.0, -0.0, 0.80644524, 1e-36, 1e44, 9.1e15, math.nan, -math.inf)] == [
        "1", "-0", "0.80644524", "1e-36", "1e+44", "9.1e+15", "nan", "-inf",
    ]  # fmt: skip


@st.composite
def placed(draw):
    rank = draw(st.integers(2, 4))
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank)))
    axes = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=2, unique=True).map(sorted))
    signed = tuple(a - rank if draw(st.booleans()) else a for a in axes)
    return shape, tuple(axes), signed


@given(placed(), st.data())
def test_index_is_where_the_value_lies(case, data):
    """Channels first, last, in the middle, or over two axes: x[index] is the value, in the right channel."""
    shape, axes, signed = case
    lengths = tuple(shape[a] for a in axes)
    channels = math.prod(lengths)
    x = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    numbers = np.arange(1.0, channels + 1)
    layer = record(
        "float64", channels, axis=signed[0] if len(signed) == 1 else signed, channel_shape=lengths,
        moving_mean=numbers, moving_variance=numbers,
    )  # fmt: skip
    at = data.draw(
        st.none() | st.tuples(*(st.integers(-n, n - 1) for n in shape[: data.draw(st.integers(1, len(shape)))]))
    )
    found = explain_layer(layer, Request(x=x, at=at, limit=1000))
    seen = np.zeros(shape, int)
    for channel in found.explained:
        for value in channel.values:
            assert x[value.index] == value.x
            assert np.ravel_multi_index([value.index[a] for a in axes], lengths) == channel.channel
            seen[value.index] += 1
        assert channel.moving_mean == channel.channel + 1
    wanted = np.zeros(shape, int)
    wanted[... if at is None else at] = 1
    np.testing.assert_array_equal(seen, wanted)


def test_updates_until():
    """Two ways to the same number: the closed form, and counting."""
    assert updates_until(0.99) == 459
    assert updates_until(0.9) == 44
    assert updates_until(0.0) == 1
    assert updates_until(1.0) is None
    for decay in (0.5, 0.9, 0.95, 0.99, 0.997, 0.999):
        count, left = 0, 1.0
        while left >= 0.01:
            count, left = count + 1, left * decay
        assert updates_until(decay) == count
