"""The faults of the second part in Keras."""

import keras
import numpy as np
from keras import layers

from tests.corpus.holdout import keras_networks as nets
from tests.corpus.holdout.keras_files import copied, edited, fresh, keep, put, with_arrays
from tests.corpus.holdout.keras_networks import KNOWN, LABELS, bn, fit, head


def configured(made):
    """Faults of settings, by the config a file carries."""
    edited(
        "ok_efficient.keras",
        "f_momentum_01",
        "b_dw_bn",
        "momentum 0.1 in one layer",
        ["BN202"],
        "warning",
        momentum=0.1,
    )
    edited(
        "ok_recurrent.keras",
        "f_momentum_001",
        "conv_bn",
        "momentum 0.01 in one layer",
        ["BN202"],
        "warning",
        momentum=0.01,
    )
    edited("ok_unet.keras", "f_epsilon_1", "up_bn", "epsilon 1 in one layer", ["BN206"], "warning", epsilon=1.0)
    edited(
        "ok_densenet.keras", "f_epsilon_mixed", "b1_bn", "one epsilon of 1e-3 among 1.001e-5", ["BN206"], epsilon=1e-3
    )
    keep(fit(nets.unet({"deep_bn": {"axis": 2}}), "shapes"), "f_axis_width", "normalises over the width",
         ["BN203"], "deep_bn", "error")  # fmt: skip
    keep(fit(nets.recurrent({"conv_bn": {"axis": 1}}), "waves"), "f_axis_time", "normalises over time behind Conv1D",
         ["BN203"], "conv_bn", "error")  # fmt: skip
    wrong = fit(nets.resnet(channels_first=True, axis=-1), "shapes_chw", steps=60)
    keep(wrong, "f_axis_first", "channels first, axis left at -1", ["BN203"], "a1_bn", "error")
    loud = fit(nets.generator(training=True), "noise", targets=KNOWN["shapes"])
    keep(loud, "f_generator", "a generator with training=True in its calls", ["BN204"], "up_bn", "error")
    keep(loud, "f_generator_saved", "the same as SavedModel", ["BN204", "BN205"], None, "warning", ending="")
    frozen = nets.resnet()
    for name in ("a1_bn", "a2_bn"):
        frozen.get_layer(name).trainable = False
    keep(
        fit(frozen, "shapes"), "f_frozen_fresh", "two layers frozen before any training", ["BN208"], "a1_bn", "warning"
    )
    base = nets.densenet()
    base = keras.Model(base.inputs, base.layers[-2].output, name="base")
    base.trainable = False
    start = keras.Input((10, 10, 3))
    x = layers.ReLU()(bn("head_bn", layers.Dense(8, use_bias=False)(base(start))))
    keep(fit(keras.Model(start, head(x, ""), name="tuned"), "shapes"), "f_frozen_base",
         "a base without weights, frozen", ["BN208"], None, "warning")  # fmt: skip
    keep(fit(nets.unet({"up_bn": {"momentum": 1.0}}), "shapes"), "f_momentum_one", "momentum 1: never updated",
         ["BN106", "BN208"], "up_bn", "warning")  # fmt: skip
    keep(
        fit(nets.unet(bias=True), "shapes"),
        "f_bias",
        "biases before, a transposed convolution's too",
        ["BN301"],
        "up_bn",
    )
    for name, noise in (("dropout", layers.Dropout(0.5)), ("gauss", layers.GaussianDropout(0.4))):
        model = fit(nets.recurrent(dropout=noise), "waves")
        keep(model, f"f_{name}", f"{name} before the weights", ["BN302"], "dense_bn")
    x = start = keras.Input((10, 10, 3))
    x = bn("one_bn", layers.Conv2D(8, 3, use_bias=False)(x))
    x = bn("two_bn", layers.Dropout(0.2)(layers.Activation("linear")(x)))
    twice = keras.Model(start, head(layers.GlobalAveragePooling2D()(layers.ReLU()(x)), ""), name="twice")
    keep(fit(twice, "shapes"), "f_twice", "normalised, nothing, dropped out, normalised", ["BN304"], "two_bn")
    inner = x = keras.Input((10, 10, 3))
    x = layers.ReLU()(bn("body_bn", layers.Conv2D(8, 3, use_bias=False)(x)))
    aside = bn("aside_bn", layers.Dense(4, use_bias=False)(layers.GlobalAveragePooling2D()(x)))
    inner = keras.Model(inner, [x, aside], name="inner")
    start = keras.Input((10, 10, 3))
    x = head(layers.GlobalAveragePooling2D()(inner(start)[0]), "")
    keep(fit(keras.Model(start, x, name="outer"), "shapes"), "f_unused", "an inner model's second output is not used",
         ["BN305"], "inner/aside_bn")  # fmt: skip


