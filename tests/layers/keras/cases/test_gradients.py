"""The closed form against what the framework derives from the naive formula, in float64, first and second order."""

import keras
import numpy as np
import pytest
from keras import ops
from tools import BACKEND, Ours, applied, gradient, naive, run, wide, with_gradients

pytestmark = with_gradients

EPSILON = 1e-3
# float64 over 35 elements: u = 1.1e-16, count * u * the condition of the standard deviation stays under 1e-12; second
# derivatives lose as much again.
FIRST, SECOND = 1e-11, 1e-9
RENORM = {"renorm": True, "renorm_clipping": {"rmin": 0.5, "rmax": 1.5, "dmax": 1.0}}


def given(rng):
    x = rng.normal(3.0, 2.0, (7, 5, 4))
    weight = rng.normal(size=x.shape)
    return x, weight, np.array([1.0, 0.5, -0.7, 2.0]), np.array([0.0, 0.5, -0.7, 2.0])


def masks(rng):
    return {
        None: None,
        "steps": rng.random((7, 5)) > 0.3,
        "samples": rng.random((7, 1)) > 0.3,
        "rank": rng.random((1, 5, 1)) > 0.3,
    }


def check(layer, expected, x, weight, gamma, beta, mask=None):
    def loss(y):
        return ops.sum(ops.multiply(ops.sin(y), weight))

    def ours(*values):
        return loss(applied(layer, *values, mask=mask))

    def theirs(*values):
        return loss(expected(*values))

    def bent(function):
        return lambda *values: sum(ops.sum(ops.cos(g)) for g in gradient(function, *values))

    def both(function):
        return lambda *values: [*gradient(function, *values), *gradient(bent(function), *values)]

    got, want = run(both(ours), x, gamma, beta), run(both(theirs), x, gamma, beta)
    for i, (mine, other) in enumerate(zip(got, want, strict=True)):
        tolerance = FIRST if i < 3 else SECOND
        np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance)


def built(shape, **kwargs):
    layer = Ours(epsilon=EPSILON, dtype="float64", **kwargs)
    layer.build(shape)
    return layer


@pytest.mark.parametrize("which", [None, "steps", "samples", "rank"])
@pytest.mark.parametrize("kwargs", [{}, RENORM], ids=["plain", "renorm"])
def test_masks_and_renorm(rng, which, kwargs):
    with wide():
        x, weight, gamma, beta = given(rng)
        mask = masks(rng)[which]
        layer = built(x.shape, **kwargs)
        renorm = None
        if kwargs:
            mean, std = np.array([2.0, 3.0, 4.0, 30.0]), np.array([1.0, 2.0, 3.0, 4.0])
            layer.renorm_mean.assign(mean)
            layer.renorm_stddev.assign(std)
            renorm = (mean, std, 0.5, 1.5, 1.0)
        full = None if mask is None else mask.reshape((*mask.shape[:2], 1))
        check(layer, lambda *v: naive(*v, EPSILON, full, renorm), x, weight, gamma, beta, mask)


@pytest.mark.parametrize("masked", [False, True])
def test_virtual_batches(rng, masked):
    with wide():
        x, weight, gamma, beta = given(rng)
        mask = rng.random((7, 5, 1)) > 0.3 if masked else None

        def parts(x, gamma, beta):
            rows = [slice(i, i + 3) for i in (0, 3, 6)]
            return ops.concatenate([naive(x[r], gamma, beta, EPSILON, mask if mask is None else mask[r]) for r in rows])

        check(built(x.shape, virtual_batch_size=3), parts, x, weight, gamma, beta, mask)


def test_channels_first_and_two_axes(rng):
    with wide():
        x, weight, *_ = given(rng)
        gamma, beta = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))

        def flat(x, gamma, beta):
            y = naive(ops.reshape(x, (7, 20)), ops.reshape(gamma, (20,)), ops.reshape(beta, (20,)), EPSILON)
            return ops.reshape(y, x.shape)

        check(built(x.shape, axis=[1, 2]), flat, x, weight, gamma, beta)
        gamma, beta = rng.normal(size=5), rng.normal(size=5)

        def moved(x, gamma, beta):
            return ops.moveaxis(naive(ops.moveaxis(x, 1, -1), gamma, beta, EPSILON), -1, 1)

        check(built(x.shape, axis=1), moved, x, weight, gamma, beta)


def test_everything_masked_is_inference(rng):
    with wide():
        x, weight, gamma, beta = given(rng)
        layer = built(x.shape)
        layer.moving_mean.assign(np.arange(4.0))
        layer.moving_variance.assign(np.arange(4.0) + 1)

        def inference(x, gamma, beta):
            mean = ops.convert_to_tensor(np.arange(4.0))
            return gamma * (x - mean) / ops.sqrt(mean + 1 + EPSILON) + beta

        check(layer, inference, x, weight, gamma, beta, np.zeros((7, 5), bool))


def test_padding_that_is_not_finite_stays_out_of_the_gradient(rng):
    with wide():
        x, weight, gamma, beta = given(rng)
        mask = rng.random((7, 5)) > 0.3
        spoiled, weight = np.where(mask[..., None], x, np.nan), np.where(mask[..., None], weight, 0.0)

        def loss(x, gamma, beta):
            y = applied(built(x.shape), x, gamma, beta, mask=mask)
            return ops.sum(ops.multiply(ops.where(mask[..., None], y, 0.0), weight))

        def gradients(*values):
            return gradient(loss, *values)

        got, want = run(gradients, spoiled, gamma, beta), run(gradients, x, gamma, beta)
        np.testing.assert_allclose(
            np.where(mask[..., None], got[0], 0), np.where(mask[..., None], want[0], 0), atol=FIRST
        )
        np.testing.assert_allclose(got[1], want[1], atol=FIRST)
        np.testing.assert_allclose(got[2], want[2], atol=FIRST)


@pytest.mark.skipif(BACKEND != "jax", reason="jax.jvp")
def test_forward_mode_on_jax_is_for_gradients_and_not_for_the_layer(rng):
    """As docs/CONVENTIONS.md says; a layer of Keras' own takes both."""
    import jax
    import jax.numpy as jnp

    x, weight, *_ = given(rng)
    results = []
    for layer in (Ours(epsilon=EPSILON), keras.layers.BatchNormalization(epsilon=EPSILON)):
        layer.build(x.shape)
        state = [[v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables)]

        def loss(x, layer=layer, state=state):
            return jnp.sum(jnp.sin(layer.stateless_call(*state, x, training=True)[0]) * weight)

        results.append(jax.jvp(jax.grad(loss), (jnp.asarray(x),), (jnp.asarray(weight),))[1])
        if isinstance(layer, Ours):
            with pytest.raises(TypeError, match="custom_vjp"):
                jax.jvp(loss, (jnp.asarray(x),), (jnp.asarray(weight),))
    # float32, second order: Keras' composition loses a few digits of a mean of 3 and a spread of 2.
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-4 * np.abs(results[1]).max())
