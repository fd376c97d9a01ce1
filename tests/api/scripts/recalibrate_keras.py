"""Recalibration of live Keras models and of files, in a process of its own: ``python recalibrate_keras.py FOLDER``."""

import json
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

import batchnorm as bn
from batchnorm.models.marker import ATTRIBUTE, KEY

sys.path.insert(0, "")  # the repository's root
import tests.api.padded as padded_net

FOLDER = Path(sys.argv[1])
EXACT = 1e-5  # standard deviations
L = keras.layers


def data(shape, count=50, seed=0, mean=3.0):
    rng = np.random.default_rng(seed)
    drift = np.linspace(-2, 2, count).reshape(-1, *[1] * len(shape))
    return (rng.normal(mean, 1, (count, *shape)) + drift).astype("float32")


def network():
    """A shared layer, two branches, dropout that a call bakes in, a frozen layer, a nested model."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = L.BatchNormalization(name="first")(L.Conv2D(4, 3, padding="same", name="c1")(inputs))
    left = L.BatchNormalization(name="left")(L.Conv2D(4, 3, padding="same", name="c2")(x))
    right = L.BatchNormalization(name="right", axis=-1)(L.Conv2D(4, 1, name="c3")(x))
    shared = L.BatchNormalization(name="shared")
    x = L.Add()([shared(L.ReLU()(left)), shared(right)])
    x = L.Dropout(0.5, name="noise")(x, training=True)
    x = L.BatchNormalization(name="frozen", trainable=False)(x)
    nested = keras.Sequential([L.Input((8, 8, 4)), L.Conv2D(4, 3), L.BatchNormalization(name="inner")], name="nested")
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(nested(x))))


def captured(model, name, x):
    _, calls = bn.load(model).run(x, capture=[name])
    return np.concatenate([call.reshape(-1, call.shape[-1]) for call, _ in calls[name]]).astype("float64")


def layer(model, name):
    for part in name.split("/"):
        model = model.get_layer(part)
    return model


def check(model, name, x):
    wanted, held = captured(model, name, x), layer(model, name)
    mean, variance = (keras.ops.convert_to_numpy(each) for each in (held.moving_mean, held.moving_variance))
    sd = wanted.std(0)
    assert np.max(np.abs(mean - wanted.mean(0)) / sd) < EXACT, name
    assert np.max(np.abs(np.sqrt(variance) / sd - 1)) < EXACT, name


def live():
    model, x = network(), data((8, 8, 3))
    noise = layer(model, "noise")
    own = {id(each): set(vars(each)) for each in model._flatten_layers()}
    before = keras.ops.convert_to_numpy(layer(model, "frozen").moving_mean)
    found = bn.recalibrate(model, x, method="sequential", batch_size=16)
    assert {each.name: each.skipped for each in found.layers} == {
        "first": None, "left": None, "right": None, "shared": None, "frozen": "frozen", "nested/inner": None,
    }  # fmt: skip
    assert found.passes == 4, found.passes  # first; left and right; shared; inner
    assert {each.name: each.count for each in found.layers}["shared"] == 2 * 50 * 64
    for name in ("first", "left", "right", "shared"):
        check(model, name, x)
    np.testing.assert_array_equal(before, keras.ops.convert_to_numpy(layer(model, "frozen").moving_mean))
    left = {id(each): set(vars(each)) - {ATTRIBUTE} for each in model._flatten_layers()}
    assert left == own  # nothing of the runs stays on a layer, but the mark
    twice = [np.asarray(bn.recalibrate(model, x, method="sequential").layers[-1].after.mean) for _ in range(2)]
    np.testing.assert_array_equal(*twice)  # no dropout
    assert noise.call.__self__ is noise


def one_pass_is_training_mode():
    """Layers alone in a chain: Keras' own training call shows the batch statistics through momentum 0."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [L.Input((5,)), L.BatchNormalization(momentum=0.0, name="a"), L.Dense(4), L.BatchNormalization(momentum=0.0)]
    )
    x = data((5,), 30)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    parts = []
    for start in (0, 10, 20):
        twin(x[start : start + 10], training=True)
        last = twin.layers[-1]
        parts.append((10, *(keras.ops.convert_to_numpy(v) for v in (last.moving_mean, last.moving_variance))))
    whole = parts[0]
    for part in parts[1:]:
        whole = bn.merge_moments(*whole, *part)
    found = bn.recalibrate(model, x, batch_size=10)
    np.testing.assert_allclose(found.layers[1].after.mean, whole[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.layers[1].after.variance, whole[2], rtol=1e-4)


def errors_change_nothing():
    model = network()
    for bad in (np.zeros((4, 7, 8, 3), "f"), [], None):
        with bn.testing.assert_unchanged(model):
            try:
                bn.recalibrate(model, bad)
            except bn.ArgumentError:
                continue
            raise AssertionError(bad)


def masked():
    inputs = keras.Input((6, 3))
    x = L.Masking(-9.0)(inputs)
    model = keras.Model(inputs, L.BatchNormalization(name="norm")(x))
    x = data((6, 3))
    x[:, 4:] = -9.0
    bn.recalibrate(model, x, method="sequential", batch_size=8)
    counted = x[:, :4].reshape(-1, 3).astype("float64")
    held = layer(model, "norm")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(held.moving_mean), counted.mean(0), rtol=1e-5)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(held.moving_variance), counted.var(0), rtol=1e-5)


