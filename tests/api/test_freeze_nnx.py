"""Freezing live NNX modules through the function of all frameworks."""

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.errors import ArgumentError

nnx = pytest.importorskip("flax.nnx", reason="live modules of the real Flax")


def test_freezing_an_nnx_module():
    from batchnorm.flax import BatchNorm

    class Net(nnx.Module):
        def __init__(self):
            self.bn = BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.bn(x)

    model = Net()
    assert bn.freeze(model).changed == ("bn",)
    model.train()
    before = np.asarray(model.bn.mean[...])
    model(np.full((4, 3), 5.0, "f4"))
    np.testing.assert_array_equal(np.asarray(model.bn.mean[...]), before)
    assert bn.freeze(model).unchanged[0].why == "it is frozen already"
    assert bn.unfreeze(model).changed == ("bn",)
    model(np.full((4, 3), 5.0, "f4"))
    assert np.all(np.asarray(model.bn.mean[...]) > before)
    with pytest.raises(ArgumentError, match="convert"):
        bn.freeze(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
