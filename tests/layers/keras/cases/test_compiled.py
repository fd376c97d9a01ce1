"""Compiled steps: the same numbers as eager ones; unknown lengths; mixed precision; the trainer."""

import keras
import numpy as np
import pytest
from tools import BACKEND, Ours, array, state, with_training

from batchnorm.core.sums import mean_in_runs

pytestmark = with_training

CASES = [
    {},
    {"renorm": True},
    {"statistics": "debiased"},
    {"statistics": "cumulative"},
    {"virtual_batch_size": 4},
    {"virtual_batch_size": 4, "renorm": True},
    {"ddof": 1, "guard": False},
]


def model_of(kwargs, length=None):
    inputs = keras.Input((length, 3))
    return keras.Model(inputs, Ours(name="bn", momentum=0.7, **kwargs)(inputs))


def fitted(kwargs, x, y, policy=None, **compile_args):
    keras.utils.set_random_seed(1)
    if policy:
        kwargs = {**kwargs, "dtype": policy}
    model = model_of(kwargs)
    model.compile(keras.optimizers.SGD(0.1), "mse", **compile_args)
    # 22 samples in batches of 8: the last one is smaller, and ends in a virtual batch of 2.
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return history.history["loss"], state(model.get_layer("bn"))


@pytest.mark.parametrize("kwargs", CASES, ids=str)
def test_fit_compiled_is_fit_eager(rng, kwargs):
    x, y = rng.normal(3.0, 2.0, (2, 22, 5, 3)).astype("float32")
    eager_loss, eager = fitted(kwargs, x, y, run_eagerly=True)
    compiled = {"jit_compile": BACKEND != "torch"}  # torch.compile has its own case: it takes long
    loss, got = fitted(kwargs, x, y, **compiled)
    np.testing.assert_allclose(loss, eager_loss, rtol=1e-5)
    for name, value in eager.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_fit_in_mixed_precision(rng, policy):
    x, y = rng.normal(3.0, 2.0, (2, 22, 5, 3)).astype("float32")
    _, full = fitted({}, x, y, jit_compile=False)
    _, half = fitted({}, x, y, policy, jit_compile=False)
    for name in ("moving_mean", "moving_variance"):
        # Only the input is rounded: 2^-9 of the largest value for bfloat16.
        np.testing.assert_allclose(half[name], full[name], rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("guard", [True, False])
def test_skipped_updates_are_counted_in_compiled_steps(rng, guard):
    x = rng.normal(size=(16, 5, 3)).astype("float32")
    x[3, 0, 1] = np.nan
    model = model_of({"guard": guard})
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=BACKEND != "torch")
    model.fit(x, x, batch_size=8, epochs=2, shuffle=False, verbose=0)
    layer = model.get_layer("bn")
    if guard:
        assert layer.skipped_updates.tolist() == [0, 2, 0]
        assert np.isfinite(array(layer.moving_mean)).all()
    else:
        assert np.isnan(array(layer.moving_mean)).tolist() == [False, True, False]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's compiler")
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("kwargs", CASES, ids=str)
def test_tf_function_with_unknown_lengths(rng, kwargs, jit):
    import tensorflow as tf

    x = rng.normal(3.0, 2.0, (7, 5, 3)).astype("float32")
    mask = rng.random((7, 5)) > 0.3
    eager, traced = (Ours(**kwargs) for _ in range(2))
    traced.build(x.shape)
    spec = [tf.TensorSpec((None, None, 3), tf.float32), tf.TensorSpec((None, None), tf.bool)]

    @tf.function(input_signature=spec, jit_compile=jit)
    def step(x, mask):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = traced(x, training=True, mask=mask)
        return y, tape.gradient(y, x)

    for values, counted in ((x, mask), (x[:0], mask[:0]), (x[:3], mask[:3] & False), (x[::-1], mask)):
        y, gradient = step(values.copy(), counted)
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(y, eager(values, training=True, mask=counted), atol=1e-5)
        for name, value in state(eager).items():
            np.testing.assert_allclose(state(traced)[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's graph optimizer")
def test_tf_function_reads_the_statistics_before_it_writes_them(rng):
    """Seen failing with two reads of a variable: the dependency optimizer let the second one run after the write."""
    import tensorflow as tf

    x = rng.normal(3.0, 2.0, (7, 5, 4))
    layer = Ours(dtype="float64", renorm=True)
    layer.build(x.shape)
    layer.renorm_mean.assign(np.arange(4) * 0.5)
    initial = [value.copy() for value in layer.get_weights()]

    def run(x):
        for variable, value in zip(layer.weights, initial, strict=True):
            variable.assign(value)
        return tf.reduce_sum(tf.sin(layer(x, training=True)))

    eager = run(x).numpy()
    for _ in range(3):
        np.testing.assert_allclose(tf.function(run)(x).numpy(), eager, rtol=1e-12)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's XLA")
def test_xla_does_not_join_the_stages_of_a_mean():
    """It joins those of a sum: one long sum of these numbers is off by 7e-6, as rounding takes sides."""
    import tensorflow as tf

    x = tf.constant(np.full((2**15, 3), 256 + 2**-9, np.float32))
    means = [lambda x: mean_in_runs(keras.ops, x, (0,)), lambda x: keras.ops.mean(x, 0, keepdims=True)]
    staged, one = (tf.function(mean, jit_compile=True)(x).numpy() for mean in means)
    assert np.all(staged == 256 + 2**-9)
    assert not np.any(one == 256 + 2**-9)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's XLA")
def test_few_operations_are_for_graphs_without_xla():
    import tensorflow as tf

    from batchnorm.layers.keras.backends import few

    found = []
    for jit in (False, True):
        tf.function(lambda x: found.append(few()) or x, jit_compile=jit)(tf.zeros(3))
    assert found == [True, False]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's eager mode")
@pytest.mark.parametrize("kwargs", [{}, {"renorm": True}, {"virtual_batch_size": 4}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_many_eager_steps_are_the_same_as_a_function(rng, kwargs, masked):
    """From the fifth eager step on a layer calls its step as one function: same numbers, gradients of both orders."""
    import tensorflow as tf

    x = tf.constant(rng.normal(3.0, 2.0, (9, 5, 3)))
    mask = rng.random((9, 5)) > 0.3 if masked else None
    eager, traced = (Ours(momentum=0.7, epsilon=0.0123, dtype="float64", **kwargs) for _ in range(2))
    for layer in (eager, traced):
        layer.build(x.shape)

    def step(layer, x):
        parameters = [layer.gamma.value, layer.beta.value]
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = layer(x, training=True, mask=None if mask is None else mask[: x.shape[0]])
                loss = tf.reduce_sum(tf.sin(y))
            first = inner.gradient(loss, [x, *parameters])
            bent = sum(tf.reduce_sum(tf.cos(g)) for g in first)
        return [y, *first, *outer.gradient(bent, [x, parameters[0]])]

    lengths = [9] * 7 + [8, 7, 9, 3]  # new shapes, once it is a function
    for length in lengths:
        got = step(traced, x[:length])
        tf.config.run_functions_eagerly(True)
        want = step(eager, x[:length])
        tf.config.run_functions_eagerly(False)
        for mine, other in zip(got, want, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-9)
    for name, value in state(eager).items():
        np.testing.assert_allclose(state(traced)[name], value, rtol=1e-12)


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile")
@pytest.mark.parametrize("kwargs", CASES[:5], ids=str)
def test_torch_compile_in_one_graph(rng, kwargs):
    import torch

    x = torch.tensor(rng.normal(3.0, 2.0, (8, 5, 3)), dtype=torch.float32, requires_grad=True)
    eager, compiled = (Ours(**kwargs) for _ in range(2))
    for layer in (eager, compiled):
        layer.build(x.shape)
    torch._dynamo.reset()
    step = torch.compile(lambda x: compiled(x, training=True), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        expected, y = eager(x, training=True), step(x)
        np.testing.assert_allclose(array(y), array(expected), atol=1e-6)
        (want,), (got,) = (torch.autograd.grad(torch.sin(v).sum(), x) for v in (expected, y))
        np.testing.assert_allclose(got.numpy(), want.numpy(), atol=1e-6)
    for name, value in state(eager).items():
        np.testing.assert_allclose(state(compiled)[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile")
def test_fit_with_torch_compile(rng):
    x, y = rng.normal(3.0, 2.0, (2, 16, 5, 3)).astype("float32")
    eager_loss, eager = fitted({}, x, y, jit_compile=False)
    import torch

    torch._dynamo.reset()
    keras_torch = torch.compile
    torch.compile = lambda *args, **kwargs: keras_torch(*args, **{**kwargs, "backend": "aot_eager"})  # no C++ compiler
    try:
        loss, got = fitted({}, x, y, jit_compile=True)
    finally:
        torch.compile = keras_torch
    np.testing.assert_allclose(loss, eager_loss, rtol=1e-5)
    for name, value in eager.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)
