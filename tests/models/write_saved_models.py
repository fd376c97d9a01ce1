"""Writes, with the installed TensorFlow and Keras, SavedModel folders and .tflite files: a process of its own."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

L = keras.layers
ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
TF_ROLES = {"gamma": "gamma", "beta": "beta", "moving_mean": "mean", "moving_variance": "variance"}


def fill(variables, seed=0):
    rng = np.random.default_rng(seed)
    for variable in variables:
        low = 0.5 if "variance" in variable.name or "gamma" in variable.name else -1
        variable.assign(rng.uniform(low, 2, variable.shape).astype(str(variable.dtype).split("'")[-2:][0]))


def functional():
    """Every setting of a batch normalization once; one inside a model, one used twice, one on the second axis."""
    inner_in = keras.Input((6, 6, 4), name="inner_in")
    inner = keras.Model(inner_in, L.BatchNormalization(epsilon=1e-2, name="deep")(inner_in), name="inner")
    shared = L.BatchNormalization(center=False, name="shared")
    x = image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, name="conv")(x)
    x = L.Activation("tanh")(L.BatchNormalization(momentum=0.9, epsilon=1e-3, name="full")(x))
    x = inner(x)
    x = L.Activation("sigmoid")(shared(L.Activation("tanh")(shared(x))))
    x = L.BatchNormalization(axis=1, scale=False, epsilon=1e-4, name="rows")(x)
    x = L.GlobalAveragePooling2D()(L.Activation("tanh")(x))
    x = L.BatchNormalization(scale=False, center=False, epsilon=1e-5, name="bare")(x)
    return keras.Model(image, L.Dense(2, name="head")(L.Activation("tanh")(x)))


def expected(model):
    found = {}
    for layer in model._flatten_layers():
        if isinstance(layer, L.BatchNormalization):
            arrays = {role: getattr(layer, role) for role in ROLES}
            axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
            found[layer.name] = {"epsilon": layer.epsilon, "axis": axis} | {
                role: None if each is None else np.asarray(each).tolist() for role, each in arrays.items()
            }
    return found


class Fused(tf.Module):
    """The fused operator, in either layout or mode, as graphs of TensorFlow's own layers hold it."""

    def __init__(self, training=False):
        super().__init__(name="fused")
        with tf.name_scope("stem"), tf.name_scope("bn"):
            self.v = {role: tf.Variable(tf.zeros(3), name=role) for role in ROLES}
        fill(self.v.values(), 3)
        self.training = training

    @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 3), name="x")])
    def __call__(self, x):
        with tf.name_scope("stem"), tf.name_scope("bn"):
            given = {TF_ROLES[r]: v for r, v in self.v.items() if r.startswith("moving")}
            arrays = {} if self.training else given
            y, *_ = tf.compat.v1.nn.fused_batch_norm(
                tf.tanh(x), self.v["gamma"], self.v["beta"], epsilon=2e-3, is_training=self.training, **arrays
            )
        return tf.nn.relu(y)


class WrittenOut(tf.Module):
    """``tf.nn.batch_normalization``, in the function and inside a branch; several inputs and outputs."""

    def __init__(self):
        super().__init__(name="out")
        for scope in ("first", "branch"):
            with tf.name_scope(scope):
                setattr(self, scope, {role: tf.Variable(tf.zeros(5), name=role) for role in ROLES})
            fill(getattr(self, scope).values(), len(scope))

    def _norm(self, scope, x):
        v = getattr(self, scope)
        with tf.name_scope(scope):
            return tf.nn.batch_normalization(
                x, v["moving_mean"], v["moving_variance"], v["beta"], v["gamma"], 3e-3, name="batchnorm"
            )

    @tf.function(input_signature=[tf.TensorSpec((None, 5), name="a"), tf.TensorSpec((None, 5), name="b")])
    def serve(self, a, b):
        y = self._norm("first", tf.tanh(a)) + b
        z = tf.cond(tf.reduce_sum(a) > 0, lambda: self._norm("branch", y), lambda: y)
        return {"y": tf.identity(y), "z": z}


