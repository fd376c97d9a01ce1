"""Replicas with unequal, masked and empty batches against one process on the joined batch."""

import multiprocessing
import socket

import keras
import numpy as np
import pytest
from keras import ops
from tools import BACKEND, Ours, array, state

CHANNELS = 3
# Unequal; the middle one empty. The sums of a joined batch are added in another order: a few float32 roundings.
SIZES = (5, 0, 9)
TOLERANCE = 2e-6


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(20.0, 2.0, (sum(SIZES), 4, CHANNELS)).astype("float32")
    weight = rng.normal(size=x.shape).astype("float32")
    return x, weight, rng.random(x.shape[:2]) > 0.3


def parts(sizes, *arrays):
    ends = np.cumsum(sizes)
    return [tuple(a[end - size : end] for a in arrays) for size, end in zip(sizes, ends, strict=True)]


KWARGS = [{}, {"renorm": True}, {"statistics": "debiased"}]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")
@pytest.mark.parametrize("kwargs", KWARGS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(5, 9), (0, 14), (7, 7)], ids=str)
def test_tensorflow_replicas(kwargs, masked, sizes):
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    x, weight, mask = data()
    with strategy.scope():
        layer = Ours(synchronized=True, **kwargs)
        layer.build(x.shape)
    alone = Ours(**kwargs)
    alone.build(x.shape)

    def step(layer, x, weight, mask):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask if masked else None)
            loss = tf.reduce_sum(tf.sin(y) * weight)
        return (y, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value]))

    rows = parts(sizes, x, weight, mask)

    def values(context):
        return tuple(tf.constant(v) for v in rows[context.replica_id_in_sync_group])

    given = strategy.experimental_distribute_values_from_function(values)

    @tf.function
    def everywhere(given):
        return strategy.run(lambda v: step(layer, *v), args=(given,))

    y, dx, dgamma, dbeta = (strategy.experimental_local_results(v) for v in everywhere(given))
    expected = step(alone, *(tf.constant(v) for v in (x, weight, mask)))
    for got, want in zip((np.concatenate(y), np.concatenate(dx), sum(dgamma), sum(dbeta)), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=TOLERANCE * max(20, np.abs(want).max()))
    for name, value in state(alone).items():
        np.testing.assert_allclose(state(layer)[name], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")
def test_tensorflow_fit_on_two_replicas():
    import tensorflow as tf

    x, _, _ = data()
    results = []
    for strategy in (tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), tf.distribute.get_strategy()):
        with strategy.scope():
            model = keras.Sequential([keras.Input((4, CHANNELS)), Ours(synchronized=True, name="bn")])
            model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x[:12], x[:12], batch_size=6, epochs=2, shuffle=False, verbose=0)
        results.append(state(model.get_layer("bn")))
    for name, value in results[1].items():
        np.testing.assert_allclose(results[0][name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.skipif(BACKEND != "jax", reason="jax.sharding")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("synchronized", [False, True])
def test_jax_sharded_batch_has_global_statistics(masked, synchronized):
    """Both values of ``synchronized``: on JAX there are no statistics of a device's own."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    assert len(jax.devices()) == 8
    x, weight, mask = (np.concatenate([v, v[:2]]) for v in data())  # 16 samples
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    layer = Ours(synchronized=synchronized)
    layer.build(x.shape)
    trainable, fixed = ([v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables))

    @jax.jit
    def step(trainable, x, weight, mask):
        def loss(trainable, x):
            y, new = layer.stateless_call(trainable, fixed, x, training=True, mask=mask if masked else None)
            return jnp.sum(jnp.sin(y) * weight), (y, new)

        gradients, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(trainable, x)
        return y, gradients, new

    alone = step(trainable, x, weight, mask)
    sharded = [jax.device_put(v, NamedSharding(mesh, PartitionSpec("batch"))) for v in (x, weight, mask)]
    results = step(trainable, *sharded)
    assert len(results[0].sharding.device_set) == 8
    for got, want in zip(jax.tree.leaves(results), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=20 * TOLERANCE)
    counted = x[mask] if masked else x.reshape(-1, CHANNELS)
    np.testing.assert_allclose(results[2][0], 0.01 * counted.astype("float64").mean(0), rtol=1e-5)


def on_rank(rank, port, queue):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(SIZES))
    try:
        results = []
        for kwargs in KWARGS:
            for masked in (False, True):
                results.append(torch_step(Ours(synchronized=True, **kwargs), masked, *parts(SIZES, *data())[rank]))
        results.append(second_order(Ours(synchronized=True)))
        queue.put((rank, results))
        queue.close()
        queue.join_thread()
        dist.barrier()
    finally:
        dist.destroy_process_group()


def torch_step(layer, masked, x, weight, mask):
    import torch

    layer.build(x.shape)
    x = torch.tensor(x, requires_grad=True)
    y = layer(x, training=True, mask=mask if masked else None)
    loss = (torch.sin(y) * torch.tensor(weight)).sum()
    gradients = torch.autograd.grad(loss, [x, layer.gamma.value, layer.beta.value])
    return [array(v.detach()) for v in (y, *gradients)], state(layer)


def second_order(layer):
    import torch

    x = torch.ones((2, CHANNELS), requires_grad=True)
    try:
        torch.autograd.grad(layer(x, training=True).sum(), x, create_graph=True)
    except RuntimeError as error:
        return str(error)


@pytest.mark.skipif(BACKEND != "torch", reason="torch.distributed")
def test_torch_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=on_rank, args=(rank, port, queue), daemon=True) for rank in range(len(SIZES))]
    for worker in workers:
        worker.start()
    by_rank = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    case = 0
    for kwargs in KWARGS:
        for masked in (False, True):
            expected, final = torch_step(Ours(**kwargs), masked, *data())
            got = [by_rank[rank][case] for rank in range(len(SIZES))]
            case += 1
            joined = [np.concatenate([g[0][i] for g in got]) for i in (0, 1)]
            summed = [sum(g[0][i] for g in got) for i in (2, 3)]
            for mine, want in zip((*joined, *summed), expected, strict=True):
                np.testing.assert_allclose(mine, want, atol=TOLERANCE * max(20, np.abs(want).max()))
            for _, mine in got:
                for name, value in final.items():
                    np.testing.assert_allclose(mine[name], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
    assert "second derivative through statistics that are synchronised" in by_rank[0][case]


def test_synchronized_alone_is_the_plain_layer():
    if BACKEND == "numpy":
        pytest.skip("no replicas")
    x, *_ = data()
    one, other = Ours(synchronized=True), Ours()
    np.testing.assert_array_equal(array(one(ops.convert_to_tensor(x), training=True)), array(other(x, training=True)))
