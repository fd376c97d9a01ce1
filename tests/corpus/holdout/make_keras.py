"""Write the Keras, SavedModel and LiteRT files of the second part: ``python tests/corpus/holdout/make_keras.py``."""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[3]))

import keras
from keras import layers

from tests.corpus.holdout import keras_networks as nets
from tests.corpus.holdout.keras_faults import configured, fed, ported, trained_badly
from tests.corpus.holdout.keras_files import ENTRIES, FILES, copied, fresh, keep, put, with_arrays
from tests.corpus.holdout.keras_networks import KNOWN, LABELS, bn, fit, head
from tests.corpus.manifest import write


def sound():
    made = {
        "efficient": fit(nets.efficient(), "shapes", steps=150),
        "unet": fit(nets.unet(), "shapes"),
        "recurrent": fit(nets.recurrent(), "waves"),
        "mlp": fit(nets.mlp(), "wine_raw"),
        "densenet": fit(nets.densenet(epsilon=1.001e-5), "shapes"),
        "resnet": fit(nets.resnet(zero=True), "shapes", steps=200),
    }
    for arch, model in made.items():
        data = {"recurrent": "waves", "mlp": "wine_raw"}.get(arch, "shapes")
        keep(model, f"ok_{arch}", "as trained with Adam", run={"data": data})
    keep(made["unet"], "ok_unet_saved", "SavedModel of Keras 3", ending="")
    keep(made["recurrent"], "ok_recurrent_saved", "SavedModel with a GRU", ending="")
    keep(made["resnet"], "ok_resnet_lite", "LiteRT, folded", ending=".tflite")
    keep(made["densenet"], "ok_densenet_lite", "LiteRT: some cannot be folded", ending=".tflite")
    keep(made["efficient"], "ok_efficient", "legacy HDF5", ending=".h5")
    keep(made["mlp"], "ok_mlp", "weights alone", ending=".weights.h5")
    pairs = fit(nets.siamese(), "pairs", targets=LABELS["shapes"], steps=200, optimizer=falling(200))
    keep(pairs, "ok_siamese", "one trunk on two inputs of one kind", run={"data": "pairs"})
    target = KNOWN["shapes"]
    codes = fit(nets.generator(), "noise", targets=target)
    keep(codes, "ok_generator", "momentum .8, leaky activations", run={"data": "noise"})
    first = nets.resnet(channels_first=True)
    lagging = fit(first, "shapes_chw", steps=60)
    keep(lagging, "f_lagging", "60 steps at a large rate: .997 right in training mode, .70 in inference", ["BN401"],
         None, "warning", run={"data": "shapes_chw"})  # fmt: skip
    fit(
        first,
        "shapes_chw",
        steps=120,
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, 120)),
    )
    keep(fresh(first), "ok_channels_first", "channels first, axis 1", run={"data": "shapes_chw"})
    more_sound(made)
    return made | {"siamese": pairs, "generator": codes}


