"""Keras models with padded sequences, trained and checked: the masks tell which padding is in the statistics."""

import warnings

import keras
import numpy as np

import batchnorm as bn

warnings.filterwarnings("ignore", message=".*does not support masking.*")
SAMPLES, POSITIONS, FEATURES = 128, 20, 6
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(6, POSITIONS + 1, SAMPLES)
MASK = np.arange(POSITIONS) < LENGTHS[:, None]
X = np.where(MASK[..., None], RNG.normal(2, 1, (SAMPLES, POSITIONS, FEATURES)), 0).astype("f4")
WORDS = np.where(MASK, RNG.integers(1, 9, MASK.shape), 0)
LAYERS = {
    "dense": [keras.layers.Masking(), keras.layers.Dense(8)],
    "conv": [keras.layers.Masking(), keras.layers.Conv1D(8, 1)],
    "embedding": [keras.layers.Embedding(9, 8, embeddings_initializer="normal", mask_zero=True)],
}
keras.utils.set_random_seed(0)
for name, layers in LAYERS.items():
    x = WORDS if name == "embedding" else X
    norm = keras.layers.BatchNormalization(momentum=0.5, epsilon=1e-5, name="bn")
    model = keras.Sequential([keras.Input(x.shape[1:]), *layers, norm, keras.layers.Dense(2)])
    for _ in range(12):
        model(x, training=True)
    found = {one.rule.code: one.hit for one in bn.check(model, x).findings}
    assert "BN401" not in found, (name, found["BN401"])
    if name == "conv":
        assert found["BN406"].evidence["source"] == "model"
        assert "which a layer before this one loses" in found["BN406"].message
    else:
        assert "BN406" not in found, (name, found["BN406"])
    assert getattr(layers[0].call, "__self__", None) is layers[0], "the layer's own call is back"
    print(name)
