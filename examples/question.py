"""The question: why does [1, 5] through a BatchNormalization layer not give [-1, 1].

    python examples/question.py        (KERAS_BACKEND=tensorflow, jax or torch)

The asker's script, brought to Keras 3; the last lines are the answer.
"""

import keras
import numpy as np

import batchnorm as bn

shape = (1, 2, 1)
inputs = keras.Input(shape)
outputs = keras.layers.BatchNormalization(center=False)(inputs)  # no beta
model = keras.Model(inputs, outputs)
model.compile(loss="mse", optimizer="sgd")

# training with dummy data
training_in = np.random.random(size=(10, *shape))
training_out = np.random.random(size=(10, *shape))
model.fit(training_in, training_out, epochs=10, verbose=0)

data_in = np.array([[[[1], [5]]]], dtype=np.float32)
data_out = model.predict(data_in, verbose=0)

layer = model.layers[1]
print("gamma          :", keras.ops.convert_to_numpy(layer.gamma))
print("moving_mean    :", keras.ops.convert_to_numpy(layer.moving_mean))
print("moving_variance:", keras.ops.convert_to_numpy(layer.moving_variance))
print("epsilon        :", layer.epsilon)
print("data_in        :", data_in.ravel())
print("data_out       :", data_out.ravel())
print()

found = bn.explain(model, x=data_in, expect=[-1, 1])
print(found)
