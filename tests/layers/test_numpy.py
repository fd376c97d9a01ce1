"""The NumPy layer: values against the float64 reference, and every edge case of the design."""

import copy
import json
import pickle
import warnings

import ml_dtypes
import numpy as np
import pytest

from batchnorm.core import reference
from batchnorm.core.dtypes import unit_roundoff
from batchnorm.errors import ArgumentError, BatchnormError
from batchnorm.layers.fitting import SGD
from batchnorm.layers.numpy import BatchNormalization

EPSILON = 1e-3
U32 = 2.0**-24


def normal(shape, seed=0, mean=2.0, sd=3.0, dtype=np.float64):
    return (np.random.default_rng(seed).standard_normal(shape) * sd + mean).astype(dtype)


def bare(**options):
    return BatchNormalization(center=False, scale=False, **options)


# -- the question -----------------------------------------------------------------------------------------------------


def test_training_mode_gives_what_the_question_expected():
    y = bare()(np.array([[1.0], [5.0]]), training=True)
    # 2/sqrt(4.001) = 0.99987502343261...; four float64 roundings.
    np.testing.assert_allclose(y.ravel(), [-2 / 4.001**0.5, 2 / 4.001**0.5], rtol=4 * 2.0**-53)


def test_inference_gives_what_the_question_got():
    layer = BatchNormalization(center=False)
    layer.set_weights([np.float32([0.80644524]), np.float32([0.05885344]), np.float32([0.91000736])])
    y = layer(np.array([[[[1], [5]]]], np.float32))
    # TensorFlow printed .79519051 and 4.17485714; float64 gives .795190530 and 4.174857687, here rounded to float32.
    np.testing.assert_allclose(y.ravel(), [0.795190530, 4.174857687], rtol=U32)


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [-1, 1, 0, (1, 2), (-1, 1), [2]], ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16], ids=str)
def test_training_output_is_the_reference_rounded_once(axis, dtype):
    x = normal((6, 3, 4), dtype=dtype)
    layer = BatchNormalization(axis=axis)
    layer.build(x.shape)
    layer.gamma[...], layer.beta[...] = normal(layer.gamma.shape, 1), normal(layer.beta.shape, 2)
    kept = tuple(sorted({a % 3 for a in np.atleast_1d(axis).tolist()}))
    wanted = reference.training(x, layer.gamma, layer.beta, epsilon=EPSILON, axis=kept)
    y = layer(x, training=True)
    assert y.dtype == x.dtype
    # One rounding to the output's type; before it 8 float64 roundings of terms no larger than |y| + |beta|.
    bound = unit_roundoff(x.dtype) * np.abs(wanted) + 8 * 2.0**-53 * (np.abs(wanted) + 20)
    assert np.all(np.abs(y.astype(np.float64) - wanted) <= bound)


def test_integers_count_as_float64():
    x = np.arange(12).reshape(4, 3)
    assert np.array_equal(bare()(x, training=True), bare()(x.astype(np.float64), training=True))


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_moving_statistics_follow_the_batches(ddof, decay):
    layer = bare(momentum=decay, ddof=ddof, dtype="float64")
    mean, variance = np.zeros(3), np.ones(3)
    for seed in range(4):
        x = normal((5, 3), seed)
        layer(x, training=True)
        batch_mean, batch_variance = reference.moments(x)
        stored = batch_variance * 5 / (5 - ddof)
        mean = np.array([reference.update(a, b, decay) for a, b in zip(mean, batch_mean, strict=True)])
        variance = np.array([reference.update(a, b, decay) for a, b in zip(variance, stored, strict=True)])
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-14)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-14)
    assert layer.updates == 4


def test_debiased_statistics_are_right_from_the_first_update():
    layer = bare(statistics="debiased")
    x = normal((64, 2), dtype=np.float32)
    layer(x, training=True)
    mean, variance = reference.moments(x)
    wanted = reference.inference(x, mean, variance, None, None, epsilon=EPSILON)
    # Each stored float32 number is off by U32 of itself, and 1/(1 - decay) = 100 magnifies that.
    np.testing.assert_allclose(layer(x), wanted, atol=100 * 4 * U32 * np.max(np.abs(wanted)))
    assert layer.get_weights()[-1].tolist() == [np.float32(0.99)] * 2


