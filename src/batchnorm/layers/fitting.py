"""Enough of a training loop to learn gamma and beta: mean squared error and stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.core.arrays import as_float
from batchnorm.errors import ArgumentError

from . import arguments

__all__ = ["SGD", "Trainable", "fit", "mean_squared_error"]

Array = NDArray[Any]


class Gradients(Protocol):
    """Gradients by the name of their parameter; None where there is none."""

    @property
    def gamma(self) -> Array | None: ...

    @property
    def beta(self) -> Array | None: ...


class Trainable(Protocol):
    """A layer that the loop can train."""

    name: str
    trainable: bool
    gamma: Array | None
    beta: Array | None

    @property
    def gradients(self) -> Gradients | None: ...  # noqa: D102

    def __call__(self, x: ArrayLike, training: bool = False) -> Array: ...  # noqa: D102

    def backward(self, grad: ArrayLike) -> Array: ...  # noqa: D102


class SGD:
    """Gradient descent: ``parameter = parameter - learning_rate * gradient``.

    Parameters
    ----------
    learning_rate : float
        Positive; 0.01 is Keras' default.

    Raises
    ------
    ArgumentError
        A learning rate that is not a positive number.
    """

    def __init__(self, learning_rate: float = 0.01) -> None:
        self.learning_rate = arguments.positive("SGD", "learning_rate", learning_rate)

    def step(self, layer: Trainable) -> None:
        """Move gamma and beta of the layer against the gradients that its `backward` left; not of a frozen layer."""
        if not layer.trainable or layer.gradients is None:
            return
        layer.gamma = self._moved(layer.gamma, layer.gradients.gamma)
        layer.beta = self._moved(layer.beta, layer.gradients.beta)

    def _moved(self, parameter: Array | None, gradient: Array | None) -> Array | None:
        if parameter is None or gradient is None:
            return parameter
        return (parameter - self.learning_rate * gradient).astype(parameter.dtype)


class Loss(NamedTuple):
    """A loss and its gradient with respect to the output."""

    value: float
    grad: Array


def mean_squared_error(output: Array, target: Array) -> Loss:
    """``mean((output - target)^2)`` over all elements, in float64, and its gradient ``2*(output - target)/size``."""
    difference = output.astype(np.float64) - target
    return Loss(float(np.mean(difference * difference)), 2 * difference / difference.size)


def fit(
    layer: Trainable,
    x: ArrayLike,
    y: ArrayLike,
    epochs: int,
    batch_size: int,
    optimizer: SGD,
    loss: str,
    shuffle: bool,
    seed: int | None,
) -> list[float]:
    """Train the layer; see `batchnorm.BatchNormalization.fit`."""
    arguments.one_of(layer.name, "loss", loss, ("mse",))
    count = arguments.non_negative_int(layer.name, "epochs", epochs)
    size = arguments.positive_int(layer.name, "batch_size", batch_size)
    inputs, targets = _pair(layer.name, x, y)
    random = np.random.default_rng(seed) if shuffle else None
    return [_epoch(layer, optimizer, inputs, targets, _batches(len(inputs), size, random)) for _ in range(count)]


def _pair(who: str, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    inputs, targets = as_float(x, who), as_float(y, who)
    if inputs.shape != targets.shape:
        raise ArgumentError(f"{who}: fit needs x and y of one shape; got {inputs.shape} and {targets.shape}.")
    if not inputs.ndim or not inputs.size:
        raise ArgumentError(f"{who}: fit needs at least one sample; got x of shape {inputs.shape}.")
    return inputs, targets.astype(np.float64)


def _batches(samples: int, size: int, random: np.random.Generator | None) -> Iterator[NDArray[np.intp]]:
    order = np.arange(samples) if random is None else random.permutation(samples)
    yield from (order[start : start + size] for start in range(0, samples, size))


def _epoch(layer: Trainable, optimizer: SGD, x: Array, y: Array, batches: Iterator[NDArray[np.intp]]) -> float:
    total = 0.0
    for rows in batches:
        loss = mean_squared_error(layer(x[rows], training=True), y[rows])
        layer.backward(loss.grad)
        optimizer.step(layer)
        total += loss.value * len(rows)
    return total / len(x)
