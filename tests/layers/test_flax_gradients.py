"""Gradients of the Flax layer, in float64: against JAX' own of the naive formula, in both modes, to any order."""

import numpy as np
import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
from flax import nnx
from jax.test_util import check_grads

from batchnorm.core import reference
from batchnorm.flax import BatchNorm

EPSILON = 1e-3
TOLERANCE = 1e-11  # float64: 2**-53 times some hundred operations and kappa**2 < 20
SHAPE = (6, 4, 3)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def naive(x, gamma, beta, mask):
    """The formula as written, for JAX to differentiate: no virtual batch, channels last."""
    m = jnp.ones(x.shape) if mask is None else jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    axes = tuple(range(x.ndim - 1))
    count = m.sum(axes)
    mean = (m * x).sum(axes) / count
    variance = (m * (x - mean) ** 2).sum(axes) / count
    return gamma * (x - mean) / jnp.sqrt(variance + EPSILON) + beta


def ours(**options):
    layer = BatchNorm(3, epsilon=EPSILON, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options)
    graph, _, rest = nnx.split(layer, nnx.Param, ...)

    def apply(x, gamma, beta, mask=None):
        params = nnx.State({"scale": nnx.Param(gamma), "bias": nnx.Param(beta)})
        return nnx.merge(graph, params, rest, copy=True)(x, mask=mask)

    return apply


def point(seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(a) for a in (rng.normal(2, 1, SHAPE), rng.normal(1, 0.3, 3), rng.normal(0, 1, 3)))


def masks():
    rng = np.random.default_rng(1)
    positions = rng.random(SHAPE[:2]) < 0.6
    return {
        "none": (None, None),
        "positions": (jnp.asarray(positions), jnp.asarray(positions)[..., None]),
        "channels": (jnp.asarray(rng.random(SHAPE) < 0.6),) * 2,
    }


WEIGHT = np.random.default_rng(2).normal(0, 1, SHAPE)


def loss_of(f, mask):
    return lambda *p: jnp.sum(f(*p, mask) * WEIGHT) + jnp.sum(jnp.sin(f(*p, mask)))


@pytest.mark.parametrize("kind", ["none", "positions", "channels"])
def test_gradient_tangent_and_hessian_are_those_of_the_formula(kind):
    given, aligned = masks()[kind]
    mine, plain = loss_of(ours(), given), loss_of(naive, aligned)
    everything, primals, tangents = (0, 1, 2), point(), point(5)
    for derived in (
        lambda f: jax.grad(f, everything)(*primals),
        lambda f: jax.jvp(f, primals, tangents)[1],
        lambda f: jax.jvp(jax.grad(f, everything), primals, tangents)[1],
        lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x, *primals[1:]) ** 2))(primals[0]),
        lambda f: jax.grad(lambda g: jnp.sum(jax.grad(f)(primals[0], g, primals[2]) ** 2))(primals[1]),
    ):
        for a, b in zip(jax.tree.leaves(derived(mine)), jax.tree.leaves(derived(plain)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * max(1.0, float(jnp.abs(b).max())) * 10)


def test_hessian_of_a_small_batch():
    mine, plain = loss_small(ours()), loss_small(naive)
    x = point()[0][:2, :2]
    np.testing.assert_allclose(jax.hessian(mine)(x), jax.hessian(plain)(x), atol=100 * TOLERANCE)
    forward_over_forward = jax.jacfwd(jax.jacfwd(mine))(x)
    np.testing.assert_allclose(forward_over_forward, jax.hessian(plain)(x), atol=100 * TOLERANCE)


def loss_small(f):
    return lambda x: jnp.sum(jnp.sin(f(x, point()[1], point()[2], None)))


def test_jax_check_grads_to_second_order():
    check_grads(ours(), point(), order=2, modes=["fwd", "rev"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_the_closed_form_of_the_reference(masked):
    mask = masks()["positions"][0] if masked else None
    x, gamma, beta = point()
    _, back = jax.vjp(lambda *p: ours()(*p, mask), x, gamma, beta)
    got = back(jnp.asarray(WEIGHT))
    expected = reference.backward(WEIGHT, x, gamma, epsilon=EPSILON, mask=None if mask is None else np.asarray(mask))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [3, 4])
def test_virtual_batches(size, masked):
    given, aligned = masks()["positions"] if masked else (None, None)

    def plain(x, gamma, beta, mask):
        parts = [slice(i, i + size) for i in range(0, SHAPE[0], size)]
        return jnp.concatenate([naive(x[p], gamma, beta, None if mask is None else mask[p]) for p in parts])

    got = jax.grad(loss_of(ours(virtual_batch_size=size), given), (0, 1, 2))(*point())
    expected = jax.grad(loss_of(plain, aligned), (0, 1, 2))(*point())
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=10 * TOLERANCE)


def test_inference_gradients():
    x, gamma, beta = point()
    f = ours(use_running_average=True)
    got = jax.grad(loss_of(f, None), (0, 1, 2))(x, gamma, beta)
    expected = jax.grad(loss_of(lambda x, g, b, mask: g * x / jnp.sqrt(1 + EPSILON) + b, None), (0, 1, 2))(
        x, gamma, beta
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


def test_a_fully_masked_batch_has_the_gradient_of_inference():
    x, gamma, beta = point()
    nothing = jnp.zeros(SHAPE[:2], bool)
    got = jax.grad(loss_of(ours(), nothing), (0, 1, 2))(x, gamma, beta)
    expected = jax.grad(loss_of(ours(use_running_average=True), None), (0, 1, 2))(x, gamma, beta)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


def test_no_gradient_through_the_moving_statistics():
    graph, state = nnx.split(BatchNorm(3, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))

    def after(x):
        layer = nnx.merge(graph, state, copy=True)
        layer(x)
        return jnp.sum(layer.mean[...] + layer.var[...])

    assert not jnp.any(jax.grad(after)(point()[0]))


def test_gradient_in_half_precision_is_rounded_once():
    x, _, _ = point()
    narrow = jnp.asarray(x, jnp.bfloat16)
    layer = BatchNorm(3, epsilon=EPSILON, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    f = lambda x: nnx.merge(graph, state, copy=True)(x)  # noqa: E731
    weight = jnp.asarray(WEIGHT, jnp.bfloat16)
    (got,) = jax.vjp(f, narrow)[1](weight)
    expected, _, _ = reference.backward(
        np.asarray(weight, np.float64), np.asarray(narrow, np.float64), np.ones(3), epsilon=EPSILON
    )
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=2.0**-8, atol=1e-5)
