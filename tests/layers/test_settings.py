"""Settings that a layer cannot take, at construction and set later; the NumPy layer stands for those of one code."""

import numpy as np
import pytest

from batchnorm.errors import ArgumentError
from batchnorm.layers.numpy import BatchNormalization


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("virtual_batch_size", -1, "virtual_batch_size must be an integer of at least 1; got -1"),
        ("renorm_clipping", {"rmax": -1.0}, r"renorm_clipping\['rmax'\] must be at least 0.*got -1.0"),
        ("renorm_clipping", "rmax", "renorm_clipping must be a mapping such as .*got 'rmax'"),
        ("renorm_clipping", {1: 2, "a": 3}, r"renorm_clipping takes .*got \[1, 'a'\]"),
        ("epsilon", "0.5", "epsilon must be a number; got '0.5'"),
        ("momentum", 10**400, "momentum must be a number; got 1000"),
    ],
)
def test_bad_settings_are_refused_also_later(name, value, message):
    with pytest.raises(ArgumentError, match=f"bn: {message}"):
        BatchNormalization(name="bn", renorm=True, **{name: value})
    layer = BatchNormalization(name="bn", renorm=True)
    with pytest.raises(ArgumentError, match=f"bn: {message}"):
        setattr(layer, name, value)  # -1 gave an output that nothing had been written into


def test_limits_of_renorm_set_later_count():
    x = np.random.default_rng(0).normal(5, 3, (8, 2))
    limits = {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0}
    layer = BatchNormalization(renorm=True)
    layer.renorm_clipping = limits
    expected = BatchNormalization(renorm=True, renorm_clipping=limits)(x, training=True)
    np.testing.assert_array_equal(layer(x, training=True), expected)
    assert layer.renorm_clipping == limits


def test_settings_are_kept_in_their_own_type():
    layer = BatchNormalization(ddof=np.int64(1), virtual_batch_size=np.int64(2))
    assert type(layer.ddof) is int
    assert type(layer.virtual_batch_size) is int
    with pytest.raises(ArgumentError, match="ddof must be one of 0, 1; got array"):
        BatchNormalization(ddof=np.array([0, 1]))
    with pytest.raises(ArgumentError, match="dtype must be one of 'float32', 'float64'; got 'None'"):
        BatchNormalization(dtype=None)
