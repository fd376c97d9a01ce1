"""Files, weights both ways, convert, freeze."""

import keras
import numpy as np
import pytest
from keras import layers
from tools import BACKEND, Ours, Theirs, array, state, with_training

from batchnorm.errors import Refused
from batchnorm.keras import convert, freeze, unfreeze

EVERYTHING = {
    "axis": [1, -1],
    "momentum": 0.9,
    "epsilon": 1e-4,
    "renorm": True,
    "renorm_clipping": {"rmax": 3.0, "rmin": 0.3, "dmax": 5.0},
    "renorm_momentum": 0.95,
    "gamma_regularizer": "l2",
    "beta_constraint": "non_neg",
    "activation": "relu",
    "statistics": "debiased",
    "ddof": 1,
    "guard": False,
    "virtual_batch_size": 4,
    "dtype": "mixed_bfloat16",
}


def filled(model, rng):
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def outputs(model, x):
    return array(model(x)).astype("float32")


def test_config_and_file_round_trip_without_custom_objects(tmp_path, rng):
    inputs = keras.Input((5, 4))
    model = filled(keras.Model(inputs, Ours(name="bn", **EVERYTHING)(inputs)), rng)
    x = rng.normal(size=(6, 5, 4)).astype("float32")
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    layer = loaded.get_layer("bn")
    assert type(layer) is Ours
    assert layer.get_config() == model.get_layer("bn").get_config()
    assert (layer.axis, layer.activation) == ((1, -1), keras.activations.relu)
    np.testing.assert_array_equal(outputs(loaded, x), outputs(model, x))
    for name, value in state(layer).items():
        np.testing.assert_array_equal(state(model.get_layer("bn"))[name], value)


def test_loading_without_the_import_says_what_is_missing(tmp_path):
    keras.Sequential([keras.Input((3,)), Ours(name="bn")]).save(tmp_path / "m.keras")
    registered = keras.saving.get_custom_objects()
    ours = registered.pop("batchnorm>BatchNormalization")  # as in a process that has not imported batchnorm.keras
    try:
        with pytest.raises(
            TypeError, match=r"(?s)could not be deserialized properly.*Could not locate class 'BatchNorm"
        ):
            keras.saving.load_model(tmp_path / "m.keras")
    finally:
        registered["batchnorm>BatchNormalization"] = ours
    assert type(keras.saving.load_model(tmp_path / "m.keras").get_layer("bn")) is Ours


