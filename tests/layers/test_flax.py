"""`batchnorm.flax.BatchNorm` against the float64 reference: forward, moving statistics, dtypes, options, errors."""

import inspect

import numpy as np
import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
from flax import nnx

from batchnorm.core import reference
from batchnorm.flax import BatchNorm

EPS32 = 2.0**-24


def batch(*shape, mean=3.0, sd=2.0, seed=0):
    return np.random.default_rng(seed).normal(mean, sd, shape).astype(np.float32)


def layer(features, **options):
    return BatchNorm(features, rngs=nnx.Rngs(0), **options)


def test_the_signature_begins_with_that_of_flax():
    ours, theirs = (list(inspect.signature(cls.__init__).parameters.values()) for cls in (BatchNorm, nnx.BatchNorm))
    assert [p.name for p in ours][: len(theirs)] == [p.name for p in theirs]
    assert {p.name for p in ours} - {p.name for p in theirs} == {"statistics", "ddof", "guard", "virtual_batch_size"}
    for mine, other in zip(ours, theirs, strict=False):
        assert mine.kind == other.kind
        if mine.name not in ("bias_init", "scale_init", "bias_metadata", "scale_metadata"):
            assert mine.default == other.default


@pytest.mark.parametrize(
    ("shape", "axis"), [((9, 4), -1), ((5, 4, 3), 1), ((3, 4, 5, 2), -1), ((4, 6), 0), ((2, 3, 2, 3, 4), 3)]
)
def test_training_is_the_reference(shape, axis):
    x = batch(*shape)
    bn = layer(shape[axis], axis=axis)
    gamma, beta = np.linspace(0.5, 2, shape[axis]), np.linspace(-1, 1, shape[axis])
    bn.scale[...], bn.bias[...] = jnp.asarray(gamma), jnp.asarray(beta)
    y = bn(jnp.asarray(x))
    expected = reference.training(x, gamma, beta, epsilon=1e-5, axis=axis)
    # Each of a dozen float32 operations rounds once; the mean cancels kappa = sqrt(1 + mean^2/variance) < 10.
    np.testing.assert_allclose(y, expected, rtol=0, atol=40 * EPS32 * np.abs(expected).max())
    mean, variance = reference.moments(x, axis=axis)
    np.testing.assert_allclose(bn.mean[...], 0.01 * mean, rtol=8 * EPS32, atol=0)
    np.testing.assert_allclose(bn.var[...], 0.99 + 0.01 * variance, rtol=8 * EPS32, atol=0)
    bn.eval()
    moved = reference.inference(x, bn.mean[...], bn.var[...], gamma, beta, epsilon=1e-5, axis=axis)
    np.testing.assert_allclose(bn(jnp.asarray(x)), moved, rtol=0, atol=40 * EPS32 * np.abs(moved).max())


def test_several_axes_hold_channels_where_flax_fails():
    x = batch(6, 3, 4, 2)
    bn = layer((3, 2), axis=(-1, 1))
    y = bn(jnp.asarray(x))
    flat = np.moveaxis(x, 2, 1).reshape(24, 6)  # (6*4, 3*2): one axis of six channels
    expected = reference.training(flat, None, None, epsilon=1e-5).reshape(6, 4, 3, 2)
    np.testing.assert_allclose(y, np.moveaxis(expected, 1, 2), rtol=0, atol=40 * EPS32 * 3)
    mean, _ = reference.moments(flat)
    assert bn.mean.shape == bn.scale.shape == (3, 2)
    np.testing.assert_allclose(bn.mean[...].ravel(), 0.01 * mean, rtol=8 * EPS32)
    theirs = nnx.BatchNorm(3, axis=(1, 3), rngs=nnx.Rngs(0))
    with pytest.raises((TypeError, ValueError)):
        theirs(jnp.asarray(x))


def test_the_question_this_began_with():
    bn = layer(1, use_bias=False, epsilon=1e-3, use_running_average=True)
    bn.scale[...], bn.mean[...], bn.var[...] = (jnp.array([v]) for v in (0.80644524, 0.05885344, 0.91000736))
    y = bn(jnp.array([[1.0], [5.0]]))
    np.testing.assert_allclose(y, [[0.795190530], [4.174857687]], rtol=8 * EPS32)