def more_sound(made):
    x = start = keras.Input((16, 3))
    x = layers.TimeDistributed(layers.Dense(8))(x)
    x = layers.TimeDistributed(layers.BatchNormalization(momentum=0.99), name="timed")(x)
    x = layers.Bidirectional(layers.GRU(6))(x)
    keep(fit(keras.Model(start, head(x, "")), "waves", steps=60), "ok_timed", "once a time step, 60 steps at .99")
    x = start = keras.Input((10, 10, 3))
    x = layers.Rescaling(2.0, -1.0)(x)
    x = bn("after_relu_bn", layers.Conv2D(8, 3, activation="relu")(x))
    x = bn("after_pool_bn", layers.Conv2D(8, 3, activation="relu")(layers.AveragePooling2D(2)(x)))
    x = head(layers.Flatten()(x), "")
    post = fit(keras.Model(start, x, name="post"), "shapes")
    keep(post, "ok_post_activation", "normalised behind the activation", run={"data": "shapes"})
    body = fresh(made["densenet"])
    cut = keras.Model(body.inputs, body.layers[-2].output, name="body")
    cut.trainable = False
    start = keras.Input((10, 10, 3))
    x = layers.Dense(8, use_bias=False)(cut(start, training=False))
    tuned = keras.Model(start, head(layers.ReLU()(bn("head_bn", x)), ""), name="tuned")
    keep(
        fit(tuned, "shapes", steps=80),
        "ok_transfer",
        "a frozen base called with training=False",
        run={"data": "shapes"},
    )
    short = fit(fresh(made["efficient"]), "shapes", steps=4, optimizer=keras.optimizers.SGD(1e-3))
    keep(short, "ok_short_tuning", "a pretrained network tuned for four steps", run={"data": "shapes"})
    for policy in ("mixed_float16", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        keep(fit(nets.unet(), "shapes"), f"ok_{policy}", f"trained under {policy}")
    keras.config.set_dtype_policy("float32")
    average = fit(nets.mlp(), "wine_raw", optimizer=keras.optimizers.Adam(3e-3, use_ema=True, ema_momentum=0.9))
    keep(average, "ok_averaged", "weights averaged by the optimizer", run={"data": "wine_raw"})
    gathered = fit(nets.unet(), "shapes", optimizer=keras.optimizers.Adam(3e-3, gradient_accumulation_steps=4))
    keep(gathered, "ok_gathered", "gradients of four batches gathered")
    pruned = with_arrays(copied(made["unet"]), "deep_bn", gamma=put([1, 5, 9], 0.0))
    keep(pruned, "ok_lightly_pruned", "3 of 16 channels pruned")
    reg = {"gamma_regularizer": keras.regularizers.L2(1e-2), "beta_constraint": keras.constraints.MaxNorm(1.0)}
    keep(fit(nets.mlp(**reg), "wine"), "ok_regularised", "gamma regularised, beta constrained", run={"data": "wine"})
    keep(
        fit(nets.densenet(momentum=0.95, epsilon=2e-5), "shapes", batch=16, steps=300),
        "ok_small_batches", "batches of 16", run={"data": "shapes"},
    )  # fmt: skip
    layered = keras.Sequential(
        [layers.Input((13,)), layers.Normalization(mean=KNOWN["wine_raw"].mean(0), variance=KNOWN["wine_raw"].var(0)),
         layers.Dense(16, use_bias=False), layers.BatchNormalization(momentum=0.9, name="bn"), layers.PReLU(),
         layers.Dropout(0.3), layers.Dense(3)], name="layered")  # fmt: skip
    keep(fit(layered, "wine_raw"), "ok_normalization", "fixed Normalization in front", run={"data": "wine_raw"})
    keep(nets.unet(), "ok_new", "built and never trained")
    scaled = keras.Sequential(
        [layers.Input((13,)), layers.Dense(8, use_bias=False), bn_layer("a", center=False), layers.ReLU(),
         layers.Dense(8, use_bias=False), bn_layer("b", scale=False, momentum=0.99), layers.Dense(3)],
         name="bare")  # fmt: skip
    keep(
        fit(scaled, "wine", steps=700, batch=32),
        "ok_bare",
        "center or scale off, .99 for 700 steps",
        run={"data": "wine"},
    )


def falling(steps):
    """A rate that falls to 0, so that the statistics catch up with the weights."""
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps))


def bn_layer(name, momentum=0.9, **how):
    return layers.BatchNormalization(name=name, momentum=momentum, **how)


if __name__ == "__main__":
    keras.utils.set_random_seed(1)
    FILES.mkdir(exist_ok=True, parents=True)
    networks = sound()
    configured(networks)
    trained_badly(networks)
    ported(networks)
    fed(networks)
    write("keras", ENTRIES, "holdout")
    print(len(ENTRIES), "entries")
