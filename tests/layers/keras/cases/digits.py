"""A small residual network on scikit-learn's digits, for a comparison of two layers in a real training."""

import keras
import numpy as np
from keras import layers, ops


def data():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order].reshape(-1, 8, 8, 1) / 16).astype("float32"), labels[order]


def network(Norm, **kwargs):
    def block(x, filters, strides=1):
        y = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        y = layers.Activation("relu")(Norm(**kwargs)(y))
        y = Norm(**kwargs)(layers.Conv2D(filters, 3, padding="same", use_bias=False)(y))
        if strides > 1:
            x = Norm(**kwargs)(layers.Conv2D(filters, 1, strides, use_bias=False)(x))
        return layers.Activation("relu")(layers.add([x, y]))

    inputs = keras.Input((8, 8, 1))
    x = layers.Activation("relu")(Norm(**kwargs)(layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)))
    x = block(block(x, 8), 16, 2)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def compiled(model, rate=0.1):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss, jit_compile=keras.backend.backend() == "jax")
    return model


def batches(images, labels, steps, size=32):
    for step in range(steps):
        rows = np.arange(step * size, (step + 1) * size) % len(labels)
        yield images[rows], labels[rows]


def accuracy(model, images, labels):
    return float(np.mean(np.argmax(ops.convert_to_numpy(model(images, training=False)), 1) == labels))