def test_debiased_matches_the_formula_after_many_updates():
    layer = bare(statistics="debiased", momentum=0.8, dtype="float64")
    for seed in range(7):
        layer(normal((5, 2), seed), training=True)
    x = normal((3, 2), 50)
    mean = [reference.debias(m, 0.0, 0.8, 7) for m in layer.moving_mean]
    variance = [reference.debias(v, 1.0, 0.8, 7) for v in layer.moving_variance]
    np.testing.assert_allclose(
        layer(x), reference.inference(x, mean, variance, None, None, epsilon=EPSILON), rtol=1e-13
    )


def test_a_debiased_variance_that_rounding_pushed_below_zero_counts_as_zero():
    layer = bare(statistics="debiased", epsilon=1e-12)
    remaining = np.float32(0.99)
    layer.set_weights([[0.0], [np.nextafter(remaining, np.float32(0))], [remaining]])
    assert np.isfinite(layer(np.ones((2, 1)))).all()


def test_cumulative_is_the_plain_mean_over_updates():
    layer = bare(statistics="cumulative", dtype="float64")
    batches = [normal((5, 2), seed) for seed in range(6)]
    for x in batches:
        layer(x, training=True)
    each = [reference.moments(x) for x in batches]
    np.testing.assert_allclose(layer.moving_mean, np.mean([m for m, _ in each], axis=0), rtol=1e-14)
    np.testing.assert_allclose(layer.moving_variance, np.mean([v for _, v in each], axis=0), rtol=1e-14)
    assert layer.get_weights()[-1].tolist() == [6.0, 6.0]


def test_before_the_first_update_every_mode_normalises_with_0_and_1():
    for statistics in ("moving", "debiased", "cumulative"):
        y = bare(statistics=statistics)(np.array([[2.0]]))
        assert y.item() == 2.0 * (1 / np.sqrt(1.001))


def test_a_virtual_batch_is_a_batch_of_its_own():
    x = normal((10, 3))
    whole, parts = bare(virtual_batch_size=4, dtype="float64"), bare(dtype="float64")
    y = whole(x, training=True)
    wanted = [parts(one, training=True) for one in (x[:4], x[4:8], x[8:])]  # the last one is smaller
    assert np.array_equal(y, np.concatenate(wanted))
    assert np.array_equal(whole.get_weights(), parts.get_weights())
    assert whole.updates == 3
    assert np.array_equal(whole(x), parts(x))


def test_a_last_virtual_batch_of_one_element_gives_beta_and_no_update():
    layer = bare(virtual_batch_size=4)
    with pytest.warns(UserWarning, match="one element per channel"):
        y = layer(normal((5, 3)), training=True)
    assert y[4].tolist() == [0.0, 0.0, 0.0]
    assert layer.updates == 1


def test_renorm_corrects_towards_its_own_averages():
    clipping = {"rmin": 0.5, "rmax": 1.5, "dmax": 0.25}
    layer = bare(renorm=True, renorm_clipping=clipping, renorm_momentum=0.5, momentum=0.9, dtype="float64")
    renorm_mean, renorm_std, moving_std = np.zeros(2), np.ones(2), np.ones(2)
    for seed in range(3):
        x = normal((8, 2), seed, sd=1.2 + seed)
        mean, variance = reference.moments(x)
        std = np.sqrt(variance + EPSILON)
        r = np.clip(std / renorm_std, 0.5, 1.5)
        d = np.clip((mean - renorm_mean) / renorm_std, -0.25, 0.25)
        np.testing.assert_allclose(layer(x, training=True), (x - mean) / std * r + d, rtol=1e-13, atol=1e-14)
        renorm_mean, renorm_std = (renorm_mean + mean) / 2, (renorm_std + std) / 2
        moving_std = 0.9 * moving_std + (1 - 0.9) * std
    np.testing.assert_allclose(layer.moving_variance, moving_std**2 - EPSILON, rtol=1e-13)
    assert layer.weight_names == ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")


