"""The edge cases of the project's table, one test a row, with what Keras' own layer does beside it."""

import importlib
import warnings

import keras
import numpy as np
import pytest
from keras import ops
from tools import BACKEND, Ours, Theirs, array, state

X = np.array([[1.0, 10.0], [2.0, 30.0], [6.0, 20.0]], "float32")
PAIRWISE = BACKEND in ("torch", "numpy")  # Keras computes E[x^2] - E[x]^2 there


def trained(Layer, *batches, **kwargs):
    layer = Layer(**kwargs)
    for batch in batches:
        layer(batch, training=True)
    return layer


def unchanged(layer, before):
    after = state(layer)
    return all(np.array_equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("kwargs", [{}, {"renorm": True}, {"statistics": "debiased"}, {"virtual_batch_size": 2}])
def test_empty_batch(kwargs):
    layer = trained(Ours, X, **kwargs)
    before = state(layer)
    y = layer(X[:0], training=True)
    assert y.shape == (0, 2)
    assert unchanged(layer, before)
    if not kwargs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = trained(Theirs, X, X[:0])
        assert np.isnan(state(theirs)["moving_mean"]).all()


@pytest.mark.parametrize("shape", [(4, 0, 3), (5, 0, 3), (0, 0, 3)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_no_steps_in_virtual_batches(shape, masked):
    layer = Ours(virtual_batch_size=2)
    layer.build(shape)
    before = state(layer)
    y = layer(np.zeros(shape, "float32"), training=True, mask=np.ones(shape[:2], bool) if masked else None)
    assert array(y).shape == shape
    for name, value in state(layer).items():
        np.testing.assert_array_equal(value, before[name])


def test_one_element_per_channel():
    layer = trained(Ours, X, beta_initializer=keras.initializers.Constant(0.5))
    before = state(layer)
    with pytest.warns(UserWarning, match=r"one element per channel \(input of shape \(1, 2\)\)"):
        y = layer(X[:1], training=True)
    np.testing.assert_array_equal(array(y), 0.5)
    layer(X[:1], training=True)  # said once
    assert unchanged(layer, before)
    theirs = trained(Theirs, X)
    drag = state(theirs)["moving_variance"]
    theirs(X[:1], training=True)
    np.testing.assert_allclose(state(theirs)["moving_variance"], 0.99 * drag, rtol=1e-6)


@pytest.mark.parametrize("statistics", ["moving", "debiased", "cumulative"])
def test_everything_masked(statistics):
    layer = trained(Ours, X, statistics=statistics)
    before = state(layer)
    y = array(layer(X, training=True, mask=np.zeros(3, bool)))
    np.testing.assert_allclose(y, array(layer(X)), rtol=1e-6)
    assert unchanged(layer, before)
    theirs = trained(Theirs, X, momentum=0.5)
    before = state(theirs)
    y = array(theirs(X, training=True, mask=np.zeros(3, bool)))
    np.testing.assert_allclose(y, X / np.sqrt(1e-3), rtol=1e-5)
    np.testing.assert_allclose(state(theirs)["moving_mean"], 0.5 * before["moving_mean"], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kwargs", [{}, {"virtual_batch_size": 3}])
def test_not_finite_in_a_batch(bad, kwargs):
    spoiled = X.copy()
    spoiled[1, 0] = bad
    layer = trained(Ours, X, **kwargs)
    before = state(layer)
    with np.errstate(invalid="ignore"):
        y = array(layer(spoiled, training=True))
        theirs = trained(Theirs, X, spoiled, X)
        unguarded = trained(Ours, X, spoiled, X, guard=False)
    assert np.isnan(y[:, 0]).any()
    assert np.isfinite(y[:, 1]).all()
    after = state(layer)
    assert after["moving_mean"][0] == before["moving_mean"][0]
    assert after["moving_variance"][0] == before["moving_variance"][0]
    assert after["moving_mean"][1] != before["moving_mean"][1]
    assert layer.skipped_updates.tolist() == [1, 0]
    assert "skipped_updates" not in state(layer)
    for poisoned in (theirs, unguarded):
        assert not np.isfinite(state(poisoned)["moving_variance"][0])
    assert unguarded.skipped_updates is None


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (2, 3, 4, 3), (2, 3, 2, 2, 3)])
@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_padding_mask_on_any_axis_and_rank(rng, shape, axis):
    x = rng.normal(3.0, 2.0, shape).astype("float32")
    kept = axis % len(shape)
    others = tuple(n for i, n in enumerate(shape) if i != kept)
    mask = rng.random(others) > 0.4
    mask.flat[0] = True
    x[np.broadcast_to(np.expand_dims(~mask, kept), shape)] *= 1e6
    layer = Ours(axis=axis, momentum=0.0)
    y = array(layer(x, training=True, mask=mask))
    rows = np.moveaxis(x, kept, -1)[mask].astype("float64")
    np.testing.assert_allclose(state(layer)["moving_mean"], rows.mean(0), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(state(layer)["moving_variance"], rows.var(0), rtol=1e-5, atol=1e-5)
    expected = (np.moveaxis(x, kept, -1) - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-3)
    np.testing.assert_allclose(np.moveaxis(y, kept, -1), expected, rtol=1e-4, atol=1e-5)
    full = Ours(axis=axis, momentum=0.0)
    np.testing.assert_array_equal(array(full(x, training=True, mask=np.expand_dims(mask, kept))), y)


@pytest.mark.skipif(BACKEND != "torch", reason="the other backends' arrays do not meet the kernels")
@pytest.mark.parametrize(("axis", "shape", "taken"), [(-1, (4, 5), 1), (1, (4, 3), 1), (-1, (1, 5, 3), 0)])
def test_masks_reach_the_kernels(rng, monkeypatch, axis, shape, taken):
    cpu = pytest.importorskip("numba") and importlib.import_module("batchnorm.kernels.cpu")
    calls, forward = [], cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *given, **named: calls.append(given) or forward(*given, **named))
    x = rng.normal(3.0, 2.0, (4, 5, 3)).astype("float32")
    mask = rng.random(shape) > 0.3
    layer = Ours(axis=axis, momentum=0.0)
    layer(x, training=True, mask=mask)
    assert len(calls) == taken  # a mask that lies along the channels is not for them
    full = np.broadcast_to(mask if taken == 0 else np.expand_dims(mask, axis), x.shape)
    mean = [x[..., c][full[..., c]].mean() if axis == -1 else x[:, c][full[:, c]].mean() for c in range(x.shape[axis])]
    np.testing.assert_allclose(state(layer)["moving_mean"], mean, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (1, 5, 3)], ids=str)
@pytest.mark.parametrize("axis", [-1, 1, (1, 2)], ids=str)
@pytest.mark.parametrize("size", [None, 3])
def test_any_mask_that_broadcasts(rng, shape, axis, size):
    """Read along the leading axes where it does not have the shape of the others; each channel counts its own."""
    x = rng.normal(3.0, 2.0, (4, 5, 3)).astype("float32")
    mask = rng.random(shape) > 0.3
    layer = Ours(axis=axis, momentum=0.5, virtual_batch_size=size)
    layer(x, training=True, mask=mask.tolist() if shape == (4,) else mask)
    full = np.broadcast_to(mask.reshape(shape + (1,) * (3 - len(shape))), x.shape)
    mean, reduced = 0.0, tuple(i for i in range(3) if i not in np.atleast_1d(axis) % 3)
    for rows in (slice(0, 3), slice(3, 4)) if size else (slice(None),):
        count = full[rows].sum(reduced)
        batch = np.where(full[rows], x[rows].astype("float64"), 0).sum(reduced) / np.maximum(count, 1)
        mean = np.where(count > 1, 0.5 * mean + 0.5 * batch, mean)
    np.testing.assert_allclose(state(layer)["moving_mean"], mean, rtol=2e-6, atol=2e-6)


def test_padding_mask_with_one_feature(rng):
    x = rng.normal(size=(4, 5, 1)).astype("float32")
    mask = rng.random((4, 5)) > 0.4
    layer = trained(Ours, momentum=0.0)
    layer(x, training=True, mask=mask)
    np.testing.assert_allclose(state(layer)["moving_mean"], [x[mask].mean()], rtol=1e-5, atol=1e-7)
    if BACKEND != "tensorflow":
        theirs = Theirs()
        theirs.build(x.shape)
        with pytest.raises(IndexError):
            theirs(x, training=True, mask=mask)


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
def test_large_mean(rng, ratio):
    x = rng.normal(ratio, 1.0, (256, 3)).astype("float32")
    true = x.astype("float64")
    layer = Ours(momentum=0.0)
    y = array(layer(x, training=True))
    # The corrected two-pass: a few roundings of the variance itself, whatever the mean.
    np.testing.assert_allclose(state(layer)["moving_variance"], true.var(0), rtol=2e-6)
    np.testing.assert_allclose(y, (true - true.mean(0)) / np.sqrt(true.var(0) + 1e-3), atol=4e-6)
    if PAIRWISE and ratio >= 1e4:
        with np.errstate(invalid="ignore"):
            theirs = trained(Theirs, x, momentum=0.0)
        assert (abs(state(theirs)["moving_variance"] - true.var(0)) > 0.5).any()


def test_inference_with_a_large_mean(rng):
    x = rng.normal(1e6, 1.0, (64, 3)).astype("float32")
    ours, theirs = Ours(), Theirs()
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.moving_mean.assign(np.full(3, 1e6))
    true = (x.astype("float64") - 1e6) / np.sqrt(1 + 1e-3)
    assert np.abs(array(ours(x)) - true).max() < 1e-6
    if BACKEND in ("jax", "numpy"):
        assert np.abs(array(theirs(x)) - true).max() > 1e-4


@pytest.mark.parametrize("value", [0.1, 100.1, 3.1e7])
def test_constant_channel_is_exactly_beta(value):
    layer = Ours(beta_initializer=keras.initializers.Constant(0.25))
    x = np.full((300, 2), value, "float32")
    np.testing.assert_array_equal(array(layer(x, training=True)), 0.25)
    mask = np.arange(300) % 3 > 0
    np.testing.assert_array_equal(array(layer(x, training=True, mask=mask)), 0.25)
    parts = Ours(virtual_batch_size=7, beta_initializer=keras.initializers.Constant(0.25))
    np.testing.assert_array_equal(array(parts(x, training=True, mask=mask)), 0.25)
    if value == 100.1:  # Keras: 1.7e-4 (PyTorch) to 1.2e-3 (JAX)
        assert np.abs(array(Theirs()(np.full((1000, 1), value, "float32"), training=True))).max() > 1e-5


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_half_precision_keeps_float32_statistics(rng, policy):
    x = ops.cast(np.full((4, 2), 200.0) + np.array([[0.0], [2.0], [600.0], [2.0]]), policy.removeprefix("mixed_"))
    layer = Ours(momentum=0.5, dtype=policy)
    for _ in range(2):
        y = layer(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    assert {str(v.dtype) for v in layer.non_trainable_weights} == {"float32"}
    true = array(ops.cast(x, "float32")).astype("float64").var(0)
    np.testing.assert_allclose(state(layer)["moving_variance"], 0.25 + 0.75 * true, rtol=1e-6)
    assert true.max() > 65504  # infinity in float16
    theirs = Theirs(dtype="float16")
    theirs.build((4, 2))
    assert str(theirs.moving_variance.dtype) == "float16"


@pytest.mark.skipif(
    BACKEND != "torch", reason="on JAX state is an argument; Keras' TensorFlow layers cannot be checkpointed"
)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kwargs", [{}, {"virtual_batch_size": 2}])
def test_activation_checkpointing_updates_once(kwargs, reentrant):
    import torch
    from torch.utils.checkpoint import checkpoint

    def after(Layer, **kwargs):
        layer = Layer(momentum=0.5, **kwargs)
        layer.build(X.shape)
        x = torch.tensor(X, requires_grad=True)
        checkpoint(lambda x: layer(x, training=True), x, use_reentrant=reentrant).square().sum().backward()
        return state(layer)["moving_mean"]

    np.testing.assert_array_equal(after(Ours, **kwargs), state(trained(Ours, X, momentum=0.5, **kwargs))["moving_mean"])
    once = state(trained(Theirs, X, momentum=0.5))["moving_mean"]
    np.testing.assert_allclose(after(Theirs), 1.5 * once, rtol=1e-6)  # twice: 0.5 * once + 0.5 * mean


def test_ghost_statistics_update_once_per_part(rng):
    x = rng.normal(size=(7, 2)).astype("float32")
    whole, alone = Ours(virtual_batch_size=3), Ours()
    y = array(whole(x, training=True))
    parts = [array(alone(x[i : i + 3], training=True)) for i in (0, 3)]
    with pytest.warns(UserWarning, match="one element"):
        last = alone(x[6:], training=True)
    parts.append(array(last))
    np.testing.assert_allclose(y, np.concatenate(parts), atol=1e-6)
    for name, value in state(alone).items():
        np.testing.assert_allclose(state(whole)[name], value, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="virtual_batch_size"):
        Theirs(virtual_batch_size=2)


def test_parts_with_renorm_look_at_the_statistics_before_the_batch(rng):
    x = rng.normal(2.0, 3.0, (6, 2)).astype("float32")
    whole = trained(Ours, X, virtual_batch_size=3, renorm=True, renorm_momentum=0.5)
    y = array(whole(x, training=True))
    expected = []
    for part in (x[:3], x[3:]):
        alone = trained(Ours, X, renorm=True, renorm_momentum=0.5)
        expected.append(array(alone(part, training=True)))
    np.testing.assert_allclose(y, np.concatenate(expected), rtol=1e-5, atol=1e-6)
    in_turn = trained(Ours, X, x[:3], x[3:], renorm=True, renorm_momentum=0.5)
    for name, value in state(in_turn).items():
        np.testing.assert_allclose(state(whole)[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


def test_complex_input():
    with pytest.raises(TypeError, match=r"BatchNormalization 'bn': the input must be real; got dtype complex64"):
        Ours(name="bn")(np.ones((2, 3), "complex64"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some backends say so, as they drop it
        theirs = array(Theirs()(np.array([[1 + 2j], [3 - 9j]], "complex64"), training=True))
    assert theirs.dtype == "float32"
    np.testing.assert_allclose(theirs[0], -theirs[1], atol=1e-5)  # the imaginary part is gone


def test_first_steps_debiased():
    layer = trained(Ours, X, statistics="debiased")
    np.testing.assert_allclose(state(layer)["remaining"], 0.99, rtol=1e-6)
    true = X.astype("float64")
    expected = (true - true.mean(0)) / np.sqrt(true.var(0) + 1e-3)
    # 1 - remaining is 0.01: what was rounded at 1 (6e-8) weighs a hundredfold.
    np.testing.assert_allclose(array(layer(X)), expected, rtol=2e-5, atol=2e-5)
    unstarted = Ours(statistics="debiased")
    np.testing.assert_allclose(array(unstarted(X)), X / np.sqrt(1 + 1e-3), rtol=1e-6)
    theirs = trained(Theirs, X)
    assert np.abs(array(theirs(X)) - expected).max() > 5


def test_cumulative_is_the_mean_of_the_batches(rng):
    batches = rng.normal(size=(4, 8, 2)).astype("float32")
    layer = trained(Ours, *batches, statistics="cumulative")
    np.testing.assert_allclose(state(layer)["moving_mean"], batches.mean(1).mean(0), atol=1e-6)
    np.testing.assert_allclose(state(layer)["moving_variance"], batches.var(1).mean(0), rtol=1e-5)
    np.testing.assert_array_equal(state(layer)["updates"], 4)
    at_once = Ours(statistics="cumulative", virtual_batch_size=8)
    at_once(batches.reshape(32, 2), training=True)
    for name, value in state(layer).items():
        np.testing.assert_allclose(state(at_once)[name], value, rtol=1e-5, atol=1e-7)


def test_ddof_is_of_the_stored_variance_only():
    plain, corrected = trained(Ours, X, momentum=0.0), trained(Ours, X, momentum=0.0, ddof=1)
    np.testing.assert_allclose(state(corrected)["moving_variance"], X.var(0, ddof=1), rtol=1e-6)
    np.testing.assert_array_equal(array(plain(X, training=True)), array(corrected(X, training=True)))


def test_variance_of_many_elements(rng):
    # Float32 sums of one number after another are off by 2e-5 at this count (docs/NUMERICS.md); sums in runs by 2e-7,
    # and storing it rounds by 6e-8.
    x = rng.normal(3, 1, (131072, 2)).astype("float32")
    layer = Ours(momentum=0.0)
    layer(x, training=True)
    np.testing.assert_allclose(state(layer)["moving_variance"], x.astype("float64").var(axis=0), rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("mean", [0.0, 1e6])
@pytest.mark.parametrize("first", [0.0, -3e6])
@pytest.mark.parametrize("shape", [(32768, 3), (64, 33, 32, 2)], ids=str)
def test_a_first_element_far_from_the_mean(rng, first, mean, shape, jit):
    """The shift of the first pass is then a bad one: what it rounds away must be measured, not worked out."""
    x = rng.normal(mean, 1, shape).astype("float32")
    x.reshape(-1, shape[-1])[0] += np.float32(first)
    layer = Ours(epsilon=1e-6)
    layer.build(shape)
    y = array(_trained(layer, x, jit)).astype("float64").reshape(-1, shape[-1])
    rows = x.astype("float64").reshape(-1, shape[-1])
    wanted = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-6)
    # docs/NUMERICS.md: 5e-7 of the largest output; twice that for a channel whose squares one element makes up.
    assert np.max(np.abs(y - wanted)) <= (1e-6 if first else 5e-7) * np.max(np.abs(wanted))
    # All but the far one lie within a rounding of each other's distance: a wrong mean would shift them all.
    error = (y - wanted)[1:].mean(0)
    assert np.max(np.abs(error)) <= 2**-23 + 2**-24 * np.max(np.abs(wanted[1:]))


def _trained(layer, x, jit):
    if jit and BACKEND == "jax":
        import jax

        values = [v.value for v in layer.trainable_variables], [v.value for v in layer.non_trainable_variables]
        return jax.jit(lambda x: layer.stateless_call(*values, x, training=True)[0])(x)
    if jit and BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x: layer(x, training=True), jit_compile=True)(x)
    return layer(x, training=True)
