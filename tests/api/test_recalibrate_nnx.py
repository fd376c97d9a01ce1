"""Recalibration of live NNX modules."""

import numpy as np
import pytest

import batchnorm as bn
from tests.api import padded

nnx = pytest.importorskip("flax.nnx")
jnp = pytest.importorskip("jax.numpy")
EXACT = 1e-5  # standard deviations


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(5, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.noise = nnx.Dropout(0.5, rngs=rngs)
        self.second, self.last = nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.first(x))
        return self.last(self.second(self.noise(nnx.relu(x))))


def data(count=40):
    return (np.random.default_rng(0).normal(3, 2, (count, 5)) + np.linspace(-3, 3, count)[:, None]).astype("f")


def plain():
    return Net(nnx.Rngs(0))


def inputs(model, x):
    """What the two layers get in inference mode, in float64."""
    first = np.asarray(model.first(x), np.float64)
    model.eval()
    second = np.asarray(model.second(nnx.relu(model.norm(model.first(x)))), np.float64)
    model.train()
    return {"norm": first, "last": second}


def test_sequential_is_exact_and_leaves_everything_else():
    model, x = plain(), data()
    model.train()
    kernel = np.asarray(model.first.kernel[...])
    found = bn.recalibrate(model, x, method="sequential", batch_size=8)
    assert found.passes == 2
    assert not any("mark" in note for note in found.notes), "nothing counts updates, and there is no mark"
    for name, wanted in inputs(model, x).items():
        held = getattr(model, name)
        assert np.max(np.abs(np.asarray(held.mean[...]) - wanted.mean(0)) / wanted.std(0)) < EXACT
        assert np.max(np.abs(np.sqrt(np.asarray(held.var[...])) / wanted.std(0) - 1)) < EXACT
    assert model.noise.deterministic is False
    assert model.norm.use_running_average is False
    np.testing.assert_array_equal(kernel, np.asarray(model.first.kernel[...]))


def test_one_pass_is_training_mode():
    model, x = plain(), data()
    twin = plain()
    twin.noise.deterministic = True
    whole = None
    for part in np.split(x, 5):
        h = np.asarray(twin.norm(twin.first(part), use_running_average=False))
        one = bn.Accumulator.of(np.asarray(twin.second(nnx.relu(h))))
        whole = one if whole is None else whole.merge(one)
    found = bn.recalibrate(model, x, batch_size=8)
    np.testing.assert_allclose(found.layers[0].after.mean, whole.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.layers[0].after.variance, whole.variance(0), rtol=1e-4)


def test_errors_change_nothing():
    model = plain()
    with bn.testing.assert_unchanged(model), pytest.raises(bn.ArgumentError, match="refuses an input"):
        bn.recalibrate(model, np.zeros((4, 6), "f"))
    with bn.testing.assert_unchanged(model), pytest.raises(bn.ArgumentError, match="no sample"):
        bn.recalibrate(model, [])


class Sequences(nnx.Module):
    def __init__(self, rngs):
        for number, wide in ((1, padded.FEATURES), (2, padded.WIDTH)):
            dense = nnx.Linear(wide, padded.WIDTH, rngs=rngs)
            dense.kernel[...] = jnp.asarray(padded.weights()[f"kernel{number}"])
            dense.bias[...] = jnp.asarray(padded.weights()[f"bias{number}"])
            setattr(self, f"dense{number}", dense)
            setattr(self, f"bn{number}", nnx.BatchNorm(padded.WIDTH, epsilon=padded.EPSILON, rngs=rngs))

    def __call__(self, x):
        return self.bn2(self.dense2(nnx.relu(self.bn1(self.dense1(x)))))


class Told(Sequences):
    """The same, given the mask and handing it to its layers."""

    def __call__(self, x, mask):
        wide = mask[..., None]
        return self.bn2(self.dense2(nnx.relu(self.bn1(self.dense1(x), mask=wide))), mask=wide)


@pytest.mark.parametrize("method", ["one-pass", "sequential"])
def test_padding_that_data_tell_of_is_left_out(method):
    for kind, beside in ((Sequences, {"mask": padded.MASK}), (Sequences, {"lengths": padded.LENGTHS}),
                         (Told, {"mask": padded.MASK})):  # fmt: skip
        data = {"x": padded.sequences(), **beside}
        found = bn.recalibrate(kind(nnx.Rngs(0)), data, method=method, batch_size=4)
        padded.assert_by_hand(found, method, 4)
        assert any(("the model takes itself" if kind is Told else "are left out") in note for note in found.notes)
