"""Recalibration of the layer on NumPy arrays."""

import numpy as np
import pytest

import batchnorm as bn


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(1000, 2, (300, 5, 3)).astype("f")


def trained(data, **more):
    layer = bn.BatchNormalization(axis=1, **more)
    for part in np.split(data[:100], 10):
        layer(part, training=True)
    return layer


@pytest.mark.parametrize("method", ["one-pass", "sequential"])
@pytest.mark.parametrize("statistics", ["moving", "debiased", "cumulative"])
def test_it_holds_the_statistics_of_the_data(data, method, statistics):
    layer = trained(data, statistics=statistics)
    gamma = layer.gamma.copy()
    found = bn.recalibrate(layer, data, method=method)
    wide = data.astype(np.float64)
    # float32 rounds a mean of 1000 to 3e-5.
    assert np.abs(found.layers[0].after.mean - wide.mean((0, 2))).max() < 1e-9
    assert np.abs(found.layers[0].after.variance / wide.var((0, 2)) - 1).max() < 1e-9
    mean, variance = layer.inference_statistics()
    np.testing.assert_allclose(mean, wide.mean((0, 2)), rtol=1e-7)
    np.testing.assert_allclose(variance, wide.var((0, 2)), rtol=1e-6)
    np.testing.assert_array_equal(layer.gamma, gamma)
    assert found.gap.after < found.gap.before or statistics == "cumulative"
    record = bn.load(layer).layers[0]
    assert record.initial_weight is None, "nothing of an initial value is in them, and none is claimed"
    assert "BN107" not in [each.rule.code for each in bn.check(layer).findings]


def test_an_error_leaves_it_as_it_was(data):
    layer = trained(data)
    before, updates = layer.get_weights(), layer.updates
    with pytest.raises(bn.Refused, match="no file format"):
        bn.recalibrate(layer, data, out="layer.npz")
    with pytest.raises(bn.ArgumentError):
        bn.recalibrate(layer, data[:, :4])
    assert layer.updates == updates == 10
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_debias_is_what_the_debiased_layer_holds(data):
    layer, twin = trained(data), trained(data, statistics="debiased")
    bn.recalibrate(layer, debias=True)
    np.testing.assert_allclose(layer.moving_mean, twin.inference_statistics()[0], rtol=1e-5)
