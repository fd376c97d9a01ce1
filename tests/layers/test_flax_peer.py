"""What Flax' own layer and its tests promise, of ours: modes, views, transforms, Linen's twin, the same training."""

import numpy as np
import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
from flax import linen, nnx

from batchnorm.flax import BatchNorm, SkippedUpdates

EPS32 = 2.0**-24
KINDS = [BatchNorm, nnx.BatchNorm]


def normal(*shape, mean=0.0, sd=1.0, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(mean, sd, shape).astype(np.float32))


def state_of(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Any(nnx.Param, nnx.All(nnx.BatchStat, nnx.Not(SkippedUpdates)))))


def assert_close(got, expected, tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.float16])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("mask", [None, np.array([True, False, True, False, True])])
def test_a_norm_and_a_dense_layer_are_those_of_linen(dtype, param_dtype, fast, mask):
    class Twin(linen.Module):
        @linen.compact
        def __call__(self, x, mask=None):
            options = {"dtype": dtype, "param_dtype": param_dtype}
            x = linen.BatchNorm(use_running_average=False, use_fast_variance=fast, **options)(x, mask=mask)
            return linen.Dense(4, **options)(x)

    x = normal(10, 5)
    twin = Twin()
    variables = twin.init(jax.random.key(1), x)
    expected, after = twin.apply(variables, x, mask=mask, mutable=["batch_stats"])
    dense = variables["params"]["Dense_0"]
    ours = BatchNorm(5, dtype=dtype, param_dtype=param_dtype, use_fast_variance=fast, rngs=nnx.Rngs(0))
    y = ours(x, mask=mask)
    assert y.dtype == dtype
    unit = float(jnp.finfo(dtype).eps)
    if mask is None:
        got = y @ dense["kernel"].astype(dtype) + dense["bias"].astype(dtype)
        assert_close(got, expected, 16 * unit)  # five products a sum, and the input that Flax rounds first
    stats = after["batch_stats"]["BatchNorm_0"]
    counted = slice(None) if mask is None else np.flatnonzero(mask)  # Linen's others are NaN, and all of its output
    assert_close(ours.mean[...][counted], stats["mean"][counted], 4 * unit)
    assert_close(ours.var[...][counted], stats["var"][counted], 4 * unit)


def test_output_and_averages_of_one_step():
    x = normal(4, 3, 2)
    layer = BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
    y = layer(x)
    np.testing.assert_allclose(y.mean((0, 1)), np.zeros(2), atol=1e-6)
    np.testing.assert_allclose(y.var((0, 1)), np.ones(2), rtol=1e-4)  # epsilon is in it
    np.testing.assert_allclose(layer.mean[...], 0.1 * x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * x.var((0, 1)), rtol=1e-5)


def test_train_eval_view_and_the_call_choose_the_statistics():
    x = normal(6, 2, mean=3)
    model = nnx.Sequential(BatchNorm(2, rngs=nnx.Rngs(0)))
    layer = model.layers[0]
    model.eval()
    assert layer.use_running_average
    np.testing.assert_allclose(model(x), x / np.sqrt(1 + 1e-5), rtol=4 * EPS32)
    trained = layer(x, use_running_average=False)
    np.testing.assert_allclose(trained.mean(0), np.zeros(2), atol=1e-6)
    model.train()
    assert not layer.use_running_average
    seen = nnx.view(model, use_running_average=True)
    before = layer.mean[...]
    np.testing.assert_allclose(seen(x), layer(x, use_running_average=True))
    assert (layer.mean[...] == before).all()
    model.set_attributes(nnx.BatchNorm, use_running_average=True)  # ours is one of theirs
    assert layer.use_running_average


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_without_scale_or_bias(scale, bias):
    options = {"use_scale": scale, "use_bias": bias}
    ours, theirs = (cls(3, rngs=nnx.Rngs(0), **options) for cls in KINDS)
    x = normal(8, 3)
    assert_close(ours(x), theirs(x), 16 * EPS32)
    assert_close(state_of(ours), state_of(theirs), 8 * EPS32)


def test_initializers_and_metadata():
    options = {
        "scale_init": nnx.initializers.normal(),
        "bias_init": nnx.initializers.constant(2.0),
        "bias_metadata": {"note": "b"},
        "scale_metadata": {"note": "s"},
        "param_dtype": jnp.float16,
    }
    ours, theirs = (cls(3, rngs=nnx.Rngs(0), **options) for cls in KINDS)
    assert_close(state_of(ours), state_of(theirs), 0)
    assert (ours.scale.note, ours.bias.note) == ("s", "b")