# -- the way back -----------------------------------------------------------------------------------------------------


def numeric_gradient(loss, at, step=1e-5):
    gradient = np.empty_like(at)
    for i in np.ndindex(at.shape):
        nudge = np.zeros_like(at)
        nudge[i] = step
        gradient[i] = (loss(at + nudge) - loss(at - nudge)) / (2 * step)
    return gradient


MASK = np.array([[True, True, False], [True, False, True], [True, True, True], [True, False, True]])
BACKWARD = {
    "training": ({}, True, None),
    "masked": ({}, True, MASK),
    "all masked": ({}, True, np.zeros((4, 3), bool)),
    "channels first": ({"axis": 1}, True, None),
    "several axes": ({"axis": (1, 2)}, True, None),
    "virtual": ({"virtual_batch_size": 2}, True, None),
    "virtual, masked": ({"virtual_batch_size": 3}, True, MASK),
    "no parameters": ({"center": False, "scale": False}, True, None),
    "inference": ({}, False, None),
    "debiased inference": ({"statistics": "debiased"}, False, None),
    "frozen": ({"trainable": False}, True, None),
}


@pytest.mark.parametrize("case", BACKWARD)
def test_backward_is_the_derivative(case):
    options, training, mask = BACKWARD[case]
    x, weight = normal((4, 3, 2), 1), normal((4, 3, 2), 2)
    layer = BatchNormalization(**options, dtype="float64")
    layer.set_weights([normal(one.shape, 10 + i) ** 2 for i, one in enumerate(_built(layer, x).get_weights())])
    layer(x, training=training, mask=mask)
    dx = layer.backward(weight)

    def loss_of(name):
        def loss(value):
            fresh = copy.deepcopy(layer)
            if name != "x":
                setattr(fresh, name, value)
            return np.sum(weight * fresh(value if name == "x" else x, training=training, mask=mask))

        return loss

    # Central differences: the error of the step is 1e-10 of the third derivative, of the subtraction 1e-16*|loss|/1e-5.
    np.testing.assert_allclose(dx, numeric_gradient(loss_of("x"), x), atol=1e-8)
    for name in ("gamma", "beta"):
        gradient = getattr(layer.gradients, name)
        if getattr(layer, name) is None:
            assert gradient is None
        else:
            np.testing.assert_allclose(gradient, numeric_gradient(loss_of(name), getattr(layer, name)), atol=1e-8)


def _built(layer, x):
    layer.build(x.shape)
    return layer


def test_backward_through_renorm_holds_r_and_d_constant():
    x, grad = normal((6, 2)), normal((6, 2), 1)
    layer = BatchNormalization(renorm=True, dtype="float64")
    _built(layer, x).set_weights([np.array([0.7, -2.0]), np.zeros(2), *[np.full(2, v) for v in (0, 1, 1, 0.3, 2.0)]])
    layer(x, training=True)
    dx = layer.backward(grad)
    mean, variance = reference.moments(x)
    std = np.sqrt(variance + EPSILON)
    r, d = std / 2.0, (mean - 0.3) / 2.0
    wanted, _, dbeta = reference.backward(grad, x, layer.gamma * r, epsilon=EPSILON)
    np.testing.assert_allclose(dx, wanted, rtol=1e-12)
    np.testing.assert_allclose(layer.gradients.beta, dbeta, rtol=1e-12)
    np.testing.assert_allclose(layer.gradients.gamma, np.sum(grad * ((x - mean) / std * r + d), axis=0), rtol=1e-12)


def test_nan_in_padding_that_the_loss_ignores_reaches_no_gradient():
    x, grad = normal((4, 3, 2)), normal((4, 3, 2), 1) * MASK[..., None]
    clean = BatchNormalization()
    clean(x, training=True, mask=MASK)
    wanted = clean.backward(grad)
    x[~MASK] = np.nan
    layer = BatchNormalization()
    layer(x, training=True, mask=MASK)
    assert np.array_equal(layer.backward(grad), wanted)
    assert np.array_equal(layer.gradients.gamma, clean.gradients.gamma)
    assert np.array_equal(layer.get_weights(), clean.get_weights())