def trained_badly(made):
    """Faults that trainings leave in the numbers."""
    short = fit(nets.resnet(momentum=0.99), "shapes", steps=15)
    keep(short, "f_15_steps", "15 steps at .99 with Adam", ["BN107"], "b2_bn", "warning")
    keep(short, "f_15_steps", "the same as legacy HDF5", ["BN107"], "b2_bn", "warning", ending=".h5")
    keep(short, "f_15_steps", "the same, weights alone", ["BN107"], "b2_bn", "warning", ending=".weights.h5",
         beyond="the file holds neither the decay nor a counter")  # fmt: skip
    keep(fit(nets.efficient(momentum=0.999), "shapes", steps=150), "f_150_steps", "150 steps at .999", ["BN107"],
         "a_dw_bn", "warning")  # fmt: skip
    lost = fresh(
        fit(nets.unet({n: {"momentum": 0.99} for n in ("down_bn", "deep_bn", "up_bn", "out_bn")}), "shapes", steps=40)
    )
    keep(
        lost, "f_40_lost", "40 steps at .99, the counter lost", ["BN401"], "down_bn", "warning", run={"data": "shapes"}
    )
    keep(
        lost, "f_40_lost_saved", "the same as SavedModel", ["BN401"], None, "warning", ending="", run={"data": "shapes"}
    )
    blown = fit(nets.mlp(first=False), "wine_raw", steps=20, optimizer=keras.optimizers.SGD(1e30))
    keep(blown, "f_diverged", "diverged", ["BN101"], "bn_1", "error")
    keep(blown, "f_diverged_saved", "diverged, SavedModel", ["BN101"], None, "error", ending="")
    keep(blown, "f_diverged", "diverged, weights alone", ["BN101"], "bn_1", "error", ending=".weights.h5")
    keras.config.set_dtype_policy("float16")
    keras.config.set_epsilon(1e-3)
    hot = fit(nets.mlp(first=False), "wine_raw", steps=60, scale=8.0, optimizer=keras.optimizers.SGD(1e-3))
    keras.config.set_dtype_policy("float32")
    keras.config.set_epsilon(1e-7)
    keep(hot, "f_float16", "trained in float16 on numbers of 10000", ["BN108", "BN101"], "bn_1", "error")
    once = nets.mlp(first=False, momentum=0.0)
    fit(once, "wine", steps=30)
    once(KNOWN["wine"][:1], training=True)
    keep(
        once,
        "f_last_batch_of_one",
        "momentum 0 and a last batch of one",
        ["BN103", "BN105", "BN110"],
        "bn_1",
        "warning",
    )
    pulled = nets.mlp(gamma_regularizer=keras.regularizers.L2(30.0), only={})
    fit(pulled, "wine", steps=400, optimizer=keras.optimizers.SGD(0.01))
    keep(pulled, "f_gamma_decayed", "gamma decayed away", ["BN104"], "bn_1", "warning")
    x = start = keras.Input((10, 10, 3))
    x = layers.ReLU()(bn("stem_bn", layers.Conv2D(8, 3, padding="same", use_bias=False)(x)))
    y = bn("branch_bn", layers.Conv2D(8, 3, padding="same", use_bias=False)(x), gamma_initializer="zeros")
    y = layers.Rescaling(0.0)(y)
    x = layers.GlobalAveragePooling2D()(layers.add([x, y]))
    keep(fit(keras.Model(start, head(x, ""), name="resnet"), "shapes"), "f_zero_branch",
         "gamma began at 0 and never learned", ["BN104"], "branch_bn", "warning")  # fmt: skip
    keep(fit(nets.unet(), "shapes", scale=1 / 255), "f_scaled_twice", "trained on images divided by 255 twice",
         ["BN103"], "down_bn", "warning")  # fmt: skip
    moved = np.array(KNOWN["wine"])
    moved[:, 3] = moved[:, 3] * 3 + 1.7e9
    KNOWN["stamped"], LABELS["stamped"] = moved, LABELS["wine"]
    keep(
        fit(nets.mlp(), "stamped"),
        "f_timestamps",
        "a time in seconds among the columns",
        ["BN109", "BN110"],
        "input_bn",
    )
    kelvin = np.array(KNOWN["waves"]) * (0.05, 0.05, 0.05) + 295.0
    KNOWN["kelvin"], LABELS["kelvin"] = kelvin.astype("float32"), LABELS["waves"]
    keep(fit(nets.recurrent(before=True), "kelvin"), "f_kelvin", "temperatures of 295 K that move by .05",
         ["BN109"], "input_bn", "warning")  # fmt: skip


