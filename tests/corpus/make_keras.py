"""Write the Keras files of the corpus: ``KERAS_BACKEND=jax python tests/corpus/make_keras.py``; two minutes."""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
sys.path.insert(0, str(Path(__file__).parents[2]))

import keras
import numpy as np
from keras import layers

from tests.corpus.keras_networks import IMAGES, LABELS, TABLE, Net, build, data, fit, set_arrays, trained
from tests.corpus.manifest import FILES, Entry, write

ENTRIES = []
DIGITS = {"data": "digits"}
ZEROS = {"gamma_initializer": "zeros"}


def keep(model, name, what, rule=None, layer=None, level=None, *, ending=".keras", run=None):
    """Save the model, and note what it is."""
    file = f"{name}{ending}"
    target = FILES / file
    if ending == ".weights.h5":
        model.save_weights(target)
    else:
        model.save(target)
    ENTRIES.append(Entry(file, model.name, "keras", what, rule, layer, level, run or {}))


def again(model, **settings):
    """The same weights in a network with other settings, as an edited configuration gives it; the counter is lost."""
    other = build(model.name, **settings)
    other.set_weights(model.get_weights())
    return other


def sound():
    bases = {
        "resnet": trained("resnet", epsilon=1.001e-5),
        "mobile": trained("mobile", momentum=0.99, steps=700),
        "vgg": trained("vgg"),
        "dense": trained("dense"),
        "conv1d": trained("conv1d"),
        "mlp": trained("mlp"),
    }
    for arch, model in bases.items():
        how = {"data": arch if arch in ("conv1d", "mlp") else "digits"}
        keep(model, f"ok_{arch}", "as trained", run=how | {"labels": True})
        if arch in ("resnet", "vgg", "mlp"):
            keep(model, f"ok_{arch}", "legacy HDF5", ending=".h5")
        if arch in ("dense", "mobile", "conv1d"):
            keep(model, f"ok_{arch}", "weights alone", ending=".weights.h5")
    odd = {
        "zero_gamma": (
            "resnet",
            {"only": {"bn3": ZEROS, "bn5": ZEROS}, "steps": 300},
            "zero-initialised gamma, then trained",
        ),
        "no_center": ("vgg", {"center": False}, "beta off"),
        "no_scale": ("mlp", {"scale": False}, "gamma off"),
        "neither": ("conv1d", {"center": False, "scale": False}, "gamma and beta off"),
        "large_rate": ("dense", {"rate": 0.3}, "trained at a large rate"),
        "momentum_0": ("vgg", {"momentum": 0.0}, "momentum 0 takes the last batch"),
        "momentum_half": ("mlp", {"momentum": 0.5}, "momentum .5 is the same in both conventions"),
        "epsilon_1e6": ("dense", {"epsilon": 1e-6}, "epsilon 1e-6"),
        "tiny_variances": (
            "vgg",
            {"epsilon": 1e-9, "change": lambda x: x * 1e-3},
            "tiny variances under a tinier epsilon",
        ),
        "float64": ("mlp", {"dtype": "float64"}, "layers in float64"),
        "momentum_999": ("mlp", {"momentum": 0.995, "steps": 2000}, "momentum .995, trained long"),
    }
    for name, (arch, settings, what) in odd.items():
        model = trained(arch, **settings)
        run = {"data": arch if arch in ("conv1d", "mlp") else "digits"}
        keep(model, f"ok_{name}", what, run={} if name in ("tiny_variances", "momentum_0") else run)
    return bases