@pytest.mark.parametrize("statistics", ["moving", "debiased", "cumulative"])
@pytest.mark.parametrize("ddof", [0, 1])
def test_statistics_over_several_updates(statistics, ddof):
    bn = layer(2, momentum=0.9, statistics=statistics, ddof=ddof)
    mean, variance, seen = np.zeros(2), np.ones(2), []
    for step in range(5):
        x = batch(7, 2, seed=step)
        bn(jnp.asarray(x))
        m, v = reference.moments(x)
        seen.append((m, v * 7 / (7 - ddof)))
        mean, variance = 0.9 * mean + 0.1 * m, 0.9 * variance + 0.1 * seen[-1][1]
    if statistics == "debiased":
        mean, variance = mean / (1 - 0.9**5), (variance - 0.9**5) / (1 - 0.9**5)
    if statistics == "cumulative":
        mean, variance = np.mean(seen, axis=0)
    got = bn.inference_statistics()
    # Taking out the initial value divides the rounding of five updates by 1 - .9^5 = .41.
    np.testing.assert_allclose(got[0], mean, rtol=40 * EPS32)
    np.testing.assert_allclose(got[1], variance, rtol=40 * EPS32)


def test_debiased_is_right_from_the_first_update():
    x = batch(64, 3)
    bn = layer(3, statistics="debiased")
    before = bn(jnp.asarray(x), use_running_average=True)  # nothing averaged yet: the initial 0 and 1
    np.testing.assert_allclose(before, x / np.sqrt(1 + 1e-5), rtol=4 * EPS32)
    trained = bn(jnp.asarray(x))
    # The moving average holds 1 % of the batch: its rounding is magnified a hundredfold.
    np.testing.assert_allclose(bn(jnp.asarray(x), use_running_average=True), trained, atol=800 * EPS32 * 4)


@pytest.mark.parametrize("rest", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_virtual_batches_are_batches(rest, masked):
    x = batch(8 + rest, 3, 2)
    mask = np.random.default_rng(1).random((8 + rest, 3)) < 0.7 if masked else None
    whole, parts = layer(2, virtual_batch_size=4, momentum=0.5), layer(2, momentum=0.5)
    y = whole(jnp.asarray(x), mask=mask)
    pieces = [
        parts(jnp.asarray(x[i : i + 4]), mask=None if mask is None else mask[i : i + 4]) for i in range(0, len(x), 4)
    ]
    np.testing.assert_allclose(y, np.concatenate(pieces), atol=20 * EPS32 * 3)
    np.testing.assert_allclose(whole.mean[...], parts.mean[...], rtol=8 * EPS32)
    np.testing.assert_allclose(whole.var[...], parts.var[...], rtol=8 * EPS32)


def test_virtual_batches_of_the_whole_batch_change_nothing():
    x = jnp.asarray(batch(6, 2))
    one, other = layer(2), layer(2, virtual_batch_size=6)
    np.testing.assert_allclose(one(x), other(x), atol=8 * EPS32)
    np.testing.assert_allclose(one.var[...], other.var[...], rtol=4 * EPS32)


@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("given", [jnp.float32, jnp.float16, jnp.bfloat16, jnp.int32])
@pytest.mark.parametrize("running", [False, True])
def test_dtypes_are_those_of_flax(dtype, param_dtype, given, running):
    x = jnp.asarray(batch(8, 2) * 10).astype(given)
    options = {"dtype": dtype, "param_dtype": param_dtype, "use_running_average": running}
    ours, theirs = layer(2, **options), nnx.BatchNorm(2, rngs=nnx.Rngs(0), **options)
    y, other = ours(x), theirs(x)
    assert y.dtype == other.dtype
    assert ours.scale[...].dtype == theirs.scale[...].dtype
    assert ours.mean[...].dtype == ours.var[...].dtype == jnp.float32
    exact = reference.training(np.asarray(x, np.float64), None, None, epsilon=1e-5)
    if not running:  # only the result is rounded: half a unit in the last place, and float32's own error
        unit = float(jnp.finfo(y.dtype).eps) / 2
        np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=1.01 * unit, atol=100 * EPS32)


