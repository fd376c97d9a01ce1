"""The edge cases, one test a row: what ours does, and beside it what `flax.nnx.BatchNorm` does (Flax 0.12.8).

A test that fails on the peer's half says that Flax has changed, which the documentation then has to say too.
"""

import warnings

import numpy as np
import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
from flax import nnx

import batchnorm.flax as bn
from batchnorm.core import reference

EPS32 = 2.0**-24


def both(features, **options):
    return (cls(features, rngs=nnx.Rngs(0), **options) for cls in (bn.BatchNorm, nnx.BatchNorm))


def normal(*shape, mean=0.0, sd=1.0, seed=0):
    return np.random.default_rng(seed).normal(mean, sd, shape).astype(np.float32)


def assert_untouched(layer):
    assert layer.mean[...].tolist() == [0] * layer.num_features
    assert layer.var[...].tolist() == [1] * layer.num_features


@pytest.mark.parametrize("statistics", ["moving", "debiased", "cumulative"])
def test_empty_batch(statistics):
    ours = bn.BatchNorm(2, statistics=statistics, rngs=nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(ours))
    for virtual in (None, 4):
        ours.virtual_batch_size = virtual
        assert ours(jnp.zeros((0, 5, 2))).shape == (0, 5, 2)
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.to_pure_dict(nnx.state(ours)), before))
    _, theirs = both(2)
    theirs(jnp.zeros((0, 5, 2)))
    assert np.isnan(theirs.mean[...]).all()
    theirs(jnp.ones((4, 5, 2)))
    assert np.isnan(theirs.mean[...]).all()  # for good


def test_no_channels_in_virtual_batches():
    ours = bn.BatchNorm(0, virtual_batch_size=2, rngs=nnx.Rngs(0))
    assert ours(jnp.zeros((5, 0))).shape == (5, 0)


def test_one_element_per_channel():
    ours, theirs = both(2)
    ours.bias[...] = theirs.bias[...] = jnp.array([1.0, -2.0])
    with pytest.warns(UserWarning, match="BatchNorm: one element per channel.*Use a larger batch"):
        y = ours(jnp.array([[3.0, 4.0]]))
    assert y.tolist() == [[1, -2]]
    assert_untouched(ours)
    assert theirs(jnp.array([[3.0, 4.0]])).tolist() == [[1, -2]]
    np.testing.assert_allclose(theirs.var[...], 0.99)  # on its way to 0


