"""Write the two model files of this folder with Keras: ``KERAS_BACKEND=jax python examples/make_models.py``.

question.keras is the model of the original question, with the numbers that its asker printed: gamma .80644524, moving
mean .05885344, moving variance .91000736, after 10 steps at momentum .99. digits.keras is a small residual network
trained for 30 steps on scikit-learn's digits, as people train: its accuracy is good in training mode and bad in
inference mode, because 30 updates are not enough for momentum .99.
"""

from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

HERE = Path(__file__).parent


def question():
    """The model of the question, trained for its 10 steps, then given the asker's numbers."""
    inputs = keras.Input((1, 2, 1))
    model = keras.Model(inputs, keras.layers.BatchNormalization(center=False)(inputs))
    model.compile(loss="mse", optimizer="sgd")
    rng = np.random.default_rng(0)
    model.fit(rng.random((10, 1, 2, 1)), rng.random((10, 1, 2, 1)), epochs=10, verbose=0)
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    layer.set_weights([np.float32([0.80644524]), np.float32([0.05885344]), np.float32([0.91000736])])
    model.save(HERE / "question.keras")


def digits():
    """A residual network with three batch normalizations, 30 steps of batch size 64."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem_conv")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="stem_bn")(x))
    y = keras.layers.Conv2D(16, 3, padding="same", use_bias=False, name="block_conv1")(x)
    y = keras.layers.ReLU()(keras.layers.BatchNormalization(name="block_bn1")(y))
    y = keras.layers.Conv2D(16, 3, padding="same", use_bias=False, name="block_conv2")(y)
    x = keras.layers.ReLU()(keras.layers.add([x, keras.layers.BatchNormalization(name="block_bn2")(y)]))
    outputs = keras.layers.Dense(10, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer=keras.optimizers.Adam(0.01), metrics=["accuracy"])
    model.fit(images[: 64 * 30], labels[: 64 * 30], batch_size=64, epochs=1, verbose=0, shuffle=False)
    model.save(HERE / "digits.keras")  # before anything below updates the statistics again
    print(
        "steps:", int(model.optimizer.iterations), "inference accuracy:", model.evaluate(images, labels, verbose=0)[1]
    )
    training = np.argmax(np.concatenate([model(x, training=True) for x in np.split(images[:1792], 14)]), axis=1)
    print("training-mode accuracy:", np.mean(training == labels[:1792]))


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    question()
    digits()
