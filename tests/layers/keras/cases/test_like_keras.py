"""What Keras' own layer does, ours does: each case runs on both."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from tools import BACKEND, Ours, Theirs, array, state, with_training

both = pytest.mark.parametrize("Layer", [Theirs, Ours], ids=["keras", "ours"])
# Each operation on float32 values of size s errs by at most s * 6e-8; a mean and a variance of up to 3200 elements of
# size 40 stay under 1e-3 in the output of unit variance, also by Keras' E[x^2] - E[x]^2.
LOOSE = 1e-3
TIGHT = 1e-5


@both
@pytest.mark.parametrize(
    ("kwargs", "shape", "trainable", "fixed", "losses"),
    [
        ({}, (2, 3), 2, 2, 0),
        ({"center": False, "scale": False}, (2, 3), 0, 2, 0),
        ({"center": False}, (2, 3), 1, 2, 0),
        ({"beta_regularizer": "l2", "gamma_regularizer": "l2"}, (2, 4, 4, 3), 2, 2, 2),
        ({"renorm": True}, (2, 3), 2, 5, 0),
        ({"renorm": True, "renorm_clipping": {"rmax": 3.0, "rmin": 0.3, "dmax": 5.0}}, (2, 4, 4, 3), 2, 5, 0),
    ],
)
def test_variables_shapes_and_config(rng, Layer, kwargs, shape, trainable, fixed, losses):
    layer = Layer(**kwargs)
    x = rng.normal(size=shape).astype("float32")
    y = layer(x, training=True)
    assert tuple(y.shape) == shape == layer.compute_output_shape(shape)
    assert layer(keras.Input(batch_shape=shape)).shape == shape
    assert (len(layer.trainable_weights), len(layer.non_trainable_weights)) == (trainable, fixed)
    assert len(layer.losses) == losses
    assert layer.supports_masking
    again = Layer.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    expected = Theirs(**kwargs)
    expected.build(shape)
    assert [(v.name, v.shape, v.dtype) for v in layer.weights] == [(v.name, v.shape, v.dtype) for v in expected.weights]


@both
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 3, 3, 2)])
@pytest.mark.parametrize("initial", [("zeros", "ones"), ("ones", "zeros")])
def test_training_normalises_and_inference_follows(rng, Layer, axis, shape, initial):
    layer = Layer(axis=axis, momentum=0, moving_mean_initializer=initial[0], moving_variance_initializer=initial[1])
    x = rng.normal(5.0, 10.0, shape)
    before = array(layer(x, training=False))
    reduced = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    y = array(layer(x, training=True))
    np.testing.assert_allclose(y.mean(reduced), 0, atol=LOOSE)
    np.testing.assert_allclose(y.std(reduced), 1, atol=LOOSE)
    np.testing.assert_allclose(array(layer.moving_mean), x.mean(reduced), rtol=TIGHT)
    np.testing.assert_allclose(array(layer.moving_variance), x.var(reduced), rtol=1e-4)
    assert not np.allclose(before, y)
    np.testing.assert_allclose(array(layer(x, training=False)), y, atol=LOOSE)


@both
def test_a_mask_changes_training_and_not_inference(rng, Layer):
    x = rng.normal(5.0, 10.0, (5, 3, 2)).astype("float32")
    x[:, 1, :] = 0
    masked = layers.Masking()(x)
    for training in (False, True):
        layer, plain = Layer(momentum=0), Layer(momentum=0)
        plain_y, y = array(plain(x, training=training)), array(layer(masked, training=training))
        assert np.allclose(plain_y, y) is not training


@both
def test_all_masked_zeros_stay_zeros(Layer):
    layer = Layer(scale=False, center=False)
    y = layer(np.zeros((4, 5)), mask=np.zeros((4,), "float32"), training=True)
    np.testing.assert_array_equal(array(y), 0)


@both
@with_training
@pytest.mark.parametrize("eagerly", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_masked_values_are_ignored_in_fit(Layer, eagerly, value):
    data = np.array([[[1, 5], [2, 5], [value] * 2, [value] * 2]] * 10, "float32")
    inputs = keras.Input((None, 2))
    model = keras.Model(inputs, Layer(momentum=0.0)(layers.Masking(mask_value=value)(inputs)))
    model.compile("rmsprop", "mse", run_eagerly=eagerly)
    model.fit(data, data, batch_size=10, epochs=2, verbose=0)
    np.testing.assert_allclose(array(model.layers[2].moving_mean), [1.5, 5.0], rtol=TIGHT)
    np.testing.assert_allclose(array(model.layers[2].moving_variance), [0.25, 0.0], atol=TIGHT)


@both
@pytest.mark.skipif(BACKEND == "numpy", reason="a NumPy array carries no mask")
def test_the_mask_goes_on_to_the_next_layer(Layer):
    x = np.array([[[1.0, 2.0], [0.0, 0.0]]], "float32")
    assert array(Layer()(layers.Masking()(x))._keras_mask).tolist() == [[True, False]]


@both
def test_a_mask_broadcasts(Layer):
    layer = Layer(momentum=0.0)
    y = layer(ops.ones((1, 2, 3, 4)), training=True, mask=ops.ones((1, 2, 1)))
    np.testing.assert_allclose(array(y), 0, atol=1e-6)
    np.testing.assert_allclose(array(layer.moving_mean), 1, atol=1e-6)
    np.testing.assert_allclose(array(layer.moving_variance), 0, atol=1e-6)


@pytest.mark.skipif(BACKEND == "numpy", reason="a NumPy array carries no mask")
@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 3, 3)], ids=str)
def test_a_mask_from_an_earlier_layer_lies_along_the_leading_axes(rng, shape):
    """Wherever the channels are, and also where it could be read as a mask of the other axes."""
    x = rng.normal(3.0, 2.0, shape).astype("float32")
    x[0, 2:] = 0
    results = []
    for layer in (Theirs(axis=1, momentum=0.0), Ours(axis=1, momentum=0.0)):
        y = keras.Sequential([keras.Input(shape[1:]), layers.Masking(), layer])(x, training=True)
        results.append([array(v) for v in (y, layer.moving_mean, layer.moving_variance)])
    for ours, theirs in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@both
def test_frozen_is_inference(rng, Layer):
    layer = Layer(momentum=0.8, epsilon=1e-7)
    layer.build((1, 4, 4, 3))
    layer.trainable = False
    assert (len(layer.trainable_weights), len(layer.non_trainable_weights)) == (0, 4)
    x = rng.normal(5.0, 10.0, (20, 4, 4, 3)).astype("float32")
    np.testing.assert_allclose(array(layer(x, training=True)), x, rtol=TIGHT)
    np.testing.assert_array_equal(array(layer.moving_mean), 0)
    layer.trainable = True
    assert (len(layer.trainable_weights), len(layer.non_trainable_weights)) == (2, 2)
    y = array(layer(x, training=True))
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=LOOSE)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=LOOSE)


@both
def test_momentum_and_epsilon_set_later_count(rng, Layer):
    x = rng.normal(2.0, 1.0, (64, 3)).astype("float32")
    layer = Layer(renorm=True)
    layer.build(x.shape)
    layer.momentum, layer.epsilon, layer.renorm_momentum = 0.5, 1.0, 0.25
    layer(x, training=True)
    np.testing.assert_allclose(array(layer.moving_mean), 0.5 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(array(layer.renorm_mean), 0.75 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(array(layer.moving_stddev), 0.5 + 0.5 * np.sqrt(x.var(0) + 1), rtol=1e-5)
    config = layer.get_config()
    assert (config["momentum"], config["epsilon"], config["renorm_momentum"]) == (0.5, 1.0, 0.25)


@with_training
@both
def test_stateless_call_takes_arrays(rng, Layer):
    layer = Layer(momentum=0.0)
    layer.build((None, 3))
    x = rng.normal(2.0, 1.0, (8, 3)).astype("float32")
    fixed = [v.value for v in layer.non_trainable_variables]
    trained = [v.value for v in layer.trainable_variables]
    _, after = layer.stateless_call(trained, fixed, x, training=True)
    np.testing.assert_allclose(array(after[0]), x.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(array(layer.moving_mean), 0)


@both
def test_statistics_are_not_cast_by_autocast(Layer):
    layer = Layer()
    layer.build((1, 4, 4, 3))
    with keras.src.backend.AutocastScope("float16"):  # 70000 is infinity there
        layer.moving_variance.assign(ops.full((3,), 70000.0))
        np.testing.assert_array_equal(array(layer.moving_variance.value), 70000.0)


@both
@pytest.mark.parametrize("initial", [4.0])
def test_renorm_starts_from_the_root_of_the_variance(Layer, initial):
    layer = Layer(renorm=True, moving_variance_initializer=keras.initializers.Constant(initial))
    layer.build((None, 5))
    np.testing.assert_allclose(array(layer.moving_stddev), np.sqrt(initial))
    np.testing.assert_allclose(array(layer.renorm_stddev), np.sqrt(initial))


@both
def test_renorm_by_hand(rng, Layer):
    layer = Layer(momentum=0.9, renorm=True, renorm_momentum=0.8, renorm_clipping={"rmax": 2.0, "dmax": 1.5})
    layer.build((None, 3))
    initial = {name: np.abs(rng.normal(1.0, 0.5, 3)).astype("float32") for name in state(layer)}
    for name, value in initial.items():
        getattr(layer, name).assign(value)
    x = np.array([[4.0, 6.0, 2.0], [8.0, -2.0, 5.0], [6.0, 4.0, 3.0]], "float32")
    mean, std = x.mean(0), np.sqrt(x.var(0) + 1e-3)
    r = np.minimum(std / initial["renorm_stddev"], 2.0)
    d = np.clip((mean - initial["renorm_mean"]) / initial["renorm_stddev"], -1.5, 1.5)
    expected = ((x - mean) / std * r + d) * initial["gamma"] + initial["beta"]
    np.testing.assert_allclose(array(layer(x, training=True)), expected, atol=TIGHT)
    after = state(layer)
    for name, batch, keep in (
        ("renorm_mean", mean, 0.8),
        ("renorm_stddev", std, 0.8),
        ("moving_mean", mean, 0.9),
        ("moving_stddev", std, 0.9),
    ):
        np.testing.assert_allclose(after[name], keep * initial[name] + (1 - keep) * batch, atol=TIGHT)
    np.testing.assert_allclose(after["moving_variance"], after["moving_stddev"] ** 2 - 1e-3, atol=TIGHT)


@both
def test_renorm_is_not_seen_in_inference(rng, Layer):
    x = rng.normal(size=(4, 10)).astype("float32")
    plain, renorm = Layer(), Layer(renorm=True)
    for layer in (plain, renorm):
        layer.build((None, 10))
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        value = np.abs(rng.normal(size=10))
        getattr(plain, name).assign(value)
        getattr(renorm, name).assign(value)
    np.testing.assert_array_equal(array(plain(x)), array(renorm(x)))


@pytest.mark.parametrize("kwargs", [{}, {"renorm": True}, {"axis": 1}, {"center": False}, {"scale": False}])
@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (3, 4, 4, 4), (2, 4, 2, 3, 4)])
def test_the_same_numbers_step_by_step(rng, kwargs, shape):
    ours, theirs = Ours(**kwargs), Theirs(**kwargs)
    for step in range(3):
        x = rng.normal(step, 1.0 + step, shape).astype("float32")
        # Keras' variance is E[x^2] - E[x]^2 on PyTorch and NumPy: it errs by 6e-8 * (1 + mean^2/variance) a step.
        np.testing.assert_allclose(array(ours(x, training=True)), array(theirs(x, training=True)), atol=2e-5)
        np.testing.assert_allclose(array(ours(x)), array(theirs(x)), atol=2e-5)
    for name, value in state(theirs).items():
        np.testing.assert_allclose(state(ours)[name], value, rtol=TIGHT, atol=1e-6, err_msg=name)