def test_one_element_is_known_of_parts_and_groups():
    with pytest.warns(UserWarning, match="one element"):
        bn.BatchNorm(2, virtual_batch_size=1, rngs=nnx.Rngs(0))(jnp.ones((3, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = bn.BatchNorm(2, axis_name="d", rngs=nnx.Rngs(0))
        graph, state = nnx.split(layer)
        jax.vmap(lambda x: nnx.merge(graph, state, copy=True)(x), axis_name="d")(jnp.ones((3, 1, 2)))
        bn.BatchNorm(2, rngs=nnx.Rngs(0))(jnp.ones((1, 2)), use_running_average=True)


def test_everything_masked():
    x, nothing = normal(6, 2, mean=3), jnp.zeros((6, 1), bool)
    ours, theirs = both(2)
    for layer in (ours, theirs):
        layer(jnp.asarray(x))
    mean, variance = ours.mean[...], ours.var[...]
    y = ours(jnp.asarray(x), mask=nothing)
    np.testing.assert_allclose(y, reference.inference(x, mean, variance, None, None, epsilon=1e-5), rtol=8 * EPS32)
    assert (ours.mean[...] == mean).all()
    assert (ours.var[...] == variance).all()
    assert np.isnan(theirs(jnp.asarray(x), mask=nothing)).all()
    assert np.isnan(theirs.var[...]).all()


def test_a_channel_of_which_nothing_counts():
    x = normal(10, 5, mean=1)
    ours, theirs = both(5)
    mask = np.array([True, False, True, False, True])  # Flax' own tests mask features like this
    y, other = ours(jnp.asarray(x), mask=mask), theirs(jnp.asarray(x), mask=mask)
    np.testing.assert_allclose(y[:, ::2], other[:, ::2], atol=40 * EPS32)
    np.testing.assert_allclose(y[:, 1::2], x[:, 1::2] / np.sqrt(1 + 1e-5), rtol=4 * EPS32)
    assert np.isnan(other[:, 1::2]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_or_infinity_in_a_batch(value):
    x = normal(6, 3)
    x[2, 1] = value
    ours, theirs = both(3)
    for layer in (ours, theirs):
        y = layer(jnp.asarray(x))
        assert np.isnan(y[:, 1]).any()  # it shows
        assert np.isfinite(y[:, ::2]).all()
        layer(jnp.asarray(normal(6, 3, seed=1)))
    assert ours.skipped_updates[...].tolist() == [0, 1, 0]
    assert np.isfinite(ours.mean[...]).all()
    clean = bn.BatchNorm(3, rngs=nnx.Rngs(0))
    clean(jnp.asarray(normal(6, 3, seed=1)))
    assert ours.mean[...][1] == clean.mean[...][1]
    assert not np.isfinite(theirs.mean[...][1])
    unguarded = bn.BatchNorm(3, guard=False, rngs=nnx.Rngs(0))
    unguarded(jnp.asarray(x))
    assert not np.isfinite(unguarded.mean[...][1])
    assert not hasattr(unguarded, "skipped_updates")


def test_the_count_of_skipped_updates_can_be_left_out_of_what_is_saved():
    ours, theirs = both(3)
    kept = nnx.state(ours, nnx.Not(bn.SkippedUpdates))
    assert jax.tree.structure(kept) == jax.tree.structure(nnx.state(theirs))


@pytest.mark.parametrize("axis", [-1, 1, 0])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_padding_mask(axis, rank):
    shape = [4, 5, 3, 2, 3][:rank]
    channels = shape[axis]
    x = normal(*shape, mean=3)
    kept = axis % rank
    mask = np.random.default_rng(1).random([n for i, n in enumerate(shape) if i != kept]) < 0.6
    mask.flat[0] = mask.flat[-1] = True
    aligned = np.expand_dims(mask, kept)
    expected = reference.training(x, None, None, epsilon=1e-5, axis=axis, mask=mask)
    mean, _ = reference.moments(x, axis=axis, mask=mask)
    x[~np.broadcast_to(aligned, shape)] += 0.0  # padding stays and is normalised like any other
    for given in (mask, aligned, aligned.astype(np.int32)):
        layer = bn.BatchNorm(channels, axis=axis, rngs=nnx.Rngs(0))
        y = layer(jnp.asarray(x), mask=given)
        np.testing.assert_allclose(y, expected, atol=40 * EPS32 * max(1, np.abs(expected).max()))
        np.testing.assert_allclose(layer.mean[...], 0.01 * mean, rtol=8 * EPS32)
    theirs = nnx.BatchNorm(channels, axis=axis, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(theirs(jnp.asarray(x), mask=jnp.asarray(aligned)), expected, atol=1e-3)


def test_nan_in_the_padding_stays_there():
    x, mask = normal(6, 2), np.array([True] * 4 + [False] * 2)
    expected = reference.moments(x[:4])
    x[4:] = np.nan
    ours, _ = both(2, momentum=0.0)
    y = ours(jnp.asarray(x), mask=mask)
    assert np.isfinite(y[:4]).all()
    assert np.isnan(y[4:]).all()
    np.testing.assert_allclose(ours.mean[...], expected[0], rtol=1e-6)
    np.testing.assert_allclose(ours.var[...], expected[1], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("virtual", [None, 4])
def test_what_is_in_the_padding_leaves_the_gradients_alone(value, virtual):
    x, mask = normal(6, 2), jnp.array([True] * 4 + [False] * 2)

    def gradients(x):
        layer = bn.BatchNorm(2, virtual_batch_size=virtual, rngs=nnx.Rngs(0))
        layer.scale[...] = jnp.array([2.0, -3.0])

        def loss(layer, x):
            return jnp.sum(jnp.where(mask[:, None], layer(x, mask=mask), 0.0) ** 3)

        return jax.tree.leaves(nnx.grad(loss, argnums=(0, 1))(layer, jnp.asarray(x)))

    expected = gradients(x)
    x[4:] = value
    for a, b in zip(gradients(x), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    layer = bn.BatchNorm(2, use_bias=False, rngs=nnx.Rngs(0))
    layer.scale[...] = jnp.array([2.0, -3.0])
    np.testing.assert_array_equal(layer(jnp.asarray(x), mask=mask)[4:], x[4:] * np.array([1.0, -1.0]))


def test_large_mean():
    x = normal(4096, 1, mean=1e4)
    ours, theirs = both(1, momentum=0.0, use_scale=False, use_bias=False)
    y, other = ours(jnp.asarray(x)), theirs(jnp.asarray(x))
    _, variance = reference.moments(x)
    expected = reference.training(x, None, None, epsilon=1e-5)
    np.testing.assert_allclose(ours.var[...], variance, rtol=16 * EPS32)
    np.testing.assert_allclose(y, expected, atol=32 * EPS32 * 4)
    assert abs(float(theirs.var[...][0]) - 1) > 0.5  # E[x^2] - E[x]^2
    assert np.abs(other - expected).max() > 0.1
    steady = nnx.BatchNorm(1, momentum=0.0, use_fast_variance=False, rngs=nnx.Rngs(0))
    steady(jnp.asarray(x))
    np.testing.assert_allclose(steady.var[...], variance, rtol=1e-3)


def test_large_mean_over_deviation_of_a_million():
    x = normal(4096, 1, mean=1e6)
    ours, _ = both(1, momentum=0.0)
    np.testing.assert_allclose(
        ours(jnp.asarray(x)), reference.training(x, None, None, epsilon=1e-5), atol=32 * EPS32 * 4
    )


def test_inference_with_a_large_mean():
    x = normal(512, 1, mean=1e6)
    for layer in both(1, use_running_average=True):
        layer.mean[...] = jnp.array([1e6])
        expected = reference.inference(x, [1e6], [1.0], None, None, epsilon=1e-5)
        np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=16 * EPS32 * 4)  # Flax subtracts first, too


@pytest.mark.parametrize("value", [3.1e7, 100.1, 1e-30, 0.0, -3.7e18])
@pytest.mark.parametrize("masked", [False, True])
def test_constant_channel(value, masked):
    x = np.full((7, 3, 1), value, np.float32)
    mask = (np.arange(21).reshape(7, 3) % 3 != 0) if masked else None
    ours, _ = both(1, momentum=0.0)
    ours.bias[...] = jnp.array([0.5])
    assert (ours(jnp.asarray(x), mask=mask) == 0.5).all()
    assert ours.var[...].tolist() == [0]


def test_constant_channel_of_a_thousand_elements():
    x = jnp.full((1000, 1), 3.1e7)
    ours, theirs = both(1)
    assert not jnp.any(ours(x))
    assert jnp.abs(theirs(x)).max() > 100  # 632 on a CPU: the mean is off by 2, the variance 0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    ours, theirs = both(1, dtype=dtype, param_dtype=dtype)
    x = jnp.full((8, 1), 10.0, dtype) + jnp.arange(8.0).reshape(8, 1).astype(dtype)
    for _ in range(1000):
        y = ours(x)
    assert y.dtype == dtype
    assert ours.mean[...].dtype == ours.var[...].dtype == jnp.float32
    np.testing.assert_allclose(ours.mean[...], 13.5, rtol=1e-4)  # .99**1000 = 4e-5 is left; nothing stalls
    theirs(x)
    assert theirs.mean[...].dtype == jnp.float32


def test_half_precision_inference_keeps_the_float32_statistics():
    ours, theirs = both(1, dtype=jnp.bfloat16, use_running_average=True)
    for layer in (ours, theirs):
        layer.mean[...], layer.var[...] = jnp.array([1000.7]), jnp.array([4.0])
    x = jnp.array([[1001.0]])
    expected = (1001.0 - 1000.7) / np.sqrt(4 + 1e-5)
    np.testing.assert_allclose(float(ours(x)[0, 0]), expected, rtol=2.0**-8)
    assert abs(float(theirs(x)[0, 0]) - expected) > 0.1  # input and mean are rounded before they are subtracted


def test_float16_over_its_largest_number():
    ours, theirs = both(1, dtype=jnp.float16, momentum=0.0)
    x = jnp.array([[60000.0], [-60000.0]], jnp.float16)  # the squares are over 65504
    np.testing.assert_allclose(ours(x), [[1], [-1]], rtol=2.0**-11)
    np.testing.assert_allclose(theirs(x), [[1], [-1]], rtol=2.0**-10)


def test_frozen():
    model = nnx.Sequential(bn.BatchNorm(2, rngs=nnx.Rngs(0)), nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    ours = model.layers[0]
    x = jnp.asarray(normal(6, 2, mean=3))
    assert bn.freeze(model) is model
    model.train()
    np.testing.assert_allclose(ours(x), x / np.sqrt(1 + 1e-5), rtol=4 * EPS32)
    ours(x, use_running_average=False)
    assert_untouched(ours)
    assert jnp.any(nnx.grad(lambda m: jnp.sum(m(x)))(model)["layers"][0]["scale"][...] != 0)
    bn.unfreeze(model)
    ours(x)
    assert ours.mean[...].tolist() != [0, 0]
    theirs = nnx.BatchNorm(2, use_running_average=True, rngs=nnx.Rngs(0))
    theirs.train()  # thaws it
    theirs(x)
    assert theirs.mean[...].tolist() != [0, 0]
    with pytest.raises(ValueError, match=r"freeze: module holds flax.nnx.BatchNorm .* convert"):
        bn.freeze(nnx.Sequential(theirs))


def test_activation_checkpointing_updates_once():
    x = jnp.asarray(normal(6, 2, mean=3))
    for cls in (bn.BatchNorm, nnx.BatchNorm):
        plain, checkpointed = cls(2, rngs=nnx.Rngs(0)), cls(2, rngs=nnx.Rngs(0))

        def loss(layer, x, call):
            return jnp.sum(call(layer, x) ** 3)

        expected = nnx.grad(loss, argnums=(0, 1))(plain, x, lambda m, x: m(x))
        got = nnx.grad(loss, argnums=(0, 1))(checkpointed, x, nnx.remat(lambda m, x: m(x)))
        np.testing.assert_array_equal(plain.mean[...], checkpointed.mean[...])
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_ghost_statistics():
    x = jnp.asarray(normal(8, 2, mean=3))
    ours = bn.BatchNorm(2, virtual_batch_size=2, momentum=0.5, rngs=nnx.Rngs(0))
    y = ours(x)
    expected = [reference.training(x[i : i + 2], None, None, epsilon=1e-5) for i in range(0, 8, 2)]
    np.testing.assert_allclose(y, np.concatenate(expected), atol=1e-4)
    moving = np.zeros(2)
    for i in range(0, 8, 2):
        moving = 0.5 * moving + 0.5 * np.asarray(x[i : i + 2]).mean(0)
    np.testing.assert_allclose(ours.mean[...], moving, rtol=8 * EPS32)
    with pytest.raises(TypeError):
        nnx.BatchNorm(2, virtual_batch_size=2, rngs=nnx.Rngs(0))


def test_synchronised_with_unequal_counts():
    # Eight devices, gradients and all the ways to map: scripts/flax_on_devices.py.
    x = jnp.asarray(normal(8, 1, mean=3))
    mask = jnp.array([True] * 5 + [False] * 3)
    found = []
    for layer in both(1, axis_name="d", momentum=0.0):
        graph, state = nnx.split(layer)

        def shard(x, mask, graph=graph, state=state):
            merged = nnx.merge(graph, state, copy=True)
            merged(x, mask=mask)
            return merged.mean[...]

        found.append(jax.vmap(shard, axis_name="d")(x.reshape(2, 4, 1), mask.reshape(2, 4, 1))[:, 0])
    true = float(x[:5].mean())
    np.testing.assert_allclose(found[0], true, rtol=4 * EPS32)
    assert abs(found[1][0] - true) > 0.01  # every device weighs the same


def test_complex_input():
    ours, theirs = both(2)
    with pytest.raises(TypeError, match=r"BatchNorm: the input must hold real numbers; got dtype complex64.*channels"):
        ours(jnp.ones((4, 2), jnp.complex64))
    with warnings.catch_warnings():  # NumPy and JAX warn of the lost imaginary part, Flax does not
        warnings.simplefilter("ignore")
        y = theirs(jnp.array([[1j, 1.0], [3j, 5.0]], jnp.complex64))
    assert jnp.iscomplexobj(y)
    assert theirs.mean[...][0] == 0  # 2j * .01, less its imaginary part


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"epsilon": -1.0}, {"momentum": 1.01}, {"momentum": -0.01}])
def test_epsilon_and_momentum_out_of_range(options):
    with pytest.raises(ValueError, match=f"BatchNorm: {next(iter(options))} must .*; got"):
        bn.BatchNorm(2, rngs=nnx.Rngs(0), **options)
    nnx.BatchNorm(2, rngs=nnx.Rngs(0), **options)  # accepted silently


def test_first_steps():
    ours = bn.BatchNorm(1, statistics="debiased", rngs=nnx.Rngs(0))
    _, theirs = both(1)
    x = normal(256, 1, mean=5, sd=3)
    for layer in (ours, theirs):
        for _ in range(10):
            layer(jnp.asarray(x))
    mean, variance = reference.moments(x)
    # The share of the batches in the average is 1 - .99**10 = .096: rounding is magnified tenfold.
    np.testing.assert_allclose(ours.inference_statistics(), (mean, variance), rtol=200 * EPS32)
    np.testing.assert_allclose(theirs.mean[...], mean * (1 - 0.99**10), rtol=1e-5)  # 90 % of it is still 0
    np.testing.assert_allclose(ours.remaining[...], 0.99**10, rtol=1e-6)
