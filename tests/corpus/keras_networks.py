"""Small networks in Keras: six architectures for scikit-learn's digits, with every setting of their layers open."""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = (IMAGES.reshape(-1, 8, 8, 1) / 16).astype("float32")
SEQUENCES = IMAGES[..., 0]
TABLE = IMAGES.reshape(-1, 64)
DATA = {"conv1d": SEQUENCES, "mlp": TABLE}


def data(arch):
    """The input of an architecture."""
    return DATA.get(arch, IMAGES)


class Net:
    """Builds one model; batch normalizations are named bn1, bn2, ... in the order of the data's way."""

    def __init__(self, *, bias=False, only=None, dropout=None, **norm):
        self.bias = bias
        self.norm = {"momentum": 0.9} | norm
        self.only = only or {}  # settings of single layers, by name
        self.dropout = dropout  # the layer before whose weights it stands
        self.count = 0

    def bn(self, x, **call):
        self.count += 1
        name = f"bn{self.count}"
        settings = self.norm | self.only.get(name, {})
        call = call | settings.pop("call", {})
        return layers.BatchNormalization(name=name, **settings)(x, **call)

    def dropped(self, x):
        return layers.Dropout(0.5)(x) if self.dropout == f"bn{self.count + 1}" else x

    def conv(self, x, filters, size=3, *, relu=True, **how):
        how = {"padding": "same", "use_bias": self.bias} | how
        x = self.bn(layers.Conv2D(filters, size, **how)(self.dropped(x)))
        return layers.ReLU()(x) if relu else x

    def resnet(self, x):
        x = self.conv(x, 8)
        for _ in range(2):
            y = self.conv(self.conv(x, 8), 8, relu=False)
            x = layers.ReLU()(layers.add([x, y]))
        return layers.GlobalAveragePooling2D()(x)

    def mobile(self, x):
        x = self.conv(x, 8)
        for filters in (8, 16):
            x = layers.DepthwiseConv2D(3, padding="same", use_bias=self.bias)(x)
            x = layers.ReLU(6.0)(self.bn(x))
            x = self.conv(x, filters, 1)
        return layers.GlobalAveragePooling2D()(x)

    def vgg(self, x):
        x = self.conv(self.conv(x, 8), 8)
        x = self.conv(layers.MaxPooling2D()(x), 16)
        return layers.Flatten()(layers.MaxPooling2D()(x))

    def dense(self, x):
        x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
        for _ in range(3):
            y = layers.ReLU()(self.bn(x))
            x = layers.concatenate([x, layers.Conv2D(4, 3, padding="same", use_bias=False)(self.dropped(y))])
        return layers.GlobalAveragePooling2D()(layers.ReLU()(self.bn(x)))

    def conv1d(self, x):
        for filters in (16, 16):
            x = layers.Conv1D(filters, 3, padding="same", use_bias=self.bias)(self.dropped(x))
            x = layers.ReLU()(self.bn(x))
        return layers.Flatten()(x)

    def mlp(self, x):
        for units in (24, 24):
            x = layers.ReLU()(self.bn(layers.Dense(units, use_bias=self.bias)(self.dropped(x))))
        return x


def build(arch, **settings):
    """An untrained model."""
    inputs = keras.Input(data(arch).shape[1:])
    features = getattr(Net(**settings), arch)(inputs)
    return keras.Model(inputs, layers.Dense(10, name="logits")(features), name=arch)


def fit(model, arch, *, steps=200, batch=64, change=None, rate=0.1, seed=0):
    """Train on the digits for so many steps, at a rate that falls to 0; ``change`` is applied to the input."""
    x = data(arch) if change is None else change(data(arch))
    rng = np.random.default_rng(seed)
    picks = np.concatenate([rng.permutation(len(x)) for _ in range(1 + steps * batch // len(x))])[: steps * batch]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    decayed = keras.optimizers.schedules.CosineDecay(rate, steps) if rate else rate
    model.compile(loss=loss, optimizer=keras.optimizers.SGD(decayed))
    model.fit(x[picks], LABELS[picks], batch_size=batch, epochs=1, verbose=0, shuffle=False)
    return model


def trained(arch, *, steps=200, change=None, rate=0.1, **settings):
    """A trained model."""
    return fit(build(arch, **settings), arch, steps=steps, change=change, rate=rate)


def set_arrays(model, layer, **arrays):
    """Give a layer other numbers; the optimizer's counter stays."""
    found = model.get_layer(layer)
    for name, value in arrays.items():
        variable = getattr(found, name)
        old = keras.ops.convert_to_numpy(variable)
        variable.assign(value(np.array(old)) if callable(value) else np.broadcast_to(value, old.shape))
    return model