def ported(made):
    """Faults of weights carried from one place to another."""

    def exchanged(model, layer):
        at = model.get_layer(layer)
        mean, variance = np.array(at.moving_mean), np.array(at.moving_variance)
        return with_arrays(model, layer, moving_mean=variance, moving_variance=mean)

    keep(exchanged(copied(made["efficient"]), "a_project_bn"), "f_exchanged", "mean and variance exchanged",
         ["BN207"], "a_project_bn", "error", ending=".weights.h5")  # fmt: skip
    keep(exchanged(copied(made["unet"]), "deep_bn"), "f_exchanged_saved", "the same in a SavedModel",
         ["BN207"], None, "error", ending="")  # fmt: skip
    keep(exchanged(copied(made["densenet"]), "a0_bn"), "f_exchanged", "the same in LiteRT: not a number",
         ["BN101", "BN207", "BN102"], None, "error", ending=".tflite")  # fmt: skip
    less = with_arrays(copied(made["resnet"]), "a1_bn", moving_variance=lambda v: 2 * v - v.mean() * 1.1)
    keep(less, "f_extrapolated", "variances below 0", ["BN102"], "a1_bn", "error", ending=".h5")
    keep(less, "f_extrapolated_saved", "the same as SavedModel", ["BN102"], None, "error", ending="")
    keep(
        less,
        "f_extrapolated",
        "the same in LiteRT: not a number",
        ["BN101", "BN102"],
        None,
        "error",
        ending=".tflite",
        beyond="LiteRT has multiplied the scale into the convolution",
    )
    swapped = copied(made["mlp"])
    at = swapped.get_layer("bn_1")
    gamma, beta = np.array(at.gamma), np.array(at.beta)
    keep(with_arrays(swapped, "bn_1", gamma=beta, beta=gamma), "f_gamma_beta",
         "gamma and beta exchanged: the next layer shows it", ["BN401"], "bn_2", "warning",
         run={"data": "wine_raw"})  # fmt: skip
    spread = with_arrays(fresh(made["unet"]), "deep_bn", moving_variance=np.sqrt)
    keep(spread, "f_deviation", "the standard deviation where the variance goes", ["BN401"], "deep_bn", "warning",
         run={"data": "shapes"}, beyond="variances near 1: off by 13 %, as sound trainings are")  # fmt: skip
    inverse = with_arrays(fresh(made["recurrent"]), "conv_bn", moving_variance=lambda v: 1 / np.sqrt(v + 1e-3))
    keep(inverse, "f_inverse", "1/sqrt where the variance goes", ["BN401"], "conv_bn", "warning", run={"data": "waves"})
    caffe = fresh(made["resnet"])
    for layer in ("stem_bn", "a1_bn", "a2_bn", "b1_bn", "b2_bn"):
        with_arrays(caffe, layer, moving_mean=lambda v: v * 999, moving_variance=lambda v: v * 999)
    keep(
        caffe,
        "f_caffe",
        "Caffe's sums, not divided by their factor",
        ["BN401"],
        "stem_bn",
        "warning",
        run={"data": "shapes"},
    )
    other = fresh(made["resnet"])
    one, two = other.get_layer("a1_bn"), other.get_layer("b1_bn")
    held = [np.array(v) for v in (one.moving_mean, one.moving_variance, two.moving_mean, two.moving_variance)]
    with_arrays(other, "a1_bn", moving_mean=held[2], moving_variance=held[3])
    with_arrays(other, "b1_bn", moving_mean=held[0], moving_variance=held[1])
    keep(other, "f_crossed", "two layers' statistics exchanged", ["BN401"], "a1_bn", "warning", run={"data": "shapes"})
    keep(other, "f_crossed", "the same, weights alone", ["BN401"], "a1_bn", "warning", ending=".weights.h5",
         beyond="without data any statistics could be right")  # fmt: skip
    bare = with_arrays(copied(made["efficient"]), "b_expand_bn", moving_mean=0.0, moving_variance=1.0)
    keep(bare, "f_reset_saved", "one layer's statistics not loaded, SavedModel", ["BN106"], None, "error", ending="")
    keep(bare, "f_reset", "the same in legacy HDF5", ["BN106"], "b_expand_bn", "error", ending=".h5")
    slim = with_arrays(copied(made["densenet"]), "b1_bn", gamma=lambda g: g * (np.abs(g) > np.quantile(np.abs(g), 0.7)))
    keep(slim, "f_slimmed", "6 of 8 gammas pruned", ["BN104"], "b1_bn", "warning", ending=".weights.h5")
    keep(slim, "f_slimmed_saved", "the same as SavedModel", ["BN104"], None, "warning", ending="")
    zero = with_arrays(copied(made["unet"]), "up_bn", moving_variance=put([2], 0.0))
    keep(zero, "f_no_epsilon", "epsilon 0 and a variance of 0", ["BN206", "BN110"], "up_bn")
    edited(
        "f_no_epsilon.keras",
        "f_no_epsilon_at_all",
        "up_bn",
        "epsilon 0 and a variance of 0",
        ["BN206"],
        "warning",
        epsilon=0.0,
    )