def more_sound(bases):
    model = bases["vgg"]
    frozen = again(model, only={f"bn{n}": {"trainable": False} for n in (1, 2, 3)})
    keep(frozen, "ok_frozen", "frozen after training", run=DIGITS)
    keep(again(bases["resnet"], epsilon=1.001e-5), "ok_new_optimizer", "weights loaded into a new model", run=DIGITS)
    first = fit(again(model), "vgg", steps=20, rate=0.01)
    keep(first, "ok_fine_tuned", "fine-tuned for 20 steps: the counter is of those alone", run=DIGITS)
    model = again(model)
    body = keras.Model(model.inputs, model.layers[-2].output, name="body")
    body.trainable = False
    inputs = keras.Input((8, 8, 1))
    x = layers.Dense(16, use_bias=False)(body(inputs))
    x = layers.ReLU()(layers.BatchNormalization(name="head_bn", momentum=0.9)(x))
    nested = keras.Model(inputs, layers.Dense(10)(x), name="vgg")
    keep(fit(nested, "vgg", steps=150), "ok_frozen_base", "a frozen base under a live head", run=DIGITS)
    mixed = keras.Sequential(
        [
            layers.Input((64,)),
            layers.Dense(24, use_bias=False),
            layers.BatchNormalization(momentum=0.9, dtype="mixed_float16"),
            layers.ReLU(),
            layers.Dense(10),
        ],
        name="mlp",
    )
    keep(fit(mixed, "mlp"), "ok_mixed", "mixed precision: statistics in float32", run={"data": "mlp"})
    timed = keras.Sequential(
        [
            layers.Input((8, 8)),
            layers.TimeDistributed(layers.Dense(8, use_bias=False)),
            layers.TimeDistributed(layers.BatchNormalization(momentum=0.9)),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10),
        ],
        name="conv1d",
    )
    keep(
        fit(timed, "conv1d", steps=60),
        "ok_time_distributed",
        "in a wrapper that updates once a time step",
        run={"data": "conv1d"},
    )
    fresh = build("dense")
    keep(fresh, "ok_untrained", "not trained yet")
    keep(trained("mlp", dropout=None), "ok_dropout_none", "as trained, once more", run={"data": "mlp"})
    behind = keras.Sequential(
        [
            layers.Input((64,)),
            layers.Dense(24, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Dropout(0.3),
            layers.Dense(10),
        ],
        name="mlp",
    )
    keep(fit(behind, "mlp"), "ok_dropout_behind", "dropout behind the last layer", run={"data": "mlp"})
    dead = trained("vgg")
    kernel = dead.layers[1].get_weights()[0]
    kernel[..., 2] = 0
    dead.layers[1].set_weights([kernel])
    keep(fit(dead, "vgg", steps=300, rate=0.0), "ok_dead_unit", "one unit without weights")


def spoiled_numbers(bases):
    def spoil(arch, layer, rule, name, what, *, ending=".keras", level=None, **arrays):
        model = set_arrays(fit_copy(bases[arch]), layer, **arrays)
        keep(model, f"{rule}_{name}", what, rule, layer, level, ending=ending)

    def at(channel, value):
        def change(old):
            old[channel] = value
            return old

        return change

    spoil("resnet", "bn4", "BN101", "beta", "a NaN in beta", beta=at(3, np.nan))
    spoil("mlp", "bn2", "BN101", "variance", "one infinite variance", ending=".h5", moving_variance=at(0, np.inf))
    spoil(
        "mobile",
        "bn3",
        "BN102",
        "mobile",
        "a variance a little below 0",
        ending=".weights.h5",
        moving_variance=at(1, -1e-4),
    )
    spoil("dense", "bn2", "BN102", "dense", "a variance of -3", moving_variance=at(5, -3.0))
    spoil(
        "vgg",
        "bn2",
        "BN104",
        "vgg",
        "gamma of half the channels pruned away",
        level="warning",
        gamma=lambda g: g * (np.arange(8) % 2),
    )
    spoil("conv1d", "bn1", "BN104", "conv1d", "gamma next to nothing in all channels", level="warning", gamma=1e-8)
    spoil("dense", "bn3", "BN105", "dense", "one gamma of 300", gamma=at(2, 300.0))
    spoil("mlp", "bn1", "BN105", "mlp", "one variance collapsed", gamma=at(4, 500.0))
    spoil("resnet", "bn3", "BN106", "resnet", "statistics reset in one layer", moving_mean=0.0, moving_variance=1.0)
    spoil(
        "mobile",
        "bn5",
        "BN106",
        "mobile",
        "statistics reset, weights alone saved",
        ending=".weights.h5",
        moving_mean=0.0,
        moving_variance=1.0,
    )
    spoil("vgg", "bn1", "BN110", "vgg", "a channel that never varied", moving_variance=at(3, 1e-15))
    spoil("resnet", "bn2", "BN110", "resnet", "another", moving_variance=at(0, 0.0), moving_mean=at(0, 2.0))
    for arch, layer, ending in (("vgg", "bn2", ".keras"), ("mobile", "bn2", ".h5"), ("conv1d", "bn2", ".weights.h5")):
        model = fit_copy(bases[arch])
        mean, variance = (
            np.array(getattr(model.get_layer(layer), name)) for name in ("moving_mean", "moving_variance")
        )
        set_arrays(model, layer, moving_mean=variance, moving_variance=mean)
        keep(model, f"BN207_{arch}", "mean and variance exchanged", "BN207", layer, ending=ending)


def fit_copy(model):
    """A copy with the optimizer's counter."""
    path = FILES / "copy.keras"
    model.save(path)
    copy = keras.saving.load_model(path)
    path.unlink()
    return copy


def settings(bases):
    for arch, layer, momentum in (("vgg", "bn2", 0.1), ("mlp", "bn1", 0.01), ("resnet", "bn5", 0.1)):
        model = again(
            bases[arch], only={layer: {"momentum": momentum}}, **({"epsilon": 1.001e-5} if arch == "resnet" else {})
        )
        keep(model, f"BN202_{arch}", f"momentum {momentum} in one layer", "BN202", layer)
    keep(
        again(bases["vgg"], only={"bn3": {"epsilon": 0.5}}),
        "BN206_vgg",
        "epsilon .5 in one layer",
        "BN206",
        "bn3",
        "warning",
    )
    keep(
        again(bases["dense"], only={"bn2": {"epsilon": 1e-5}}),
        "BN206_dense",
        "one epsilon is another",
        "BN206",
        "bn2",
        "note",
    )
    for arch in ("vgg", "resnet", "mobile"):
        only = {"bn2": {"axis": 1}}
        keep(trained(arch, only=only), f"BN203_{arch}", "axis 1 in a channels-last network, trained so", "BN203", "bn2")
    for arch, layer in (("vgg", "bn1"), ("mlp", "bn2"), ("dense", "bn4")):
        model = again(bases[arch], only={layer: {"call": {"training": True}}})
        keep(model, f"BN204_{arch}", "training=True in one call", "BN204", layer)
    for arch, layer in (("vgg", "bn2"), ("resnet", "bn4"), ("conv1d", "bn1")):
        model = trained(arch, only={layer: {"trainable": False}})
        keep(model, f"BN208_{arch}", "frozen before the training", "BN208", layer)
    for arch in ("vgg", "mlp"):
        keep(trained(arch, bias=True), f"BN301_{arch}", "biases before", "BN301", "bn2")
    for arch, layer in (("mlp", "bn2"), ("vgg", "bn3"), ("conv1d", "bn2")):
        keep(trained(arch, dropout=layer), f"BN302_{arch}", "dropout before the weights", "BN302", layer)
    keep(bases["dense"], "BN201_dense", "weights alone", "BN201", None, "note", ending=".weights.h5")
    half = again(bases["mlp"], dtype="float16")
    set_arrays(half, "bn1", moving_variance=lambda v: (v.astype(np.float32) * 1e-9).astype(v.dtype))
    keep(half, "BN108_mlp", "variances that float16 rounds to 0", "BN108", "bn1", "error")


def histories():
    keep(trained("resnet", momentum=0.99, steps=28, rate=0.05), "BN107_resnet", "28 steps at .99", "BN107", "bn3")
    keep(trained("mlp", momentum=0.99, steps=150), "BN107_mlp", "150 steps at .99: mild", "BN107", "bn2", ending=".h5")
    keep(trained("conv1d", momentum=0.999, steps=600), "BN107_conv1d", "600 steps at .999", "BN107", "bn2")
    for arch, factor in (("vgg", 1 / 255), ("mobile", 1 / 255), ("conv1d", 1 / 100)):
        model = trained(arch, change=lambda x, factor=factor: x * factor)
        keep(model, f"BN103_{arch}", "input scaled twice", "BN103", "bn1", "warning")
    for arch, layer in (("mlp", "bn1"), ("conv1d", "bn1")):
        model = trained_shifted(arch)
        keep(model, f"BN109_{arch}", "an input far from 0", "BN109", layer)


def trained_shifted(arch):
    """The first layer normalises the raw input, which lies at 3000."""
    inputs = keras.Input(data(arch).shape[1:])
    net = Net()
    x = net.bn(inputs)
    model = keras.Model(inputs, layers.Dense(10)(getattr(net, arch)(x)), name=arch)
    return fit(model, arch, change=lambda x: x + 3000)


def shapes():
    inputs = keras.Input((64,))
    for name, scale in (("alike", 1.0), ("unlike", 5.0)):
        shared = layers.BatchNormalization(name="shared", momentum=0.9)
        a = layers.Dense(16, use_bias=False)(inputs)
        b = layers.Dense(16, use_bias=False)(layers.Rescaling(scale, 2.0 * (scale > 1))(inputs))
        x = layers.ReLU()(layers.concatenate([shared(a), shared(b)]))
        model = fit(keras.Model(inputs, layers.Dense(10)(x), name="mlp"), "mlp", rate=0.05)
        keep(
            model,
            f"BN303_{name}",
            f"one layer on two inputs, {name}",
            "BN303",
            "shared",
            "note" if name == "alike" else None,
            run={"data": "mlp", "ignore": ["BN401"]} if name == "unlike" else {},
        )
    images = keras.Input((8, 8, 1))
    shared = layers.BatchNormalization(name="shared", momentum=0.9)
    x = layers.ReLU()(shared(layers.Conv2D(8, 3, use_bias=False, padding="same")(images)))
    x = layers.ReLU()(shared(layers.Conv2D(8, 3, use_bias=False, padding="same")(x)))
    model = keras.Model(images, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)), name="vgg")
    keep(fit(model, "vgg", rate=0.05), "BN303_conv", "one layer twice in a row", "BN303", "shared")
    for arch in ("mlp", "conv1d", "vgg"):
        start = keras.Input(data(arch).shape[1:])
        net = Net()
        x = getattr(net, arch)(start)
        if arch == "conv1d":
            x = layers.Flatten()(net.bn(net.bn(layers.Reshape((8, 16))(x))))
        else:
            x = net.bn(layers.Rescaling(2.0, 1.0)(net.bn(x)))
        model = fit(keras.Model(start, layers.Dense(10)(x), name=arch), arch)
        keep(model, f"BN304_{arch}", "two in a row", "BN304", f"bn{net.count}", "note")