@pytest.mark.parametrize("kwargs", [{}, {"renorm": True}, {"center": False}, {"scale": False, "axis": 1}])
def test_weights_both_ways(tmp_path, rng, kwargs):
    x = rng.normal(size=(6, 5, 4)).astype("float32")
    for A, B in ((Theirs, Ours), (Ours, Theirs)):
        a, b = (keras.Sequential([keras.Input((5, 4)), Layer(name="bn", **kwargs)]) for Layer in (A, B))
        filled(a, rng)
        b.set_weights(a.get_weights())
        np.testing.assert_allclose(outputs(b, x), outputs(a, x), rtol=1e-5, atol=1e-6)
        filled(a, rng).save_weights(tmp_path / "w.weights.h5")
        b.load_weights(tmp_path / "w.weights.h5")
        for mine, other in zip(b.get_weights(), a.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("statistics", ["debiased", "cumulative"])
def test_weights_without_history(tmp_path, rng, statistics):
    theirs, ours = (
        keras.Sequential([keras.Input((4,)), layer])
        for layer in (Theirs(name="bn"), Ours(name="bn", statistics=statistics))
    )
    filled(theirs, rng).save_weights(tmp_path / "w.weights.h5")
    x = rng.normal(size=(6, 4)).astype("float32")
    layer = ours.get_layer("bn")
    history = "remaining" if statistics == "debiased" else "updates"

    def check():
        np.testing.assert_array_equal(state(layer)[history], 0)
        np.testing.assert_allclose(outputs(ours, x), outputs(theirs, x), rtol=1e-5, atol=1e-6)

    ours.load_weights(tmp_path / "w.weights.h5")
    check()
    getattr(layer, history).assign(np.ones(4))
    layer.set_weights(theirs.get_layer("bn").get_weights())
    check()
    with pytest.raises(ValueError, match="expecting 5 weights"):
        layer.set_weights([np.ones(4)] * 3)


@keras.saving.register_keras_serializable(package="cases")
class Block(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)
        self.norm = Theirs()
        self.rest = [[layers.Dense(units), Theirs()], {"a": (Theirs(),)}]

    def call(self, x, training=None):
        x = self.norm(self.dense(x), training=training)
        for layer in self.rest[0]:
            x = layer(x)
        return self.rest[1]["a"][0](x, training=training)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def functional():
    inputs = keras.Input((5, 4))
    x = layers.TimeDistributed(Theirs(name="inner"))(inputs)
    shared = Theirs(name="shared", epsilon=1e-2, momentum=0.8)
    x = shared(x) + shared(x)
    x = keras.Sequential([layers.Dense(4), Theirs(name="nested"), layers.Dropout(0.5)], name="part")(x)
    x = layers.Masking()(Block(3, name="block")(x))
    return keras.Model(inputs, Theirs(axis=1, trainable=False, name="frozen")(x), name="whole")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = Theirs(name="first")
        self.alias = self.norm
        self.block = Block(3)
        self.part = keras.Sequential([layers.Dense(4), Theirs()])
        self.list = [Theirs(), layers.Dense(2)]

    def call(self, x, training=None):
        x = self.block(self.alias(x, training=training), training=training)
        return self.list[1](self.list[0](self.part(x), training=training))


def names(model):
    return [layer.name for layer in model._flatten_layers() if isinstance(layer, (Ours, Theirs))]


def check_converted(before, x, model, converted):
    # Inference is the same formula in another order of operations: a rounding a layer, relative to the largest output.
    after = outputs(converted, x)
    np.testing.assert_allclose(after, before, atol=2e-6 * np.abs(before).max())
    assert not any(isinstance(layer, Theirs) for layer in converted._flatten_layers())


def test_convert_functional(rng):
    model = filled(functional(), rng)
    x = rng.normal(size=(6, 5, 4)).astype("float32")
    before, weights, was = outputs(model, x), model.get_weights(), names(model)
    converted = convert(model, guard=False)
    check_converted(before, x, model, converted)
    assert names(converted) == was == names(model)
    assert (converted.name, type(converted)) == ("whole", type(model))
    for mine, other, first in zip(converted.get_weights(), model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(mine, other)
        np.testing.assert_array_equal(first, other)
    shared = converted.get_layer("shared")
    assert (shared.epsilon, shared.momentum, shared.guard) == (1e-2, 0.8, False)
    assert not converted.get_layer("frozen").trainable
    assert all(type(layer) is not Ours for layer in model._flatten_layers())


@with_training
def test_the_clone_shares_nothing_with_the_model(rng):
    model = filled(functional(), rng)
    x = rng.normal(size=(6, 5, 4)).astype("float32")
    converted = convert(model)
    for one in (model, converted):  # on JAX a compiled step consumes the arrays it is given
        one.compile("sgd", "mse", jit_compile=BACKEND == "jax")
        one.fit(x, np.zeros((6, 5, 3)), epochs=1, verbose=0)
    assert np.isfinite(outputs(model, x)).all()


def test_convert_with_debiased_statistics_keeps_the_outputs(rng):
    model = filled(functional(), rng)
    x = rng.normal(size=(6, 5, 4)).astype("float32")
    check_converted(outputs(model, x), x, model, convert(model, statistics="debiased"))


@pytest.mark.skipif(BACKEND == "numpy", reason="Keras compiles models for training only on the others")
def test_convert_subclassed_in_place(rng):
    model = Subclassed()
    x = rng.normal(size=(6, 4)).astype("float32")
    model(x)
    filled(model, rng)
    before, weights, was = outputs(model, x), model.get_weights(), names(model)
    assert convert(model) is model
    check_converted(before, x, model, model)
    assert names(model) == was
    assert model.alias is model.norm
    for mine, first in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(mine, first)
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((6, 2)), epochs=1, verbose=0)
    assert not np.array_equal(array(model.norm.moving_mean), weights[2])


@keras.saving.register_keras_serializable(package="cases")
class Graph(keras.Model):
    """A functional model with code of its own."""

    extra = 3


class Stack(keras.Sequential):
    pass


class Sharing(keras.Model):
    """Two graphs that share a layer, which is an attribute too."""

    def __init__(self):
        super().__init__()
        inputs = keras.Input((4,))
        self.norm = Theirs(name="bn")
        hidden = self.norm(inputs)
        self.encoder = keras.Model(inputs, hidden)
        self.whole = keras.Model(inputs, layers.Dense(2)(hidden))

    def call(self, x, training=None):
        return self.whole(x, training=training) + self.encoder(x, training=training)[:, :2]


def graph():
    inputs = keras.Input((4,))
    hidden = keras.Sequential([layers.Dense(4), Theirs(name="inner")], name="part")(inputs)
    return Graph(inputs, layers.Dense(2)(Theirs(name="bn")(hidden)))


def stack():
    return Stack([keras.Input((4,)), Theirs(name="bn"), layers.Dense(2)])


@pytest.mark.parametrize("make", [graph, stack, Sharing])
def test_convert_rewires_graphs_in_place(rng, make):
    model = make()
    x = rng.normal(2.0, 1.0, (6, 4)).astype("float32")
    model(x)
    filled(model, rng)
    before, weights, was = outputs(model, x), model.get_weights(), names(model)
    paths = sorted(v.path for v in model.weights)
    assert convert(model) is model
    check_converted(before, x, model, model)
    assert names(model) == was
    assert sorted(v.path for v in model.weights) == paths
    assert len(model.get_weights()) == len(weights)
    norm = model.norm if make is Sharing else model.get_layer("bn")
    assert type(norm) is Ours
    if make is Sharing:
        assert model.encoder.get_layer("bn") is model.whole.get_layer("bn") is norm
    count = array(norm.moving_mean)
    model(x, training=True)  # the graph updates the layer that is shown, not another
    assert not np.array_equal(array(norm.moving_mean), count)
    if BACKEND != "numpy":
        model.compile("sgd", "mse")
        model.fit(x, np.zeros((6, 2)), epochs=1, verbose=0)


def test_a_rewired_graph_is_saved_and_loaded(rng, tmp_path):
    model = convert(graph())
    x = rng.normal(2.0, 1.0, (6, 4)).astype("float32")
    model.save(tmp_path / "graph.keras")
    loaded = keras.models.load_model(tmp_path / "graph.keras")
    assert (type(loaded), type(loaded.get_layer("bn")), loaded.extra) == (Graph, Ours, 3)
    np.testing.assert_array_equal(outputs(loaded, x), outputs(model, x))


def test_convert_lists_what_it_leaves(rng):
    class Special(Theirs):
        pass

    class Hidden(keras.Model):
        def __init__(self):
            super().__init__()
            hidden = Theirs(name="hidden")
            self._layers.append(hidden)
            self.function = lambda x: hidden(x)
            self.special = Special(name="special")

        def call(self, x):
            return self.special(self.function(x))

    model = Hidden()
    model(np.ones((2, 3), "float32"))
    with pytest.warns(UserWarning, match=r"convert: left as they are: .*/special, .*/hidden|.*/hidden, .*/special"):
        convert(model)


def test_convert_refuses_what_cannot_be_cloned():
    class Closed(layers.Layer):
        def __init__(self, units):
            super().__init__(name="closed")
            self.units = units

        def call(self, x):
            return x

        def get_config(self):
            return {"name": "closed"}

    inputs = keras.Input((3,))
    with pytest.raises(Refused, match="convert: layer 'closed' of class Closed cannot be cloned"):
        convert(keras.Model(inputs, Closed(2)(inputs)))


@pytest.mark.parametrize(
    ("theirs", "options", "message"),
    [
        ({}, {"statistics": "ema"}, "'one': statistics must be one of .* got 'ema'"),
        ({"epsilon": 0.0}, {}, "'one': epsilon must be positive and finite; got 0.0"),
        ({}, {"guards": True}, "Unrecognized keyword arguments.*guards"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_convert_says_what_our_layer_says(theirs, options, message, dtype):
    model = keras.Sequential([keras.Input((3,)), Theirs(name="one", dtype=dtype, gamma_regularizer="l2", **theirs)])
    with pytest.raises(ValueError, match=message):
        convert(model, **options)
    layer = convert(model, epsilon=1e-3).get_layer("one")
    assert (layer.dtype_policy.name, type(layer.gamma_regularizer)) == (dtype, keras.regularizers.L2)


def test_convert_a_single_layer(rng):
    layer = Theirs(name="one")
    layer.build((None, 3))
    filled(layer, rng)
    converted = convert(layer)
    assert (type(converted), converted.name) == (Ours, "one")
    x = rng.normal(size=(4, 3)).astype("float32")
    np.testing.assert_allclose(outputs(converted, x), outputs(layer, x), rtol=1e-5, atol=1e-6)


def test_freeze_and_unfreeze():
    model = keras.Sequential([keras.Input((3,)), Theirs(name="a"), layers.Dense(2, name="d"), Ours(name="b")])
    paths = [f"{model.name}/a", f"{model.name}/b"]
    assert freeze(model) == paths
    x = np.arange(12, dtype="float32").reshape(4, 3)
    before = model.get_weights()
    model(x, training=True)
    for mine, first in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, first)
    assert model.get_layer("d").trainable
    assert unfreeze(model) == paths
    model(x, training=True)
    assert not np.array_equal(array(model.get_layer("b").moving_variance), [1, 1])


@with_training
def test_freeze_says_that_a_compiled_model_must_be_compiled_again():
    model = keras.Sequential([keras.Input((3,)), Ours()])
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="freeze: the model is compiled. Compile it again"):
        freeze(model)