def fed(made):
    """Faults of what a sound model is fed, and of how it was trained, which data show."""
    keep(made["mlp"], "f_fed_scaled", "trained on raw columns, fed standardised ones", ["BN403", "BN401"], "input_bn",
         "warning", run={"data": "wine"})  # fmt: skip
    keep(
        made["unet"],
        "f_fed_255",
        "fed 0..255",
        ["BN403"],
        "down_bn",
        "error",
        run={"data": "shapes", "change": "times255"},
    )
    keep(made["densenet"], "f_fed_bgr", "colours in the other order", ["BN403"], "a0_bn", "error",
         run={"data": "shapes", "change": "last_reversed"})  # fmt: skip
    keep(made["resnet"], "f_fed_imagenet", "fed with the mean subtracted and divided", ["BN403"], "stem_bn", "error",
         run={"data": "shapes", "change": "standardised"})  # fmt: skip
    unlike = fit(nets.siamese(), "unlike_pairs", targets=LABELS["shapes"])
    keep(unlike, "f_unlike", "one trunk on photographs and on sketches", ["BN303"], "trunk/conv_bn", "warning",
         run={"data": "unlike_pairs"})  # fmt: skip
    keep(fit(nets.recurrent(before=True), "padded"), "f_padded", "padding in the statistics", ["BN406"], "input_bn",
         "warning", run={"data": "padded"})  # fmt: skip
    keep(made["mlp"], "f_small_batch", "batches of 2", ["BN405"], None, "warning", run={"data": "wine_raw", "batch": 2})
    dead = with_arrays(copied(made["efficient"]), "b_project_bn", gamma=lambda g: g)
    dead = with_arrays(copied(made["unet"]), "out_bn", beta=put([0, 3], -40.0))
    keep(dead, "f_cut_off", "two channels always cut off", ["BN404"], "out_bn", run={"data": "shapes"})