def with_data(bases):
    def short(arch, steps, momentum):
        model = trained(arch, momentum=momentum, steps=steps)
        return again(model, momentum=momentum)  # the counter is lost, so that the file alone tells nothing

    for arch, steps, momentum in (("resnet", 60, 0.99), ("mlp", 100, 0.99), ("mobile", 30, 0.97)):
        run = {"data": arch if arch in ("conv1d", "mlp") else "digits", "labels": True}
        keep(
            short(arch, steps, momentum),
            f"BN401_{arch}",
            f"{steps} steps at {momentum}, counter lost",
            "BN401",
            "bn1",
            run=run,
        )
    for arch, change in (("vgg", "times255"), ("mlp", "times127"), ("conv1d", "times255")):
        run = {"data": arch if arch in ("conv1d", "mlp") else "digits", "change": change}
        keep(bases[arch], f"BN403_{arch}", f"fed {change}", "BN403", "bn1", run=run)
    for arch in ("mlp", "dense", "conv1d"):
        run = {"data": arch if arch in ("conv1d", "mlp") else "digits", "batch": 2 if arch != "dense" else 1}
        keep(bases[arch], f"BN405_{arch}", "batches of 2, or of 1", "BN405", None, run=run)
    dead = set_arrays(fit_copy(bases["vgg"]), "bn2", beta=lambda b: b - 50 * (np.arange(8) == 3))
    keep(dead, "BN404_vgg", "a channel that the activation always cuts off", "BN404", "bn2", run=DIGITS)
    dead = set_arrays(fit_copy(bases["mlp"]), "bn1", beta=lambda b: b - 50 * (np.arange(24) < 3))
    keep(dead, "BN404_mlp", "three such channels", "BN404", "bn1", run={"data": "mlp"})


def padded():
    """Sequences of digits cut off at another row each, zeros after: padding that no mask tells the layer of."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 8, len(TABLE))
    x = (IMAGES[..., 0] + 0.5) * (np.arange(8) < lengths[:, None])[..., None]
    np.save(FILES / "padded.npy", x[:400].astype("float16"))
    for units, ending in ((8, ".keras"), (16, ".keras"), (24, ".h5")):
        inputs = keras.Input((8, 8))
        h = layers.BatchNormalization(name="bn1", momentum=0.9)(inputs)
        h = layers.ReLU()(layers.Conv1D(units, 1)(h))
        model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(h)), name="conv1d")
        keep(
            fit(model, "conv1d", change=lambda _: x.astype("float32")),
            f"BN406_{units}",
            "trained on padded sequences",
            "BN406",
            "bn1",
            ending=ending,
            run={"data": "padded"},
        )


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    FILES.mkdir(exist_ok=True)
    networks = sound()
    more_sound(networks)
    spoiled_numbers(networks)
    settings(networks)
    histories()
    shapes()
    with_data(networks)
    padded()
    write("keras", ENTRIES)
    print(len(ENTRIES), "files", len(LABELS))
