"""The NumPy layer by the kernels: the same as its passes in float64, for everything that a large batch can be."""

import numpy as np
import pytest

from batchnorm.core.dtypes import unit_roundoff
from batchnorm.layers import fused
from batchnorm.layers.fused import FusedTape
from batchnorm.layers.numpy import BatchNormalization

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((40, 30, 32)) * 2 + 1).astype(np.float32)
GRAD = RNG.standard_normal(X.shape).astype(np.float32)
MASK = RNG.random((40, 30)) < 0.7


def close(one, other, dtype="float32"):
    # 12 roundings of float32 arithmetic, and two of the type (one each way).
    size = np.max(np.abs(np.asarray(other, np.float64)), initial=1.0)
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return np.all(np.abs(one - other) <= 12 * 2.0**-24 * size + 2 * unit_roundoff(dtype) * np.abs(other))


def both(monkeypatch, x, *, mask=None, training=True, grad=GRAD, fused_too=True, **options):
    """All that two calls and a way back leave, with the kernels and without."""
    found = []
    for smallest in (fused.SMALLEST, 10**9):
        monkeypatch.setattr(fused, "SMALLEST", smallest)
        layer = BatchNormalization(**options)
        layer(x, training=True, mask=mask)
        y = layer(x, training=training, mask=mask)
        assert isinstance(layer._tapes, FusedTape) == (smallest < 10**9 and fused_too)
        dx = layer.backward(grad)
        weights = [*layer.get_weights(), *(one for one in layer.gradients if one is not None)]
        found.append([y, dx, *weights, layer.skipped_updates, layer.predict(x)])
        assert y.dtype == x.dtype
        assert dx.dtype == x.dtype
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"axis": 1, "momentum": 0.9, "ddof": 1},
        {"statistics": "debiased", "center": False},
        {"statistics": "cumulative", "scale": False},
        {"dtype": "float64"},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_as_without_the_kernels(options, training, monkeypatch):
    for one, other in zip(*both(monkeypatch, X, training=training, **options), strict=True):
        assert close(one, other)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_element_types(dtype, monkeypatch):
    for one, other in zip(*both(monkeypatch, X.astype(dtype), grad=GRAD.astype(dtype)), strict=True):
        assert close(one, other, dtype)


def test_masks_and_what_is_masked_throughout(monkeypatch):
    for mask in (MASK, np.zeros((40, 30), bool)):
        for one, other in zip(*both(monkeypatch, X, mask=mask), strict=True):
            assert close(one, other)


def test_a_nan_is_guarded_against(monkeypatch):
    x = X.copy()
    x[3, 4, 5] = np.nan
    with_kernels, without = both(monkeypatch, x)
    assert with_kernels[-2].tolist() == without[-2].tolist() == [2 * (channel == 5) for channel in range(32)]
    assert np.array_equal(np.isnan(with_kernels[0]), np.isnan(without[0]))


def test_what_the_kernels_do_not_take(monkeypatch):
    for options in ({"renorm": True}, {"virtual_batch_size": 7}, {"axis": (1, 2)}):
        both(monkeypatch, X, fused_too=False, **options)


def test_one_element_a_channel_is_said_and_learned_nothing_from():
    layer = BatchNormalization(center=False)
    x = RNG.standard_normal((1, fused.SMALLEST)).astype(np.float32)
    with pytest.warns(UserWarning, match="training on one element per channel"):
        y = layer(x, training=True)
    assert not y.any()
    assert not layer.moving_mean.any()


def test_values_beyond_float32_are_computed_in_float64():
    x = (X.astype(np.float64) * 2e37).astype(np.float32)
    layer = BatchNormalization()
    y = layer(x, training=True)
    assert np.isfinite(y).all()
    assert not isinstance(layer._tapes, FusedTape)
    assert layer.skipped_updates.all()  # the variance is beyond float32
