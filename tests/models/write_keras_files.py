"""Writes model files with the installed Keras, and beside them what the live models say: run once, in a process."""

import json
import sys
from pathlib import Path

import keras
import numpy as np

L = keras.layers
RNG = np.random.default_rng(0)


def value(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable)).astype("float64").tolist()


def shake(model):
    """Make every variable of a batch normalization its own, as after training."""
    for layer in norms(model):
        for variable in layer.variables:
            lowest = 0.5 if "var" in variable.path or "std" in variable.path else -1.0
            variable.assign(RNG.uniform(lowest, 2, variable.shape).astype("float32"))


def norms(model):
    found = [layer for layer in model._flatten_layers() if isinstance(layer, L.BatchNormalization)]
    return list({id(layer): layer for layer in found}.values())


def expected(layer, name, **more):
    return {
        "name": name,
        "kind": type(layer).__name__,
        "channels": int(layer.moving_mean.shape[0]),
        "axis": layer.axis,
        "dtype": np.asarray(keras.ops.convert_to_numpy(layer.moving_mean)).dtype.name,
        "epsilon": layer.epsilon,
        "decay": layer.momentum,
        "mode": "by-call",
        "updates": None,
        "arrays": {
            role: None if getattr(layer, role) is None else value(getattr(layer, role))
            for role in ("gamma", "beta", "moving_mean", "moving_variance")
        },
    } | more


def train(model, shape, steps=2, target=None):
    model.compile("sgd", "mse")
    x = RNG.normal(3, 2, (4 * steps, *shape)).astype("float32")
    y = np.zeros((4 * steps, *(target or shape)), "float32")
    model.fit(x, y, batch_size=4, epochs=1, verbose=0)


def functional():
    inp = keras.Input((3,), name="in")
    x = L.Dense(5, name="d")(inp)
    x = L.BatchNormalization(name="full", epsilon=1e-5, momentum=0.9)(x)
    x = L.BatchNormalization(name="no_scale", scale=False)(x)
    x = L.BatchNormalization(name="no_center", center=False)(x)
    x = L.BatchNormalization(name="bare", scale=False, center=False)(x)
    x = L.BatchNormalization(name="odd_start", moving_variance_initializer=keras.initializers.Constant(2.5))(x)
    model = keras.Model(inp, x)
    train(model, (3,), 3, (5,))
    return model, [expected(model.get_layer(n), n, updates=3) for n in
                   ("full", "no_scale", "no_center", "bare", "odd_start")]  # fmt: skip


def sequential():
    model = keras.Sequential([keras.Input((6, 6, 2)), L.Conv2D(4, 3, name="c"), L.BatchNormalization(axis=1, name="a1"),
                              L.ReLU(name="r"), L.BatchNormalization(name="last")])  # fmt: skip
    shake(model)
    return model, [expected(model.get_layer(n), n) for n in ("a1", "last")]


def nested():
    """The same names in two nested models; one is called twice, one is frozen."""

    def block(name):
        return keras.Sequential([keras.Input((4,)), L.Dense(4, name="d"), L.BatchNormalization(name="bn")], name=name)

    left, right = block("left"), block("right")
    inp = keras.Input((4,))
    deep_in = keras.Input((4,))
    deep = keras.Model(deep_in, L.BatchNormalization(name="bn")(block("inner")(deep_in)), name="deep")
    right.trainable = False
    out = deep(right(left(left(inp))))
    model = keras.Model(inp, L.BatchNormalization(name="bn")(out))
    train(model, (4,), 2)
    inner = deep.layers[1]
    return model, [
        expected(left.layers[-1], "left/bn", updates=4),
        expected(right.layers[-1], "right/bn", mode="frozen", doubt="frozen"),
        expected(inner.layers[-1], "deep/inner/bn", updates=2),
        expected(deep.get_layer("bn"), "deep/bn", updates=2),
        expected(model.get_layer("bn"), "bn", updates=2),
    ]


def shared():
    inp = keras.Input((4,))
    bn = L.BatchNormalization(name="twice")
    other = L.BatchNormalization(name="baked")
    sure = L.BatchNormalization(name="sure")
    x = sure(other(bn(bn(inp)), training=True), training=False)
    model = keras.Model(inp, x)
    train(model, (4,), 2)
    return model, [
        expected(bn, "twice", updates=4),
        expected(other, "baked", updates=2, mode="training"),
        expected(sure, "sure", updates=2, mode="inference"),
    ]


def shared_across():
    """One layer object in a nested model and in the outer one."""
    bn = L.BatchNormalization(name="bn")
    inner = keras.Sequential([keras.Input((4,)), bn], name="inner")
    inp = keras.Input((4,))
    model = keras.Model(inp, bn(inner(inp)))
    train(model, (4,), 2)
    return model, [expected(bn, "inner/bn", updates=4)]


def wrapped():
    inp = keras.Input((5, 4))
    inner = keras.Sequential([keras.Input((4,)), L.BatchNormalization(name="bn")], name="inner")
    x = L.TimeDistributed(L.BatchNormalization(name="inner"), name="wrapper")(inp)
    x = L.TimeDistributed(inner, name="wrapped_model")(x)
    x = L.Bidirectional(L.LSTM(2, return_sequences=True), name="both")(x)
    model = keras.Model(inp, x)
    train(model, (5, 4), 2)
    return model, [
        expected(model.get_layer("wrapper").layer, "wrapper/inner", updates=10),
        expected(inner.layers[-1], "wrapped_model/inner/bn", updates=10),
    ]


