"""Eight host devices of JAX: run by test_flax_devices.py, with XLA_FLAGS set before JAX starts.

The figure: forward, gradients and statistics over eight shards, of unequal and of no counted elements, equal one device
on the joined batch to 1e-6 of the largest value compared.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from batchnorm.flax import BatchNorm

P = PartitionSpec
DEVICES = 8
FIGURE = 1e-6


def mesh():
    return Mesh(np.array(jax.devices()), ("d",))


def data(masked=True, mean=3.0):
    rng = np.random.default_rng(0)
    x = rng.normal(mean, 2, (32, 5, 3)).astype(np.float32)
    mask = rng.random((32, 5)) < rng.random((32, 1)) if masked else np.ones((32, 5), bool)
    if masked:
        mask[4:8] = False  # the second shard is empty
        mask[8:12] = True
    weight = rng.normal(0, 1, x.shape).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(weight), jnp.asarray(mask)


def run(split, x, weight, mask):
    """Loss, output, statistics and gradients of one layer: the whole batch, or one shard of it."""
    graph, params, rest = split

    def loss(params, x):
        layer = nnx.merge(graph, params, rest, copy=True)
        y = layer(x, mask=mask)
        return jnp.sum(y * weight + 0.1 * y**3), (y, nnx.state(layer, nnx.BatchStat))

    (value, (y, statistics)), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return value, y, statistics, *gradients


def split(**options):
    layer = BatchNorm(3, momentum=0.5, rngs=nnx.Rngs(0), **options)
    layer.scale[...], layer.bias[...] = jnp.array([0.5, 1.0, 2.0]), jnp.array([-1.0, 0.0, 1.0])
    return nnx.split(layer, nnx.Param, ...)


def shards(array):
    return array.reshape((DEVICES, -1, *array.shape[1:]))


def on_shard_map(graph, params, rest, batch, check):
    def shard(params, rest, *batch):
        value, y, statistics, dparams, dx = run((graph, params, rest), *batch)
        # With the check, a gradient of what is the same on all devices is summed by JAX already.
        dparams = dparams if check else jax.lax.psum(dparams, "d")
        return jax.lax.psum(value, "d"), y, statistics, dparams, dx

    specs = {"in_specs": (P(), P(), P("d"), P("d"), P("d")), "out_specs": (P(), P("d"), P(), P(), P("d"))}
    return jax.jit(jax.shard_map(shard, mesh=mesh(), check_vma=check, **specs))(params, rest, *batch)


def on_an_axis(graph, params, rest, batch, mapper):
    def shard(params, rest, *batch):
        value, y, statistics, dparams, dx = run((graph, params, rest), *batch)
        return jax.lax.psum(value, "d"), y, statistics, jax.lax.psum(dparams, "d"), dx

    mapped = mapper(shard, axis_name="d", in_axes=(None, None, 0, 0, 0))
    value, y, statistics, dparams, dx = mapped(params, rest, *map(shards, batch))
    first = functools.partial(jax.tree.map, lambda a: a[0])
    x = batch[0]
    return value[0], y.reshape(x.shape), first(statistics), first(dparams), dx.reshape(x.shape)


WAYS = {
    "shard_map": functools.partial(on_shard_map, check=True),
    "shard_map unchecked": functools.partial(on_shard_map, check=False),
    "pmap": functools.partial(on_an_axis, mapper=jax.pmap),
    "vmap": functools.partial(on_an_axis, mapper=jax.vmap),
}


def assert_equal(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert float(jnp.max(jnp.abs(a - b))) <= FIGURE * max(1.0, float(jnp.max(jnp.abs(b))))


def test_there_are_eight_devices():
    assert jax.device_count() == DEVICES


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("masked", [True, False])
def test_shards_are_the_joined_batch(way, masked):
    batch = data(masked)
    expected = run(split(), *batch)
    assert_equal(WAYS[way](*split(axis_name="d"), batch), expected)


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_batch_on_every_device_changes_nothing(way):
    x, weight, mask = data()
    layer = split(axis_name="d")
    value, y, statistics, dparams, dx = WAYS[way](*layer, (x, weight, jnp.zeros_like(mask)))
    assert_equal(y, run(split(use_running_average=True), x, weight, mask)[1])
    assert_equal(statistics["mean"][...], jnp.zeros(3))
    assert_equal(statistics["var"][...], jnp.ones(3))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((value, dparams, dx)))


def test_a_nan_on_one_device_stays_out_of_the_statistics_of_all():
    x, weight, mask = data()
    x = x.at[9, 0, 1].set(jnp.nan)  # counted, on the third device, in the second channel
    statistics = WAYS["shard_map"](*split(axis_name="d"), (x, weight, mask))[2]
    clean = run(split(), *data())[2]
    assert statistics["skipped_updates"][...].tolist() == [0, 1, 0]
    assert statistics["mean"][...][1] == 0
    assert statistics["var"][...][1] == 1
    assert_equal(statistics["var"][...][0::2], clean["var"][...][0::2])


def test_flax_weighs_devices_equally_and_ours_by_their_counts():
    x = jnp.arange(16.0).reshape(16, 1)
    mask = jnp.asarray(np.r_[np.ones(8, bool), np.repeat([True, False, True, False], 2)])
    found = {}
    for name, cls in (("ours", BatchNorm), ("theirs", nnx.BatchNorm)):
        graph, state = nnx.split(cls(1, axis_name="d", momentum=0.0, rngs=nnx.Rngs(0)))

        def shard(state, x, mask, graph=graph):
            layer = nnx.merge(graph, state, copy=True)
            layer(x, mask=mask)
            return layer.mean[...]

        two = jax.vmap(shard, in_axes=(None, 0, 0), axis_name="d")
        found[name] = float(two(state, x.reshape(2, 8, 1), mask.reshape(2, 8, 1))[0, 0])
    true = float(x[mask].mean())
    assert found["ours"] == pytest.approx(true, rel=1e-6)
    assert abs(found["theirs"] - true) > 0.5


def test_groups_of_devices():
    batch = data()
    graph, params, rest = split(axis_name="d", axis_index_groups=[[0, 1, 2, 3], [4, 5, 6, 7]])
    shard = jax.pmap(lambda *a: run((graph, params, rest), *a)[1:3], axis_name="d")
    y, statistics = shard(*map(shards, batch))
    for half, device in ((slice(0, 16), 0), (slice(16, 32), 7)):
        expected = run(split(), *(a[half] for a in batch))
        assert_equal(y.reshape(batch[0].shape)[half], expected[1])
        assert_equal(jax.tree.map(lambda a, device=device: a[device], statistics), expected[2])


def test_one_example_a_device_of_vmap():
    x, weight, mask = data()
    expected = run(split(), x[:, 0], weight[:, 0], mask[:, 0])
    graph, params, rest = split(axis_name="d")

    def one(x, mask):
        layer = nnx.merge(graph, params, rest, copy=True)
        return layer(x, mask=mask), nnx.state(layer, nnx.BatchStat)

    y, statistics = jax.vmap(one, axis_name="d", out_axes=(0, None))(x[:, 0], mask[:, 0])
    assert_equal(y, expected[1])
    assert_equal(statistics, expected[2])


def test_under_jit_a_sharded_batch_has_the_statistics_of_the_whole():
    batch = data()
    expected = run(split(), *batch)
    graph, params, rest = split()
    sharded = [jax.device_put(a, NamedSharding(mesh(), P("d"))) for a in batch]
    got = jax.jit(lambda params, rest, *batch: run((graph, params, rest), *batch))(params, rest, *sharded)
    assert_equal(got, expected)
    assert got[1].sharding.spec == P("d")


def test_a_large_mean_survives_the_merge():
    x, weight, mask = data(mean=1e4)
    y = WAYS["shard_map"](*split(axis_name="d"), (x, weight, mask))[1]
    counted = np.asarray(x, np.float64)[np.asarray(mask)]
    x_hat = (np.asarray(x, np.float64) - counted.mean(0)) / np.sqrt(counted.var(0) + 1e-5)
    expected = x_hat * np.array([0.5, 1.0, 2.0]) + np.array([-1.0, 0.0, 1.0])
    # kappa = 5e3 in float32 would allow 3e-4; the mean in two parts does not need it.
    np.testing.assert_allclose(y, expected, atol=5e-6)


def test_virtual_batches_within_each_shard():
    x, _, _ = data()
    graph, params, rest = split(virtual_batch_size=2)

    def shard(params, rest, x):
        layer = nnx.merge(graph, params, rest, copy=True)
        return layer(x), jax.tree.map(lambda a: a[None], nnx.state(layer, nnx.BatchStat))

    y, _ = jax.shard_map(shard, mesh=mesh(), in_specs=(P(), P(), P("d")), out_specs=(P("d"), P("d")))(params, rest, x)
    layer = nnx.merge(*split(virtual_batch_size=2))
    assert_equal(y, layer(x))


def test_forward_mode_over_devices():
    x, weight, mask = data()

    def output(layer, mask=mask):
        return lambda x: nnx.merge(*layer, copy=True)(x, mask=mask)

    expected = jax.jvp(output(split()), (x,), (weight,))[1]
    layer = split(axis_name="d")

    def shard(x, weight, mask):
        return jax.jvp(output(layer, mask), (x,), (weight,))[1]

    got = jax.shard_map(shard, mesh=mesh(), in_specs=P("d"), out_specs=P("d"))(x, weight, mask)
    assert_equal(got, expected)