def test_weights_go_both_ways():
    x = normal(8, 3, mean=2)
    ours, theirs = (cls(3, rngs=nnx.Rngs(0)) for cls in KINDS)
    theirs(x)
    nnx.update(ours, nnx.state(theirs))
    assert_close(state_of(ours), state_of(theirs), 0)
    unguarded = BatchNorm(3, guard=False, rngs=nnx.Rngs(0))
    unguarded(x)
    nnx.update(theirs, nnx.state(unguarded))
    assert_close(state_of(theirs), state_of(unguarded), 0)
    graph, params, statistics = nnx.split(ours, nnx.Param, nnx.BatchStat)  # the usual split leaves nothing over
    assert_close(state_of(nnx.merge(graph, params, statistics)), state_of(ours), 0)


class Block(nnx.Module):
    def __init__(self, norm, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.norm = norm(3, momentum=0.8, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.norm(self.dense(x)))


def jitted(block):
    @nnx.jit
    def step(module, x):
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean(m(x) ** 2))(module)
        return loss, gradients

    module = block(nnx.Rngs(0))
    return (*step(module, normal(8, 3)), nnx.state(module, nnx.Param))


def mapped(block):
    @nnx.vmap(in_axes=0)
    def stacked(rngs):
        return block(rngs)

    module = stacked(nnx.Rngs(0).split(4))
    x = normal(4, 8, 3)
    y = nnx.vmap(lambda m, x: m(x), in_axes=(0, 0))(module, x)
    return y, state_of(module)


def scanned(block):
    @nnx.vmap(in_axes=0)
    def stacked(rngs):
        return block(rngs)

    module = stacked(nnx.Rngs(0).split(4))

    def loss(module, x):
        forward = nnx.scan(lambda x, m: m(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return jnp.mean(forward(x, module) ** 2)

    value, gradients = nnx.value_and_grad(loss)(module, normal(8, 3))
    return value, nnx.to_pure_dict(gradients), state_of(module)


def over_time(block):
    module = block(nnx.Rngs(0))
    state_axes = nnx.StateAxes({nnx.BatchStat: nnx.Carry, ...: None})
    steps = nnx.scan(lambda m, x: m(x), in_axes=(state_axes, 0), out_axes=0)
    return steps(module, normal(5, 8, 3)), state_of(module)


def checkpointed(block):
    module = block(nnx.Rngs(0))
    gradients = nnx.grad(lambda m: jnp.mean(nnx.remat(lambda m, x: m(x))(m, normal(8, 3)) ** 2))(module)
    return nnx.to_pure_dict(gradients), state_of(module)


def conditional(block):
    module = block(nnx.Rngs(0))
    y = nnx.cond(jnp.array(True), lambda m, x: m(x), lambda m, x: 2 * m(x), module, normal(8, 3))
    return y, state_of(module)


@pytest.mark.parametrize("transform", [jitted, mapped, scanned, over_time, checkpointed, conditional])
def test_transforms_of_nnx(transform):
    ours, theirs = (transform(lambda rngs, kind=kind: Block(kind, rngs)) for kind in KINDS)
    ours = jax.tree.map(jnp.asarray, ours)
    flat, expected = (jax.tree.leaves(tree) for tree in (ours, theirs))
    assert len(flat) == len(expected)
    for a, b in zip(flat, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)  # the peer's one-pass variance is the coarser of the two


@pytest.mark.parametrize("statistics", ["debiased", "cumulative"])
def test_statistics_of_our_own_pass_through_the_transforms(statistics):
    def kind(features, **options):
        return BatchNorm(features, statistics=statistics, virtual_batch_size=4, **options)

    for transform in (jitted, mapped, scanned, over_time):
        assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(transform(lambda r: Block(kind, r))))


def test_one_trace_serves_many_steps():
    layer, traces = BatchNorm(3, rngs=nnx.Rngs(0)), []

    @nnx.jit
    def step(layer, x):
        traces.append(None)
        return layer(x)

    for seed in range(4):
        step(layer, normal(8, 3, seed=seed))
    assert len(traces) == 1


def test_a_clone_is_another_layer():
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    other = nnx.clone(layer)
    layer(normal(8, 3))
    assert other.mean[...].tolist() == [0, 0, 0]
    assert other.statistics == "moving"
