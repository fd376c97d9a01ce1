"""Networks of the second part in Keras: none of them stands in the first."""

import keras
import numpy as np
from keras import layers

from tests.corpus.holdout.samples import known, shapes, waves, wines

KNOWN = known()
LABELS = {"shapes": shapes()[1], "waves": waves()[1], "wine": wines()[1], "wine_raw": wines()[1]}
LABELS |= {"shapes_chw": LABELS["shapes"], "padded": LABELS["waves"]}


def bn(name, x, *, momentum=0.9, training=None, **how):
    layer = layers.BatchNormalization(name=name, momentum=momentum, **how)
    return layer(x) if training is None else layer(x, training=training)


def head(x, name):
    return layers.Dense(3, name="logits")(x)


def efficient(**how):
    """An inverted bottleneck with squeeze and excitation, twice."""
    x = start = keras.Input((10, 10, 3))
    x = layers.Activation("swish")(bn("stem_bn", layers.Conv2D(8, 3, 2, "same", use_bias=False)(x), **how))
    for block in "ab":
        y = layers.Conv2D(16, 1, use_bias=False)(x)
        y = layers.Activation("swish")(bn(f"{block}_expand_bn", y, **how))
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
        y = layers.Activation("swish")(bn(f"{block}_dw_bn", y, **how))
        s = layers.GlobalAveragePooling2D(keepdims=True)(y)
        s = layers.Conv2D(16, 1, activation="sigmoid")(layers.Conv2D(4, 1, activation="swish")(s))
        y = bn(f"{block}_project_bn", layers.Conv2D(8, 1, use_bias=False)(layers.multiply([y, s])), **how)
        x = layers.add([x, layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(y)])
    return keras.Model(start, head(layers.GlobalAveragePooling2D()(x), "logits"), name="efficient")


def unet(only=None, bias=False):
    only = only or {}
    x = start = keras.Input((10, 10, 3))
    down = layers.ReLU()(
        bn("down_bn", layers.Conv2D(8, 3, padding="same", use_bias=bias)(x), **only.get("down_bn", {}))
    )
    x = layers.Conv2D(16, 3, padding="same", use_bias=bias)(layers.MaxPooling2D()(down))
    x = layers.ReLU()(bn("deep_bn", x, **only.get("deep_bn", {})))
    x = layers.Conv2DTranspose(8, 2, 2, use_bias=bias)(x)
    x = layers.concatenate([layers.ReLU()(bn("up_bn", x, **only.get("up_bn", {}))), down])
    x = layers.Conv2D(8, 3, padding="same", use_bias=bias)(x)
    x = layers.ReLU()(bn("out_bn", x, **only.get("out_bn", {})))
    return keras.Model(start, head(layers.GlobalAveragePooling2D()(x), "logits"), name="unet")


def recurrent(only=None, dropout=None, before=False):
    """A convolution over time, a GRU, and normalizations behind both."""
    only = only or {}
    x = start = keras.Input((16, 3))
    if before:
        x = bn("input_bn", x)
    x = layers.ReLU()(bn("conv_bn", layers.Conv1D(12, 3, padding="same", use_bias=False)(x), **only.get("conv_bn", {})))
    x = bn("gru_bn", layers.GRU(8, return_sequences=True)(x), **only.get("gru_bn", {}))
    x = layers.GlobalAveragePooling1D()(x)
    if dropout:
        x = dropout(x)
    x = layers.ReLU()(bn("dense_bn", layers.Dense(12, use_bias=False)(x), **only.get("dense_bn", {})))
    return keras.Model(start, head(x, "logits"), name="recurrent")


def mlp(*, first=True, only=None, **how):
    only = only or {}
    x = start = keras.Input((13,))
    if first:
        x = bn("input_bn", x, **how | only.get("input_bn", {}))
    for number in (1, 2):
        x = layers.Dense(16, use_bias=False)(x)
        x = layers.ReLU()(bn(f"bn_{number}", x, **how | only.get(f"bn_{number}", {})))
    return keras.Model(start, head(x, "logits"), name="mlp")