def unknown_time():
    inp = keras.Input((None, 4))
    model = keras.Model(inp, L.TimeDistributed(L.BatchNormalization(name="bn"), name="td")(inp))
    model.compile("sgd", "mse")
    return model, [expected(model.get_layer("td").layer, "td/bn", doubt="time step")]


def renorm():
    inp = keras.Input((4,))
    x = L.BatchNormalization(name="first", renorm=True, scale=False)(inp)
    model = keras.Model(inp, L.BatchNormalization(name="second", renorm=True)(x))
    train(model, (4,), 2)
    return model, [expected(model.get_layer(n), n, doubt="renorm") for n in ("first", "second")]


def mixed():
    """Loss scaling keeps its own count of steps, and an inner optimizer that skips some."""
    inp = keras.Input((4,))
    model = keras.Model(inp, L.BatchNormalization(name="bn", dtype="mixed_float16")(inp))
    inner = keras.optimizers.SGD(0.01)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0)
    model.compile(optimizer, "mse")
    model.fit(RNG.normal(3, 2, (8, 4)).astype("float32"), np.zeros((8, 4), "float32"), batch_size=4, verbose=0)
    return model, [expected(model.get_layer("bn"), "bn", updates=int(keras.ops.convert_to_numpy(inner.iterations)))]


def halves():
    names = ("float16", "bfloat16", "float64")
    inp = keras.Input((4,))
    x = inp
    for dtype in names:
        x = L.BatchNormalization(name=dtype, dtype=dtype)(x)
    model = keras.Model(inp, x)
    shake(model)
    return model, [expected(model.get_layer(dtype), dtype) for dtype in names]


def no_norm():
    return keras.Sequential([keras.Input((3,)), L.Dense(2, name="only")]), []


def counter_lost():
    """New weights under an old optimizer's count: the counter contradicts the statistics."""
    inp = keras.Input((4,))
    model = keras.Model(inp, L.BatchNormalization(name="bn")(inp))
    model.compile("sgd", "mse")
    shake(model)
    return model, [expected(model.get_layer("bn"), "bn", doubt="0 updates")]


@keras.saving.register_keras_serializable("tests")
class SyncBatchNorm(L.BatchNormalization):
    pass


@keras.saving.register_keras_serializable("tests")
class Block(L.Layer):
    """A custom layer whose config does not show what is in it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(4)
        self.stack = [L.BatchNormalization(name="one"), L.BatchNormalization(name="two")]

    def build(self, shape):
        self.dense.build(shape)
        for layer in self.stack:
            layer.build((None, 4))
        self.built = True

    def call(self, x, training=None):
        x = self.dense(x)
        for layer in self.stack:
            x = layer(x, training=training)
        return x


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block(name="block")
        self.bn = L.BatchNormalization(name="head")
        self.twin = L.BatchNormalization(name="head")

    def call(self, x, training=None):
        return self.twin(self.bn(self.block(x, training=training), training=training), training=training)

    def get_config(self):
        return {"name": self.name}


UNKNOWN = {"epsilon": None, "decay": None}


def custom():
    inp = keras.Input((4,))
    x = SyncBatchNorm(name="sync")(inp)
    x = Block(name="block")(x)
    model = keras.Model(inp, L.BatchNormalization(name="bn")(x))
    shake(model)
    block = model.get_layer("block")
    return model, [
        expected(model.get_layer("sync"), "sync"),
        *(expected(layer, f"block/{layer.name}", mode=None, **UNKNOWN) for layer in block.stack),
        expected(model.get_layer("bn"), "bn"),
    ]


def subclassed():
    model = Subclassed()
    model(np.ones((2, 4), "float32"))
    shake(model)
    more = {"mode": None, **UNKNOWN}
    return model, [
        *(expected(layer, f"block/{layer.name}", **more) for layer in model.block.stack),
        expected(model.bn, "head", **more),
        expected(model.twin, "head#2", **more),
    ]


def hostile():
    names = ["a\nb", "<script>alert(1)", "\x1b[31mred", "n" * 5000, " "]
    inp = keras.Input((2,))
    x = inp
    for name in names:
        x = L.BatchNormalization(name=name)(x)
    model = keras.Model(inp, x)
    shake(model)
    return model, [expected(layer, name) for layer, name in zip(model.layers[1:], names, strict=True)]


LEGACY = ("functional", "sequential", "nested", "shared", "wrapped", "renorm", "no_norm", "custom")
MODELS = (functional, sequential, nested, shared, shared_across, wrapped, unknown_time, renorm, mixed, halves, no_norm,
          counter_lost, custom, subclassed, hostile)  # fmt: skip


def main(folder):
    for make in MODELS:
        keras.utils.clear_session(free_memory=False)
        model, records = make()
        name = make.__name__
        (folder / f"{name}.json").write_text(json.dumps(records))
        model.save(folder / f"{name}.keras")
        model.save_weights(folder / f"{name}.weights.h5")
        if name in LEGACY:
            model.save(folder / f"{name}.h5")
        if name == "nested":
            model.save_weights(folder / "nested_sharded.weights.json", max_shard_size=2e-7)
        if name == "functional":
            from keras.src.saving import saving_lib

            saving_lib.save_model(model, folder / "unzipped", zipped=False)
            model.save_weights(folder / "sharded.weights.json", max_shard_size=1e-7)
            x = RNG.normal(0, 3, (7, 3)).astype("float32")
            np.save(folder / "functional_x.npy", x)
            np.save(folder / "functional_y.npy", keras.ops.convert_to_numpy(model(x, training=False)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
