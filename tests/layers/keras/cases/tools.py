"""What the cases share: a gradient on every backend, the naive formula, arrays out of tensors."""

import contextlib

import keras
import pytest
from keras import ops

from batchnorm.keras import BatchNormalization

BACKEND = keras.backend.backend()
Theirs = keras.layers.BatchNormalization
Ours = BatchNormalization
with_gradients = pytest.mark.skipif(BACKEND == "numpy", reason="Keras on NumPy has no gradients")
with_training = with_gradients


def array(value):
    return ops.convert_to_numpy(value)


def state(layer):
    return {variable.name: array(variable) for variable in layer.weights}


def wide():
    """JAX has float64 only where it is asked for."""
    if BACKEND == "jax":
        import jax

        return jax.enable_x64()
    return contextlib.nullcontext()


def gradient(function, *values):
    """Gradients of a scalar function, as tensors that can be differentiated again."""
    if BACKEND == "jax":
        import jax

        return jax.grad(function, argnums=tuple(range(len(values))))(*values)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        values = [tf.convert_to_tensor(v) for v in values]
        with tf.GradientTape() as tape:
            for value in values:
                tape.watch(value)
            result = function(*values)
        return tape.gradient(result, values)
    import torch

    values = [
        v if isinstance(v, torch.Tensor) and v.requires_grad else torch.tensor(v, requires_grad=True) for v in values
    ]
    return torch.autograd.grad(function(*values), values, create_graph=True)


def run(function, *values):
    """The function's results as arrays; compiled at once on JAX, which else compiles every operation on its own."""
    if BACKEND == "jax":
        import jax

        function = jax.jit(function)
    results = function(*values)
    return [array(r.detach() if hasattr(r, "detach") else r) for r in results]


def applied(layer, x, gamma, beta, **kwargs):
    """The layer as a function of its input and parameters, without a change of its state."""
    with keras.StatelessScope(state_mapping=[(layer.gamma, gamma), (layer.beta, beta)]):
        return layer(x, training=True, **kwargs)


def naive(x, gamma, beta, epsilon, mask=None, renorm=None):
    """Channels last; differentiated by the framework, operation by operation."""
    axes = tuple(range(len(x.shape) - 1))
    counted = ops.ones(x.shape, "float64") if mask is None else ops.cast(ops.broadcast_to(mask, x.shape), "float64")
    count = ops.sum(counted, axis=axes)
    mean = ops.sum(x * counted, axis=axes) / count
    variance = ops.sum(counted * (x - mean) ** 2, axis=axes) / count
    std = ops.sqrt(variance + epsilon)
    if renorm is None:
        return gamma * (x - mean) / std + beta
    renorm_mean, renorm_std, rmin, rmax, dmax = renorm
    renorm_mean, renorm_std = ops.convert_to_tensor(renorm_mean), ops.convert_to_tensor(renorm_std)
    r = ops.clip(ops.stop_gradient(std / renorm_std), rmin, rmax)
    d = ops.clip(ops.stop_gradient((mean - renorm_mean) / renorm_std), -dmax, dmax)
    return gamma * ((x - mean) / std * r + d) + beta