def test_predict_leaves_the_way_back_alone():
    x, grad = normal((4, 2)), normal((4, 2), 1)
    layer = BatchNormalization()
    layer(x, training=True)
    wanted = layer.backward(grad)
    layer.predict(normal((9, 2)))
    assert np.array_equal(layer.backward(grad), wanted)


def test_backward_needs_a_forward_and_its_shape():
    with pytest.raises(BatchnormError, match=r"bn: backward needs a forward pass first\. Call the layer"):
        BatchNormalization(name="bn").backward([[1.0]])
    layer = BatchNormalization(name="bn")
    layer(np.ones((4, 2)))
    with pytest.raises(ArgumentError, match=r"bn: grad must have the shape of the output, \(4, 2\); got \(2, 4\)"):
        layer.backward(np.ones((2, 4)))


# -- edge cases -------------------------------------------------------------------------------------------------------


def _state_of(layer):
    return [one.tobytes() for one in layer.get_weights()], layer.updates


@pytest.mark.parametrize("statistics", ["moving", "debiased", "cumulative"])
def test_an_empty_batch_changes_nothing(statistics):
    layer = BatchNormalization(statistics=statistics)
    layer(normal((4, 3)), training=True)
    before = _state_of(layer)
    y = layer(np.empty((0, 3), np.float16), training=True)
    assert (y.shape, y.dtype) == ((0, 3), np.float16)
    assert layer.backward(y).shape == (0, 3)
    assert layer.gradients.gamma.tolist() == [0.0, 0.0, 0.0]
    assert _state_of(layer) == before


def test_one_element_per_channel_gives_beta_warns_once_and_does_not_update():
    layer = BatchNormalization(name="bn")
    layer.build((None, 3))
    layer.beta[:] = [1.0, 2.0, 3.0]
    before = _state_of(layer)
    with pytest.warns(
        UserWarning, match=r"bn: training on one element per channel \(input of shape \(1, 3\)\)"
    ) as said:
        y = layer(np.array([[7.0, 8.0, 9.0]]), training=True)
    assert said[0].filename == __file__
    assert y.tolist() == [[1.0, 2.0, 3.0]]
    layer(np.array([[7.0, 8.0, 9.0]]), training=True)  # a second warning would be an error
    assert _state_of(layer) == before
    assert np.array_equal(layer.backward(np.ones((1, 3))), np.zeros((1, 3)))


def test_everything_masked_takes_the_moving_statistics():
    layer = BatchNormalization()
    x = normal((4, 5, 3))
    layer(x, training=True)
    before = _state_of(layer)
    assert np.array_equal(layer(x, training=True, mask=np.zeros((4, 5), bool)), layer(x))
    assert _state_of(layer) == before