def densenet(**how):
    """Normalised, activated, squeezed, normalised again, convolved and joined."""
    start = keras.Input((10, 10, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(start)
    for block in "ab":
        y = layers.Conv2D(8, 1, use_bias=False)(layers.ReLU()(bn(f"{block}0_bn", x, **how)))
        y = layers.Conv2D(4, 3, padding="same", use_bias=False)(layers.ReLU()(bn(f"{block}1_bn", y, **how)))
        x = layers.concatenate([x, y])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(bn("last_bn", x, **how)))
    return keras.Model(start, head(x, "logits"), name="densenet")


def siamese():
    """Two inputs through one trunk, and how far they end apart."""
    inner = x = keras.Input((10, 10, 3))
    x = layers.ReLU()(bn("conv_bn", layers.Conv2D(8, 3, 2, use_bias=False)(x)))
    x = bn("embed_bn", layers.Dense(8, use_bias=False)(layers.GlobalAveragePooling2D()(x)))
    trunk = keras.Model(inner, x, name="trunk")
    a, b = keras.Input((10, 10, 3), name="photo"), keras.Input((10, 10, 3), name="sketch")
    apart = layers.subtract([trunk(a), trunk(b)])
    return keras.Model(
        {"photo": a, "sketch": b}, head(layers.Dense(8, activation="relu")(apart), "logits"), name="siamese"
    )


def generator(training=None):
    x = start = keras.Input((8,))
    x = layers.Dense(5 * 5 * 8, use_bias=False)(x)
    x = layers.LeakyReLU()(bn("dense_bn", x, momentum=0.8, training=training))
    x = layers.Conv2DTranspose(8, 4, 2, "same", use_bias=False)(layers.Reshape((5, 5, 8))(x))
    x = layers.LeakyReLU()(bn("up_bn", x, momentum=0.8, training=training))
    return keras.Model(start, layers.Conv2D(3, 3, padding="same", activation="sigmoid")(x), name="generator")


def resnet(channels_first=False, axis=None, zero=False, **how):
    """Two blocks whose last normalization stands before the sum."""
    form = "channels_first" if channels_first else "channels_last"
    how = {"axis": axis if axis is not None else (1 if channels_first else -1)} | how

    def conv(x, filters, stride=1):
        return layers.Conv2D(filters, 3, stride, "same", use_bias=False, data_format=form)(x)

    x = start = keras.Input((3, 10, 10) if channels_first else (10, 10, 3))
    x = layers.ReLU()(bn("stem_bn", conv(x, 8), **how))
    for block in "ab":
        y = layers.ReLU()(bn(f"{block}1_bn", conv(x, 8), **how))
        last = {"gamma_initializer": "zeros"} if zero else {}
        x = layers.ReLU()(layers.add([x, bn(f"{block}2_bn", conv(y, 8), **how | last)]))
    return keras.Model(start, head(layers.GlobalAveragePooling2D(data_format=form)(x), "logits"), name="resnet")


def fit(model, data, *, steps=120, batch=48, optimizer=None, targets=None, seed=0, scale=1.0):
    """Train on so many batches."""
    x, y = KNOWN[data], LABELS.get(data, LABELS["shapes"]) if targets is None else targets
    rng = np.random.default_rng(seed)
    size = len(y)
    pick = np.concatenate([rng.permutation(size) for _ in range(1 + steps * batch // size)])[: steps * batch]
    x = {key: value[pick] * scale for key, value in x.items()} if isinstance(x, dict) else x[pick] * scale
    loss = "mse" if y.ndim > 1 else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer=optimizer or keras.optimizers.Adam(3e-3))
    model.fit(x, y[pick], batch_size=batch, epochs=1, verbose=0, shuffle=False)
    return model
