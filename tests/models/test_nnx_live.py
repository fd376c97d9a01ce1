"""Live NNX modules of Flax: read, run, and left as they are."""

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.api.loading import load
from batchnorm.errors import ArgumentError, UnknownLayer
from tests.engines.bounds import formula

nnx = pytest.importorskip("flax.nnx", reason="live modules of the real Flax")
jax = pytest.importorskip("jax")


class Block(nnx.Module):
    def __init__(self, n, rngs):
        self.norm = nnx.BatchNorm(n, momentum=0.9, epsilon=1e-3, rngs=rngs)

    def __call__(self, x):
        return self.norm(jax.numpy.tanh(x))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.blocks = nnx.List([Block(4, rngs) for _ in range(11)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.bare = nnx.BatchNorm(4, use_bias=False, use_scale=False, rngs=rngs)

    def __call__(self, x, fail=False):
        x = self.linear(x)
        for block in self.blocks:
            x = block(x)
        x = self.drop(self.bare(self.bare(x)))
        if fail:
            raise ValueError("out of luck\nand lines")
        return {"y": x, "n": 3}


class Training(nnx.Module):
    """Told the mode at the call."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x, *, train: bool = True):
        return self.norm(x, use_running_average=not train)


@pytest.fixture
def model():
    made = Net(nnx.Rngs(0))
    made.train()
    for seed in range(3):
        made(jax.random.normal(jax.random.key(seed), (6, 3)) + 1)
    return made


def test_every_field_is_what_the_module_says(model):
    with bn.testing.assert_unchanged(model):
        found = load(model)
    assert (found.format, found.path) == ("flax", "Net")
    names = ["bare", *(f"blocks/{n}/norm" for n in range(11))]  # 10 behind 9
    assert [record.name for record in found.layers] == names
    bare, block = found.layers[:2]
    assert (block.epsilon, block.epsilon_source, block.momentum, block.decay) == (1e-3, "file", 0.9, 0.9)
    assert (block.axis, block.ddof, block.mode, block.updates) == (-1, 0, "by-call", None)
    assert (bare.gamma, bare.beta) == (None, None)
    held = model.blocks[0].norm
    for array, variable in ((block.gamma, held.scale), (block.beta, held.bias), (block.moving_mean, held.mean),
                            (block.moving_variance, held.var)):  # fmt: skip
        np.testing.assert_array_equal(array, np.array(variable[...]))


def test_run_is_inference_and_changes_nothing(model):
    x = np.random.default_rng(0).normal(size=(5, 3))
    with bn.testing.assert_unchanged(model):
        read = load(model)
        outputs, captured = read.run(x, capture=["bare", "blocks/3/norm"])
        again, _ = read.run(x)
    assert {name: len(calls) for name, calls in captured.items()} == {"bare": 2, "blocks/3/norm": 1}
    for name, calls in captured.items():
        record = next(record for record in read.layers if record.name == name)
        for given, got in calls:
            y, bound = formula(record, given)
            assert np.all(np.abs(got - y) <= bound)
    np.testing.assert_array_equal(outputs["y"], captured["bare"][1][1])
    np.testing.assert_array_equal(outputs["y"], again["y"])
    assert outputs["n"] == 3


def test_unchanged_after_an_error_in_the_middle(model):
    read = load(model)
    with bn.testing.assert_unchanged(model), pytest.raises(ArgumentError, match="out of luck and lines"):
        read.run({"x": np.ones((2, 3)), "fail": np.True_}, capture=["bare"])
    with bn.testing.assert_unchanged(model), pytest.raises(ArgumentError, match=r"refuses an input of shape \(2, 7\)"):
        read.run(np.ones((2, 7)))
    with pytest.raises(ArgumentError, match="takes x, fail; got 'image'"):
        read.run({"image": np.ones((2, 3))})
    with pytest.raises(UnknownLayer, match=r"'none'.*'bare'"):
        read.run(np.ones((2, 3)), capture=["none"])


def test_a_mode_that_is_told_at_the_call():
    model = Training(nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("f4")
    with bn.testing.assert_unchanged(model):
        y, captured = load(model).run(x, capture=["norm"])
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(captured["norm"][0][1], y)


def test_a_layer_alone_and_several_axes():
    (record,) = load(nnx.BatchNorm(3, rngs=nnx.Rngs(0))).layers
    assert record.name == "BatchNorm"
    y, _ = load(nnx.BatchNorm(3, rngs=nnx.Rngs(0))).run([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(y, np.array([[1, 2, 3]]) / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_our_own_layer_in_its_three_ways():
    import batchnorm.flax as ours

    for statistics, decay, averaging in (("moving", 0.99, "exponential"), ("debiased", None, "exponential"),
                                         ("cumulative", None, "cumulative")):  # fmt: skip
        layer = ours.BatchNorm(3, statistics=statistics, rngs=nnx.Rngs(0))
        layer(np.random.default_rng(0).normal(3, 2, (64, 3)).astype("f4"), use_running_average=False)
        (record,) = load(layer).layers
        assert (record.decay, record.averaging) == (decay, averaging)
        assert (record.moving_mean.max() > 2) == (statistics != "moving")