def test_masked_positions_do_not_count_and_are_normalised_like_any_other():
    x, mask = normal((4, 3, 2)), MASK
    layer = bare(momentum=0.0, dtype="float64")
    y = layer(x, training=True, mask=mask)
    mean, variance = reference.moments(x, mask=mask)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-14)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-14)
    np.testing.assert_allclose(y, reference.training(x, None, None, epsilon=EPSILON, mask=mask), rtol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_the_statistics_cannot_hold_skips_the_update_of_its_channel(bad):
    layer = BatchNormalization(ddof=1)
    x = normal((4, 2))
    x[1, 0] = bad  # 1e30: its variance, 2e59, overflows float32
    y = layer(x, training=True)
    assert layer.moving_mean[0] == 0
    assert layer.moving_variance[0] == 1
    assert layer.moving_mean[1] != 0
    assert layer.skipped_updates.tolist() == [1, 0]
    assert layer.updates == 1
    assert np.isfinite(y[:, 1]).all()
    assert np.isnan(y[1, 0]) == (bad != 1e30)  # the output shows it


def test_the_divisor_cannot_push_a_variance_over_the_edge_of_its_type():
    layer = bare(ddof=1)
    # Variance 2.5e38 fits float32 (3.4e38); with the divisor count - 1 it is 5e38.
    layer(np.array([[-1.0], [1.0]]) * np.sqrt(2.5e38), training=True)
    assert layer.moving_variance.tolist() == [1.0]
    assert layer.skipped_updates.tolist() == [1]


def test_without_the_guard_a_nan_stays_for_good():
    layer = bare(guard=False)
    layer(np.array([[np.nan], [1.0]]), training=True)
    layer(np.array([[0.0], [1.0]]), training=True)
    assert np.isnan(layer.moving_mean[0])
    assert layer.skipped_updates.tolist() == [0]


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4, 1e6])
def test_a_large_mean_costs_nothing(mean):
    x = normal((512, 2), mean=mean, sd=1.0, dtype=np.float32)
    y = bare()(x, training=True)
    wanted = reference.training(x, None, None, epsilon=EPSILON)
    assert np.max(np.abs(y - wanted)) <= U32 * np.max(np.abs(wanted)) * (1 + 1e-6)


def test_inference_subtracts_a_large_mean_first():
    layer = BatchNormalization(epsilon=1e-3)
    layer.set_weights([np.ones(1), np.zeros(1), np.array([1e6]), np.ones(1)])
    x = np.float32(1e6) + np.arange(-8, 8, dtype=np.float32)[:, None] / 16
    exact = (x.astype(np.float64) - 1e6) / np.sqrt(1.001)
    np.testing.assert_allclose(layer(x), exact, rtol=2.0**-23)  # rounded to float32 once
    scale = np.float32(1 / np.sqrt(1.001))
    assert abs(x * scale + np.float32(-1e6) * scale - exact).max() > 1e-4  # as Keras and PyTorch do it


@pytest.mark.parametrize("value", [3.1e7, 100.1, 1e30, -0.1, 0.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_channel_is_exactly_beta(value, dtype):
    layer = BatchNormalization()
    layer.build((None, 1))
    layer.beta[:] = 0.3
    y = layer(np.full((64, 7, 1), value, dtype), training=True)
    assert np.all(y == np.float32(0.3))


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16], ids=str)
def test_half_precision_moves_float32_statistics_all_the_way(dtype):
    layer = bare(momentum=0.99)
    x = (10 + np.array([[-1.0], [1.0]])).astype(dtype)
    for _ in range(1500):
        assert layer(x, training=True).dtype == x.dtype
    # .99^1500 = 3e-7 of the way is left; a bfloat16 average stalls at 7.09. float32 rounds by U32 per update, of which
    # 1/(1 - decay) = 100 are remembered, and its .99 and .01 do not add up to 1 exactly (1e-8 * 100).
    assert layer.moving_mean.dtype == np.float32
    assert abs(layer.moving_mean[0] - 10) <= 10 * (100 * U32 + 1e-6 + 3e-7)


@pytest.mark.parametrize("how", ["constructor", "attribute"])
def test_a_frozen_layer_normalises_with_its_statistics_and_never_changes(how):
    layer = BatchNormalization(trainable=how == "attribute")
    x = normal((4, 3))
    layer.build(x.shape)
    layer.trainable = False
    before = _state_of(layer)
    y = layer(x, training=True)
    assert np.array_equal(y, layer(x))
    layer.fit(x, x, epochs=3)
    assert _state_of(layer) == before
    layer.trainable = True
    layer(x, training=True)
    assert layer.updates == 1


