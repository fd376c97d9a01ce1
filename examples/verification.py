"""The verification: one batch normalization computed every way there is, side by side.

    python examples/verification.py    (KERAS_BACKEND=tensorflow, jax or torch)

The script of the question's accepted answer, brought to Keras 3, with this package's own two ways beside the others.
"""

import math

import keras
import numpy as np

import batchnorm as bn

np.random.seed(0)
input_shape = (1, 2, 1)
inputs = keras.Input(input_shape)
model = keras.Model(inputs, keras.layers.BatchNormalization()(inputs))
model.compile(loss="mse", optimizer="sgd")
training_in = np.random.random(size=(10, *input_shape))
training_out = np.random.random(size=(10, *input_shape))
model.fit(training_in, training_out, epochs=100, verbose=0)

layer = model.layers[1]
parameters = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
gamma, beta, mean, variance = (keras.ops.convert_to_numpy(value) for value in parameters)
epsilon = layer.epsilon
data = np.array([[[[1.0], [5.0]]]], np.float32)

ways = {"the model": model.predict(data, verbose=0)}
ways["NumPy"] = [
    gamma[0] * (x - mean[0]) / math.sqrt(variance[0] + epsilon) + beta[0] for x in data.ravel().astype(np.float64)
]
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    ways["tf.nn.batch_normalization"] = tf.nn.batch_normalization(data, mean, variance, beta, gamma, epsilon)
ways["keras.ops.batch_normalization"] = keras.ops.convert_to_numpy(
    keras.ops.batch_normalization(
        *(keras.ops.convert_to_tensor(value) for value in (data, mean, variance)),
        axis=-1,
        offset=keras.ops.convert_to_tensor(beta),
        scale=keras.ops.convert_to_tensor(gamma),
        epsilon=epsilon,
    )
)
ways["batchnorm.normalize"] = bn.normalize(data, mean, variance, gamma, beta, epsilon=epsilon)
found = bn.explain(model, x=data)
ways["batchnorm.explain"] = [value.y for value in found.layers[0].explained[0].values]

outputs = {way: np.asarray(y, np.float64).ravel() for way, y in ways.items()}
print(f"{'gamma':15}", *gamma)
print(f"{'beta':15}", *beta)
print(f"{'moving_mean':15}", *mean)
print(f"{'moving_variance':15}", *variance)
print(f"{'epsilon':15}", epsilon)
print()
print(f"{'x':31}", *(f"{x:<12g}" for x in data.ravel()))
for way, y in outputs.items():
    print(f"{way:31}", *(f"{value:<12.9g}" for value in y))
largest = max(np.max(np.abs(one - other)) for one in outputs.values() for other in outputs.values())
print(f"{'largest difference':31} {largest:.2g}")
