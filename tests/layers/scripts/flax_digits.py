"""A small residual network on scikit-learn's digits in Flax, for a choice of batch normalization."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits


def digits():
    """Training and test images of 8x8 pixels between 0 and 1, with their labels; always the same 1,297 and 500."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = jnp.asarray(images[order]), jnp.asarray(labels[order])
    return (images[500:], labels[500:]), (images[:500], labels[:500])


class Residual(nnx.Module):
    """Convolution, norm, one residual block of two convolutions and norms, mean, dense."""

    def __init__(self, norm, rngs):
        self.stem = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.norm = norm(16, rngs=rngs)
        self.convolutions = nnx.List([nnx.Conv(16, 16, (3, 3), rngs=rngs) for _ in range(2)])
        self.norms = nnx.List([norm(16, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        y = nnx.relu(self.norms[0](self.convolutions[0](x)))
        y = self.norms[1](self.convolutions[1](y))
        return self.head(nnx.relu(x + y).mean((1, 2)))


@nnx.jit
def step(model, optimizer, images, labels):
    """One step of gradient descent; the loss before it."""

    def loss_of(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def accuracy(model, images, labels):
    """The share of right answers in inference mode."""
    seen = nnx.view(model, use_running_average=True)
    return jnp.mean(jnp.argmax(seen(images), -1) == labels)


def train(norm, steps, rate=0.05, size=64, at=()):
    """The losses of a training, and the accuracy in inference mode after each of the steps named in ``at``."""
    (images, labels), test = digits()
    model = Residual(norm, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(rate, momentum=0.9), wrt=nnx.Param)
    rng, losses, accuracies = np.random.default_rng(1), [], {}
    for number in range(1, steps + 1):
        chosen = rng.choice(len(images), size, replace=False)
        losses.append(float(step(model, optimizer, images[chosen], labels[chosen])))
        if number in at:
            accuracies[number] = float(accuracy(model, *test))
    return np.array(losses), accuracies