@pytest.mark.parametrize("flaw", ["reversed", "transposed", "strided", "read-only", "big-endian"])
def test_odd_memory_layouts(flaw):
    base = normal((6, 4), dtype=np.float32)
    odd = {
        "reversed": base[::-1, ::-1][::-1, ::-1],
        "transposed": np.ascontiguousarray(base.T).T,
        "strided": np.repeat(base, 2, axis=1)[:, ::2],
        "read-only": np.frombuffer(base.tobytes(), np.float32).reshape(base.shape),
        "big-endian": base.astype(">f4"),
    }[flaw]
    layer, plain = bare(), bare()
    np.testing.assert_array_equal(layer(odd, training=True), plain(base, training=True))
    assert np.array_equal(layer.get_weights(), plain.get_weights())


# -- weights and configuration ----------------------------------------------------------------------------------------


OPTIONS = {
    "plain": ({}, "gamma beta moving_mean moving_variance"),
    "no gamma": ({"scale": False}, "beta moving_mean moving_variance"),
    "debiased": ({"statistics": "debiased"}, "gamma beta moving_mean moving_variance remaining"),
    "cumulative": ({"statistics": "cumulative", "center": False}, "gamma moving_mean moving_variance updates"),
    "renorm": (
        {"renorm": True, "renorm_clipping": {"dmax": 5.0}, "statistics": "debiased", "axis": [1, -1]},
        "gamma beta moving_mean moving_variance moving_stddev renorm_mean renorm_stddev remaining",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_configuration_and_weights_make_the_same_layer_again(case):
    options, names = OPTIONS[case]
    layer = BatchNormalization(**options, name="bn", epsilon=0.01, momentum=0.7, ddof=1)
    x = normal((8, 3, 2))
    layer.fit(x, x[::-1], epochs=3, batch_size=3, seed=0)
    twin = BatchNormalization.from_config(json.loads(json.dumps(layer.get_config())))
    twin.set_weights(layer.get_weights())
    assert twin.get_config() == layer.get_config()
    assert list(twin.weight_names) == names.split()
    for training in (False, True):
        assert np.array_equal(twin(x, training=training), layer(x, training=training))
    assert all(np.array_equal(a, b) for a, b in zip(twin.weights, layer.weights, strict=True))


def test_weights_from_another_layer_normalise_as_they_are():
    plain = BatchNormalization()
    x = normal((8, 3))
    plain.fit(x, x, epochs=2)
    for statistics in ("debiased", "cumulative"):
        layer = BatchNormalization(statistics=statistics)
        layer.set_weights(plain.get_weights())
        assert layer.get_weights()[-1].tolist() == [0.0] * 3
        assert np.array_equal(layer(x), plain(x))


def test_get_weights_copies_and_set_weights_forgets_the_history():
    layer = BatchNormalization()
    layer(normal((4, 2)), training=True)
    saved = layer.get_weights()
    saved[0][:] = 7
    assert layer.gamma.tolist() == [1.0, 1.0]
    layer.set_weights(saved)
    saved[0][:] = 8
    assert layer.gamma.tolist() == [7.0, 7.0]
    assert layer.updates is None
    layer(normal((4, 2)), training=True)
    assert layer.updates is None


def test_a_layer_survives_pickle_and_copy():
    layer = BatchNormalization()
    x = normal((4, 2))
    layer.fit(x, x, epochs=2)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert np.array_equal(twin(x), layer(x))
        assert twin.updates == 2


def test_refused_weights_change_nothing():
    layer = BatchNormalization(name="bn")
    layer.build((None, 2))
    before = _state_of(layer)
    with pytest.raises(ArgumentError, match=r"bn: set_weights needs 4 arrays, gamma, beta, .*; got 1"):
        layer.set_weights([np.ones(2)])
    with pytest.raises(ArgumentError, match=r"bn: moving_variance must have the shape \(2,\); got \(3,\)"):
        layer.set_weights([np.ones(2), np.ones(2), np.ones(2), np.ones(3)])
    assert _state_of(layer) == before


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0}, r"bn: epsilon must be positive and finite; got 0\."),
        ({"epsilon": -1e-3}, r"epsilon .* got -0\.001"),
        ({"epsilon": float("nan")}, "epsilon .* got nan"),
        ({"epsilon": "x"}, "epsilon must be a number; got 'x'"),
        ({"momentum": 1.01}, r"bn: momentum must lie between 0 and 1, the share .*; got 1\.01"),
        ({"momentum": -0.1}, "momentum"),
        ({"renorm_momentum": 2}, "renorm_momentum .* got 2"),
        ({"statistics": "debias"}, "statistics must be one of 'moving', 'debiased', 'cumulative'; got 'debias'"),
        ({"ddof": 2}, "ddof must be one of 0, 1; got 2"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'float64'; got 'float16'"),
        ({"virtual_batch_size": 0}, "virtual_batch_size must be an integer of at least 1; got 0"),
        ({"virtual_batch_size": 2.5}, r"virtual_batch_size .* got 2\.5"),
        ({"axis": 1.5}, r"axis must be an integer or a sequence of integers; got 1\.5"),
        ({"renorm_clipping": {"max": 1}}, r"renorm_clipping takes 'rmin', 'rmax' and 'dmax'; got \['max'\]"),
        ({"renorm_clipping": {"rmin": 2, "rmax": 1}}, r"rmin <= rmax; got rmin=2\.0 and rmax=1\.0"),
        ({"renorm_clipping": {"dmax": -1}}, r"\['dmax'\] must be at least 0; got -1\.0"),
    ],
)
def test_arguments_out_of_range_are_refused_at_construction(options, message):
    with pytest.raises(ArgumentError, match=message):
        BatchNormalization(name="bn", **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda bn: bn(np.ones((4, 2))),
            ArgumentError,
            r"bn: the layer has 3 channels on axis -1; got .* \(4, 2\), .* 2 th",
        ),
        (lambda bn: bn(np.float32(1)), ArgumentError, "bn: the input must have at least one axis"),
        (
            lambda bn: bn(np.ones((4, 3), complex)),
            TypeError,
            "bn: the input must hold real numbers; got dtype complex128",
        ),
        (lambda bn: bn([["a", "b", "c"]]), TypeError, "bn: the input must hold real numbers; got dtype <U1"),
        (lambda bn: bn([[None] * 3]), TypeError, "got dtype object"),
        (lambda bn: bn(np.ones((4, 3)), mask=np.ones(4)), TypeError, "bn: mask must be boolean"),
        (lambda bn: bn(np.ones((4, 3)), mask=np.ones(3, bool)), ArgumentError, r"bn: mask must have the shape \(4,\)"),
        (
            lambda bn: bn.fit(np.ones((4, 3)), np.ones((4, 1)), 1),
            ArgumentError,
            r"one shape; got \(4, 3\) and \(4, 1\)",
        ),
        (lambda bn: bn.fit(np.ones((0, 3)), np.ones((0, 3)), 1), ArgumentError, "at least one sample"),
        (lambda bn: bn.fit(1.0, 1.0), ArgumentError, "at least one sample"),
        (lambda bn: bn.fit(np.ones((4, 3)), np.ones((4, 3)), -1), ArgumentError, "epochs .* at least 0; got -1"),
        (lambda bn: bn.fit(np.ones((4, 3)), np.ones((4, 3)), 1, 0), ArgumentError, "batch_size .* at least 1; got 0"),
        (lambda bn: bn.fit(np.ones((4, 3)), np.ones((4, 3)), loss="mae"), ArgumentError, "loss must be one of 'mse'"),
        (
            lambda bn: bn.build((None, None)),
            ArgumentError,
            r"bn: build needs the length of axis -1; got \(None, None\)",
        ),
        (lambda bn: bn.build((None, 5)), ArgumentError, "the layer has 3 channels"),
        (lambda _: SGD(0), ArgumentError, "SGD: learning_rate must be positive"),
    ],
)
def test_bad_input_names_the_layer_and_the_values(call, error, message):
    layer = BatchNormalization(name="bn")
    layer.build((None, 3))
    with pytest.raises(error, match=message):
        call(layer)