class OfTheBatch(tf.Module):
    """Normalised by the batch's own moments, as ``training=True`` exports; then each row by its own."""

    def __init__(self):
        super().__init__(name="of_the_batch")
        with tf.name_scope("live"):
            self.v = {role: tf.Variable(tf.zeros(5), name=role) for role in ROLES}
        fill(self.v.values(), 4)

    @tf.function(input_signature=[tf.TensorSpec((None, 5), name="x")])
    def __call__(self, x):
        x = tf.tanh(x)
        for scope, axes in (("live", [0]), ("rows", [1])):
            with tf.name_scope(scope):
                mean, variance = tf.nn.moments(x, axes, keepdims=scope == "rows")
                x = tf.nn.batch_normalization(
                    x, mean, variance, self.v["beta"], self.v["gamma"], 4e-3, name="batchnorm"
                )
        return x


class Plain(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.ones((3, 2)), name="dense/kernel")

    @tf.function(input_signature=[tf.TensorSpec((None, 3), name="x")])
    def __call__(self, x):
        return x @ self.w


class Fails(tf.Module):
    """Normalises, then fails on what it is given."""

    def __init__(self):
        super().__init__()
        with tf.name_scope("bn"):
            self.v = {role: tf.Variable(tf.ones(3), name=role) for role in ROLES}

    @tf.function(input_signature=[tf.TensorSpec((None, 3), name="x")])
    def __call__(self, x):
        with tf.name_scope("bn"):
            v = self.v
            y = tf.nn.batch_normalization(
                x, v["moving_mean"], v["moving_variance"], v["beta"], v["gamma"], 1e-3, name="batchnorm"
            )
        with tf.control_dependencies([tf.debugging.assert_less(x, 10.0, message="too large\nto bear")]):
            return tf.identity(y)


def convert(model, path, **changes):
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    for name, value in changes.items():
        setattr(converter, name, value)
    path.write_bytes(converter.convert())


def unfolded():
    """Batch normalizations that stay: nothing linear stands before them."""
    x = image = keras.Input((6, 6, 3), name="image")
    x = L.Activation("tanh")(L.BatchNormalization(name="alone")(x))
    x = L.Activation("tanh")(L.BatchNormalization(name="second", scale=False, epsilon=1e-2)(x))
    x = L.Conv2D(4, 3, use_bias=False, name="conv")(x)
    x = L.Activation("tanh")(L.BatchNormalization(name="merged")(x))
    return keras.Model(image, x)


def main(folder):
    model = functional()
    fill(model.variables)
    x = np.random.default_rng(1).normal(size=(5, 8, 8, 3)).astype("f4")
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.asarray(model(x, training=False)))
    (folder / "expected.json").write_text(json.dumps(expected(model)))
    model.export(folder / "exported", verbose=False)
    tf.saved_model.save(model, folder / "saved")
    model.save(folder / "model.keras")
    for name, module in (
        ("fused", Fused()),
        ("training", Fused(training=True)),
        ("of_the_batch", OfTheBatch()),
        ("plain", Plain()),
        ("fails", Fails()),
    ):
        tf.saved_model.save(module, folder / name)
    module = WrittenOut()
    tf.saved_model.save(module, folder / "out", signatures={"serving_default": module.serve})
    (folder / "modules.json").write_text(
        json.dumps(
            {
                "fused": {role: np.asarray(v).tolist() for role, v in Fused().v.items()},
                "live": {role: np.asarray(v).tolist() for role, v in OfTheBatch().v.items()},
                "first": {role: np.asarray(v).tolist() for role, v in module.first.items()},
                "branch": {role: np.asarray(v).tolist() for role, v in module.branch.items()},
            }
        )
    )
    lite = unfolded()
    fill(lite.variables, 5)
    (folder / "lite.json").write_text(json.dumps(expected(lite)))
    convert(lite, folder / "float.tflite")
    convert(lite, folder / "half.tflite", optimizations=[tf.lite.Optimize.DEFAULT],
            target_spec=half_precision())  # fmt: skip
    rows = [np.random.default_rng(n).normal(size=(1, 6, 6, 3)).astype("f4") for n in range(20)]
    convert(lite, folder / "int8.tflite", optimizations=[tf.lite.Optimize.DEFAULT],
            representative_dataset=lambda: ([row] for row in rows))  # fmt: skip
    convert(model, folder / "model.tflite")
    lite.save(folder / "lite.keras")


def half_precision():
    spec = tf.lite.TargetSpec()
    spec.supported_types = [tf.float16]
    return spec


if __name__ == "__main__":
    main(Path(sys.argv[1]))