def test_promote_dtype_of_ones_own_has_the_last_word():
    def doubled(arrays, *, dtype):
        return tuple(None if a is None else 2 * a for a in arrays)

    bn = layer(2, promote_dtype=doubled)
    bn(jnp.asarray(batch(8, 2)))
    np.testing.assert_allclose(bn.mean[...], 0.02 * batch(8, 2).mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "BatchNorm: epsilon must be positive and finite; got 0.0"),
        ({"epsilon": -1e-3}, "epsilon must be positive and finite; got -0.001"),
        ({"epsilon": float("nan")}, "epsilon must be positive and finite; got nan"),
        ({"momentum": 1.5}, "momentum must lie between 0 and 1, the share of the old value .* got 1.5"),
        ({"momentum": -0.1}, r"momentum .* got -0.1"),
        ({"statistics": "ema"}, "statistics must be one of 'moving', 'debiased', 'cumulative'; got 'ema'"),
        ({"ddof": 2}, "ddof must be one of 0, 1; got 2"),
        ({"virtual_batch_size": 0}, "virtual_batch_size must be an integer of at least 1; got 0"),
        ({"virtual_batch_size": 4, "axis_name": "d"}, r"virtual_batch_size splits .* got both \(4 and 'd'\)"),
        ({"axis": 1.5}, "BatchNorm: axis must be an integer or a sequence of integers; got 1.5"),
        ({"axis": ()}, r"axis must name each channel axis once; got \(\)"),
        ({"num_features": 2.5}, "num_features must be an integer of at least 0; got 2.5"),
        ({"axis": (1, 2)}, r"num_features must give one length for each axis; got 3 for axis \(1, 2\)"),
    ],
)
def test_bad_options_are_refused_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        layer(options.pop("num_features", 3), **options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epsilon", 0.0, "epsilon must be positive and finite; got 0.0"),
        ("epsilon", "1e-3", "epsilon must be a number; got '1e-3'"),
        ("momentum", 1.5, "momentum must lie between 0 and 1, .* got 1.5"),
        ("statistics", "ema", "statistics must be one of .* got 'ema'"),
        ("ddof", np.array([0, 1]), "ddof must be one of 0, 1; got array"),
        ("virtual_batch_size", -1, "virtual_batch_size must be an integer of at least 1; got -1"),
        ("axis", 1.5, "axis must be an integer or a sequence of integers; got 1.5"),
    ],
)
def test_bad_options_are_refused_also_later(name, value, message):
    bn = layer(3)
    with pytest.raises(ValueError, match=f"BatchNorm: {message}"):
        setattr(bn, name, value)
    with pytest.raises(ValueError, match=f"BatchNorm: {message}"):
        layer(3, **{name: value})


def test_numbers_of_other_types_are_taken_as_floats():
    bn = layer(3, epsilon=np.array(1e-3), momentum=jnp.array(0.5))  # arrays cannot stand in the key of a trace
    np.testing.assert_array_equal(bn(batch(8, 3)), layer(3, epsilon=1e-3, momentum=0.5)(batch(8, 3)))
    assert (bn.epsilon, bn.momentum) == (1e-3, 0.5)


@pytest.mark.parametrize(
    ("shape", "options", "mask", "message"),
    [
        ((4, 5), {}, None, r"num_features is 3, but an input of shape \(4, 5\) has \(5,\) on axis -1"),
        ((4, 3), {"axis": 2}, None, r"BatchNorm: axis must be between -2 and 1 .* got 2"),
        ((), {}, None, "at least one axis"),
        ((4, 7, 3), {}, (5,), r"BatchNorm: mask must have the shape \(4, 7\) .* got \(5,\)"),
        ((4, 7, 3), {}, (1, 4, 7, 3), r"mask must .* got \(1, 4, 7, 3\)"),
        ((3, 4), {"axis": 0, "virtual_batch_size": 2}, None, "virtual_batch_size splits axis 0, which axis=0"),
        ((4, 3), {"use_running_average": None}, None, "use_running_average is None"),
    ],
)
def test_bad_calls_are_refused(shape, options, mask, message):
    bn = layer(3, **options)
    with pytest.raises(ValueError, match=message):
        bn(jnp.zeros(shape), mask=None if mask is None else jnp.ones(mask, bool))


def test_exported_for_any_batch_size_it_trains():
    definition, state = nnx.split(layer(3))

    @jax.jit
    def step(state, x):
        bn = nnx.merge(definition, state)
        return bn(x), nnx.state(bn)

    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(step)(state, jax.ShapeDtypeStruct((n, 3), jnp.float32))
    x = jnp.asarray(batch(5, 3))
    y, _ = exported.call(state, x)
    np.testing.assert_allclose(y, step(state, x)[0], rtol=1e-6, atol=1e-6)


def test_a_mask_of_weights_is_refused():
    with pytest.raises(TypeError, match=r"mask must be boolean.*float32"):
        layer(3)(jnp.zeros((4, 3)), mask=jnp.full((4,), 0.5))


def test_seeds_of_the_layers_that_follow_stay():
    for scale in (True, False):
        for bias in (True, False):
            ours, theirs = nnx.Rngs(0), nnx.Rngs(0)
            BatchNorm(2, use_scale=scale, use_bias=bias, rngs=ours)
            nnx.BatchNorm(2, use_scale=scale, use_bias=bias, rngs=theirs)
            assert jax.random.key_data(ours.params()).tolist() == jax.random.key_data(theirs.params()).tolist()