def test_virtual_batches_need_samples_on_axis_0():
    layer = BatchNormalization(axis=0, virtual_batch_size=2, name="bn")
    with pytest.raises(ArgumentError, match="bn: virtual_batch_size splits axis 0, which holds the channels here"):
        layer(np.ones((2, 5)), training=True)


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_an_epoch_weighs_its_batches_by_their_samples():
    x, y = normal((5, 2), sd=1.0), normal((5, 2), 1, sd=1.0)
    layer = bare()
    (loss,) = layer.fit(x, y, epochs=1, batch_size=3, shuffle=False)
    parts = [reference.training(one, None, None, epsilon=EPSILON) for one in (x[:3], x[3:])]
    assert loss == pytest.approx(np.mean((np.concatenate(parts) - y) ** 2), rel=1e-14)


def test_shuffling_is_a_new_order_each_epoch_and_repeats_with_its_seed():
    x, y = normal((16, 2)), normal((16, 2), 1)
    runs = [BatchNormalization() for _ in range(3)]
    losses = [run.fit(x, y, 3, 4, seed=seed) for run, seed in zip(runs, (7, 7, 8), strict=True)]
    assert losses[0] == losses[1] != losses[2]
    assert np.array_equal(runs[0].get_weights(), runs[1].get_weights())