def padded():
    """Padding that the data tell of, live and from a file; masks that the model makes or takes itself stay its own."""
    held = padded_net.weights()
    inputs = keras.Input((padded_net.POSITIONS, padded_net.FEATURES), name="sequence")
    x = inputs
    for number in (1, 2):
        dense = L.Dense(padded_net.WIDTH, name=f"dense{number}")
        x = L.BatchNormalization(name=f"bn{number}")(dense(x))
        x = L.ReLU()(x) if number == 1 else x
    model = keras.Model(inputs, L.BatchNormalization(name="top")(L.GlobalAveragePooling1D()(x)))
    for number in (1, 2):
        model.get_layer(f"dense{number}").set_weights([held[f"kernel{number}"], held[f"bias{number}"]])
    model.save(FOLDER / "padded.keras")
    whole = {"sequence": padded_net.sequences(), "lengths": padded_net.LENGTHS}
    for method in ("one-pass", "sequential"):
        found = bn.recalibrate(FOLDER / "padded.keras", whole, method=method, batch_size=4)
        padded_net.assert_by_hand(found, method, 4)
        assert any("input of top, where all is counted" in note for note in found.notes)
    found = bn.recalibrate(model, {"x": whole["sequence"], "mask": padded_net.MASK}, method=method, batch_size=4)
    padded_net.assert_by_hand(found, method, 4)
    stored = keras.ops.convert_to_numpy(model.get_layer("bn2").moving_mean)
    np.testing.assert_array_equal(stored, {each.name: each for each in found.layers}["bn2"].after.mean.astype("f4"))


def named_inputs():
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    model = keras.Model([left, right], L.BatchNormalization()(L.Concatenate()([left, right])))
    x = {"left": data((3,)), "right": data((3,), seed=1)}
    found = bn.recalibrate(model, x, method="sequential")
    wanted = np.concatenate([x["left"], x["right"]], 1).astype("float64").mean(0)
    np.testing.assert_allclose(found.layers[0].after.mean, wanted, rtol=1e-6)


def where_bytes_differ(a, b):
    assert len(a) == len(b)
    return np.flatnonzero(np.frombuffer(a, "u1") != np.frombuffer(b, "u1"))


def contents(path):
    """Every attribute and every array of an HDF5 file."""
    found = {}

    def take(name, item):
        found.update({(name, key): np.asarray(value).tolist() for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            found[name, None] = item[()].tobytes()

    with h5py.File(path) as file:
        take("", file)
        file.visititems(take)
    return found


def files():
    model, x = network(), data((8, 8, 3))
    for suffix in (".keras", ".h5"):
        source, target = FOLDER / f"model{suffix}", FOLDER / f"out{suffix}"
        model.save(source)
        with bn.testing.assert_unchanged(source):
            found = bn.recalibrate(source, x, method="sequential", out=target)
        again = keras.saving.load_model(target, compile=False)
        for name in ("first", "left", "shared"):
            check(again, name, x)
        numbers = 2 * 5 * 4  # layers, channels; the frozen one is left
        if suffix == ".keras":
            with zipfile.ZipFile(source) as old, zipfile.ZipFile(target) as new:
                assert old.namelist() == new.namelist()
                for name in old.namelist():
                    if name == "metadata.json":  # holds the mark
                        told = json.loads(new.read(name))
                        assert told.pop(KEY)
                        assert told == json.loads(old.read(name))
                        continue
                    changed = where_bytes_differ(old.read(name), new.read(name))
                    assert len(changed) <= 4 * numbers, name
                    assert name == "model.weights.h5" or not len(changed), name
        else:
            before, after = contents(source), contents(target)
            assert after.pop(("", KEY))
            assert before.keys() == after.keys()
            changed = {key for key in before if before[key] != after[key]}
            names = {key[0].rsplit("/", 1)[-1].removesuffix(":0") for key in changed}
            assert names == {"moving_mean", "moving_variance"}
            assert len(changed) == numbers // 4
        assert found.output == str(target)
        written = {each.name: each for each in bn.load(target).layers}
        for each in found.layers:
            np.testing.assert_array_equal(written[each.name].moving_mean, each.after.mean.astype("float32"))
    weights = FOLDER / "model.weights.h5"
    model.save_weights(weights)
    read = bn.load(weights)
    name, channels = read.layers[0].name, read.layers[0].channels
    read.with_statistics({name: (np.full(channels, 7.0), np.full(channels, 8.0))}).save(FOLDER / "new.weights.h5")
    record = bn.load(FOLDER / "new.weights.h5").layers[0]
    assert set(record.moving_mean) == {7.0}
    assert set(record.moving_variance) == {8.0}
    assert len(where_bytes_differ(weights.read_bytes(), (FOLDER / "new.weights.h5").read_bytes())) <= 8 * channels


def ours():
    """This package's debiased layer, live and in a file."""
    from batchnorm.keras import BatchNormalization

    model = keras.Sequential([L.Input((3,)), BatchNormalization(statistics="debiased", name="norm")])
    model(data((3,)), training=True)
    model.save(FOLDER / "debiased.keras")
    x = data((3,), seed=2)
    bn.recalibrate(FOLDER / "debiased.keras", x, out=FOLDER / "debiased_out.keras")
    bn.recalibrate(model, x)
    y = model.predict(x, verbose=0)
    assert np.max(np.abs(y.mean(0))) < 1e-5
    np.testing.assert_allclose(
        keras.saving.load_model(FOLDER / "debiased_out.keras").predict(x, verbose=0), y, atol=1e-6
    )


CASES = (live, one_pass_is_training_mode, errors_change_nothing, masked, padded, named_inputs, files, ours)

if __name__ == "__main__":
    for case in CASES if len(sys.argv) < 3 else [globals()[name] for name in sys.argv[2:]]:
        case()
        print(case.__name__)
