"""Folds and freezes Keras models, live and as files, in one process; prints what was found as JSON."""

import json
import os
import sys
import warnings
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"  # the lightest to start

warnings.filterwarnings("ignore", category=DeprecationWarning)  # Keras on torch, of its own __array__

import keras  # noqa: E402
import numpy as np  # noqa: E402

import batchnorm as bn  # noqa: E402

L = keras.layers
RANKS = (1, 2, 3)


def trained(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "variance" in variable.path or "gamma" in variable.path:
            variable.assign(rng.uniform(0.5, 2, variable.shape).astype("float32"))
        elif variable.dtype == "float32" and len(variable.shape) == 1:
            variable.assign(rng.normal(size=variable.shape).astype("float32"))
    return model


def norm(x, name, **more):
    return L.BatchNormalization(name=name, **more)(x)


def every_kind():
    """Convolutions of every rank and sort, each with a batch normalization after it."""
    given, outs = [], []
    for rank in RANKS:
        x = keras.Input((9,) * rank + (4,), name=f"in{rank}")
        given.append(x)
        kinds = {
            "plain": (f"Conv{rank}D", {"groups": 2, "padding": "same"}),
            "strided": (f"Conv{rank}D", {"strides": 2}),
        }
        kinds["up"] = (f"Conv{rank}DTranspose", {"strides": 2, "padding": "same", "use_bias": False})
        if rank < 3:
            kinds["depth"] = (f"DepthwiseConv{rank}D", {"depth_multiplier": 2})
            kinds["apart"] = (f"SeparableConv{rank}D", {"filters": 6})
        for key, (kind, how) in kinds.items():
            size = {} if key in ("depth", "apart") else {"filters": 6}
            y = getattr(L, kind)(kernel_size=3, name=f"{key}{rank}", **size, **how)(x)
            outs.append(norm(y, f"bn_{key}{rank}", scale=rank != 2, center=rank != 3))
    x = keras.Input((5,), name="flat")
    given.append(x)
    outs.append(norm(L.Dense(3, name="dense")(x), "bn_dense"))
    outs.append(L.Dense(3, name="behind", activation="tanh")(norm(x, "bn_before")))
    return trained(keras.Model(given, outs))


def refusing():
    """Every reason for which a Keras layer is refused, and one that is folded."""
    x = keras.Input((8, 8, 4), name="x")
    fine = L.ReLU()(norm(L.Conv2D(4, 1, name="fine")(x), "folds"))
    two = L.Conv2D(4, 1, name="two")(fine)
    a = L.Add()([two, norm(two, "two_consumers")])
    relu = norm(L.Conv2D(4, 1, activation="relu", name="acts")(a), "activation_inside")
    pad = L.Conv2D(4, 3, name="after_pad")(L.ZeroPadding2D()(norm(L.ReLU()(relu), "pad_between")))
    same = L.Conv2D(4, 3, padding="same", name="pads")(norm(L.ReLU()(pad), "before_padded"))
    twice = L.Conv2D(4, 1, name="twice")
    shared = L.Add()([norm(twice(same), "of_shared"), twice(L.ReLU()(same))])
    once = L.BatchNormalization(name="shared")
    both = L.Add()([once(L.Conv2D(4, 1)(shared)), once(L.Conv2D(4, 1)(shared))])
    told = L.BatchNormalization(name="trains")(L.Conv2D(4, 1)(both), training=True)
    timed = L.TimeDistributed(L.BatchNormalization(name="timed"), name="over")(L.Conv2D(4, 1)(L.ReLU()(told)))
    return trained(keras.Model(x, timed))


def nested():
    x = keras.Input((8, 8, 3))
    body_in = keras.Input((8, 8, 3))
    y = norm(L.Conv2D(4, 3, name="c")(body_in), "bn")
    body = keras.Model(body_in, L.MaxPool2D()(y), name="body")
    tail = keras.Sequential(
        [L.Conv2D(5, 1, name="c"), L.BatchNormalization(name="bn"), L.Flatten(), L.Dense(2)], name="t"
    )
    return trained(keras.Model(x, {"one": tail(body(x)), "two": norm(L.Conv2D(2, 1, name="last")(body(x)), "end")}))


def sequential():
    layers = [
        keras.Input((6,)),
        L.BatchNormalization(name="first"),
        L.Dense(8, name="d"),
        L.BatchNormalization(name="bn"),
    ]
    return trained(keras.Sequential([*layers, L.ReLU(), L.Dense(2)]))


def outcome(found):
    document = json.loads(found.to_json())
    return {
        "folded": {each["layer"]: [each["into"], each["where"]] for each in document["folded"]},
        "refused": {each["layer"]: each["why"] for each in document["refused"]},
        "document": document,
    }


def main(folder):
    found = {}
    for model in (every_kind, refusing, nested, sequential):
        live, name = model(), model.__name__
        with bn.testing.assert_unchanged(live):
            one = bn.fold(live)
        found[name] = outcome(one)
        left = [layer.name for layer in one.result._flatten_layers() if isinstance(layer, L.BatchNormalization)]
        found[name]["left"] = sorted(left)
        live.save(folder / f"{name}.keras")
        file = bn.fold(folder / f"{name}.keras", folder / f"{name}_folded.keras")
        found[name]["file"] = outcome(file)
        again = keras.saving.load_model(folder / f"{name}_folded.keras")
        found[name]["loads"] = len(again.variables) < len(live.variables)
    found["h5"] = outcome(bn.fold(legacy(folder), folder / "folded.h5"))["folded"]
    found["far"] = outcome(far(folder))
    found["far_written"] = (folder / "far.keras").exists()
    found["half"] = half(folder)
    found["dead"] = outcome(bn.fold(dead()))
    found["data"] = outcome(bn.fold(sequential(), data=np.ones((70, 6), "f4"), skip=["first"]))
    found["ours"] = outcome(bn.fold(ours()))
    found["custom"] = outcome(bn.fold(custom()))
    found["axes"] = {str(axis): several_axes(axis, folder) for axis in ([1, 3], [3])}
    found["unregistered"] = outcome(bn.fold(unregistered()))
    odd(found)
    freezing(folder, found)
    (folder / "found.json").write_text(json.dumps(found))


def legacy(folder):
    sequential().save(folder / "s.h5")
    return folder / "s.h5"


def far(folder):
    """A mean of 1e5 standard deviations: what the convolution gives has lost the digits that count."""
    model = sequential()
    model.get_layer("d").bias.assign(np.full(8, 1e5, "f4"))
    model.get_layer("bn").moving_mean.assign(np.full(8, 1e5, "f4"))
    return bn.fold(save(model, folder / "far_in.keras"), folder / "far.keras")


def save(model, path):
    model.save(path)
    return path


def half(folder):
    keras.config.set_dtype_policy("float16")
    try:
        x = keras.Input((8, 8, 3))
        model = keras.Model(x, norm(L.Conv2D(8, 3, name="c")(x), "bn"))
    finally:
        keras.config.set_dtype_policy("float32")
    return outcome(bn.fold(model))


def dead():
    model = sequential()
    model.layers[-1].kernel.assign(np.zeros((8, 2), "f4"))
    model.layers[-1].bias.assign(np.zeros(2, "f4"))
    return model


@keras.saving.register_keras_serializable("mine")
class Conv2D(L.Conv2D):
    def call(self, inputs):
        return 2 * super().call(inputs)


def custom():
    x = keras.Input((8, 8, 3))
    y = norm(Conv2D(4, 1, name="twice")(x), "of_custom")
    return trained(keras.Model(x, norm(L.Conv2D(2, 1, name="c")(L.ReLU()(y)), "fine")))


class Twice(keras.layers.Layer):
    """Known to nobody: neither registered nor importable, as in a notebook."""

    def call(self, inputs):
        return 2 * inputs


def halved(x):
    return x / 2


class Functional(keras.Model):
    pass


Twice.__module__ = Functional.__module__ = halved.__module__ = "a_notebook"


def unregistered():
    x = keras.Input((8, 8, 3))
    y = norm(L.Conv2D(2, 1, name="c", kernel_regularizer="l2")(Twice()(x)), "bn")
    return trained(Functional(x, L.Activation(halved)(y)))


def ours():
    """This package's own layer, plain and with an activation in it."""
    from batchnorm.keras import BatchNormalization

    layers = [keras.Input((8, 8, 3)), L.Conv2D(4, 3, name="c"), BatchNormalization(name="ours"), L.ReLU()]
    return trained(
        keras.Sequential([*layers, L.Conv2D(4, 3, name="d"), BatchNormalization(name="acts", activation="relu")])
    )


def several_axes(axis, folder):
    """A live layer holds a tuple of axes, a file a list; two axes are one channel for each pair of places."""
    from batchnorm.keras import BatchNormalization

    model = keras.Sequential([keras.Input((6, 5, 3)), L.Conv2D(4, 1, name="c"), BatchNormalization(axis=axis)])
    model.layers[-1].moving_mean.assign(np.random.default_rng(0).normal(size=model.layers[-1].moving_mean.shape))
    model.save(folder / "axes.keras")
    live, file = (bn.load(each).layers[0] for each in (model, str(folder / "axes.keras")))
    assert live.moving_mean.tolist() == file.moving_mean.tolist()
    assert bn.check(model, np.ones((20, 6, 5, 3), "f4")).data.samples == 20
    return {**outcome(bn.fold(model)), "axes": [live.axis, file.axis]}


def masking():
    """Keras writes a mask among the arguments of the call."""
    x = keras.Input((6, 3))
    return trained(keras.Model(x, norm(L.Dense(4, name="d")(L.Masking()(x)), "bn")))


def unnamed():
    """Two inputs whose names are those of their layers only once the model was saved."""
    given = [keras.Input((3,)), keras.Input((3,))]
    return trained(keras.Model(given, norm(L.Dense(4, name="d")(L.Add()(given)), "bn")))


def keyed():
    """A model made of a dict whose keys are not the names of the tensors."""
    given = {"p": keras.Input((3,), name="a"), "q": keras.Input((3,), name="b")}
    return trained(keras.Model(given, norm(L.Dense(4, name="d")(L.Add()(list(given.values()))), "bn")))


def without_input():
    """Its input has the length of the first batch, 16."""
    model = keras.Sequential([L.Conv2D(4, 3, name="c"), L.BatchNormalization(name="bn"), L.ReLU()])
    model(np.zeros((16, 8, 8, 3), "f4"))
    return trained(model)


def fed_by_itself():
    """A nested model that gets what it gave: Keras counts its calls from 0, and from 1 in the list of outputs."""
    inside = keras.Input((4,))
    body = keras.Model(inside, norm(L.Dense(4, name="d")(inside), "bn"), name="body")
    x = keras.Input((4,))
    return trained(keras.Model(x, body(body(x))))


def mixed(policy):
    keras.config.set_dtype_policy(policy)
    try:
        x = keras.Input((8, 8, 3))
        y = norm(L.Conv2D(4, 3, name="d")(L.ReLU()(norm(L.Conv2D(4, 3, name="c")(x), "one"))), "two")
        model = keras.Model(x, L.Dense(3, dtype="float32")(L.GlobalAveragePooling2D(dtype="float32")(y)))
    finally:
        keras.config.set_dtype_policy("float32")
    return trained(model)


def quantised():
    model = sequential()
    model.quantize("int8")
    return model


def odd(found):
    """Networks on which folding once failed; with and without data where its batches could matter."""
    models = {"masking": masking(), "unnamed": unnamed(), "keyed": keyed(), "without_input": without_input()}
    models |= {"fed_by_itself": fed_by_itself(), "quantised": quantised()}
    models |= {policy: mixed(policy) for policy in ("mixed_float16", "mixed_bfloat16")}
    found["odd"] = {name: outcome(bn.fold(model)) for name, model in models.items()}
    x = np.random.default_rng(0).normal(size=(10, 8, 8, 3)).astype("f4")
    found["odd"]["batch"] = outcome(bn.fold(models["without_input"], data=x))
    found["samples"] = bn.recalibrate(models["without_input"], x, batch_size=4).samples


def freezing(folder, found):
    model = nested()
    model.compile("adam", "mse")
    model.save(folder / "n.keras")
    one = bn.freeze(folder / "n.keras", folder / "frozen.keras")
    found["frozen"] = json.loads(one.to_json())
    loaded = keras.saving.load_model(folder / "frozen.keras", compile=False)
    norms = [layer for layer in loaded._flatten_layers() if isinstance(layer, L.BatchNormalization)]
    found["trainable"] = [layer.trainable for layer in norms]
    found["thawed"] = json.loads(bn.unfreeze(folder / "frozen.keras", folder / "thawed.keras").to_json())
    found["same"] = (folder / "thawed.keras").read_bytes() == (folder / "n.keras").read_bytes()
    found["again"] = json.loads(bn.freeze(folder / "frozen.keras", folder / "none.keras").to_json())
    found["none"] = (folder / "none.keras").exists()
    live = sequential()
    found["live"] = json.loads(bn.freeze(live).to_json())
    before = [keras.ops.convert_to_numpy(each) for each in live.variables]
    live(np.random.default_rng(0).normal(size=(8, 6)), training=True)
    found["kept"] = all(
        np.array_equal(a, keras.ops.convert_to_numpy(b)) for a, b in zip(before, live.variables, strict=True)
    )
    found["live_again"] = json.loads(bn.unfreeze(live).to_json())
    inner = keras.Sequential([keras.Input((4,)), L.BatchNormalization(name="b")], name="base")
    outer = keras.Sequential([keras.Input((4,)), inner, L.Dense(2)])
    inner.trainable = False
    outer.save(folder / "o.keras")
    found["inside"] = json.loads(bn.unfreeze(folder / "o.keras", folder / "p.keras").to_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