def test_training_leads_where_the_least_squares_lie():
    random = np.random.default_rng(0)
    x = random.standard_normal((256, 1))
    layer = BatchNormalization()
    layer.fit(x, 3 * (x - x.mean()) / x.std() - 2, epochs=400, batch_size=256, optimizer=SGD(0.1))
    # The optimum: gamma = 3*sqrt(1 + epsilon/variance), beta = -2; (1 - 2*.1)^400 of the way is left, float32 holds it.
    assert layer.gamma[0] == pytest.approx(3 * np.sqrt(1 + EPSILON / x.var()), rel=4 * U32)
    assert layer.beta[0] == pytest.approx(-2, rel=4 * U32)


def test_nothing_of_the_callers_is_changed():
    x, y = normal((8, 2)), normal((8, 2), 1)
    kept = x.copy(), y.copy()
    state = np.random.get_state()[1].copy()
    layer = BatchNormalization()
    with warnings.catch_warnings():
        layer.fit(x, y, 2, 4)
    layer.backward(layer(x, training=True))
    assert np.array_equal(x, kept[0])
    assert np.array_equal(y, kept[1])
    assert np.array_equal(np.random.get_state()[1], state)


def test_momentum_and_epsilon_may_be_set_and_count_from_then_on():
    x = np.random.default_rng(0).normal(3.0, 2.0, (6, 2))
    renewed, made = BatchNormalization(renorm=True), BatchNormalization(momentum=0.5, epsilon=0.1, renorm=True)
    renewed.momentum, renewed.epsilon, renewed.renorm_momentum = 0.5, 0.1, 0.7
    made.renorm_momentum = 0.7
    for _ in range(2):
        assert np.array_equal(renewed(x, training=True), made(x, training=True))
    assert np.array_equal(renewed(x), made(x))
    assert renewed.get_config() == made.get_config()
    assert (renewed.momentum, renewed.epsilon, renewed.renorm_momentum) == (0.5, 0.1, 0.7)
    before = made(x)
    made.epsilon = 10.0
    assert np.max(np.abs(made(x))) < np.max(np.abs(before))


@pytest.mark.parametrize(("name", "value"), [("momentum", 1.5), ("epsilon", 0.0), ("renorm_momentum", -1.0)])
def test_settings_are_checked_when_they_are_set(name, value):
    layer = BatchNormalization(name="bn")
    with pytest.raises(ArgumentError, match=f"bn: {name} must"):
        setattr(layer, name, value)


@pytest.mark.parametrize(
    ("name", "value"), [("statistics", "debiased"), ("ddof", 1), ("guard", False), ("renorm", True)]
)
def test_what_the_weights_depend_on_cannot_be_set(name, value):
    layer = BatchNormalization(name="bn")
    with pytest.raises(ArgumentError, match=f"bn: {name} is chosen at construction"):
        setattr(layer, name, value)
    assert getattr(layer, name) == layer.get_config()[name] != value
