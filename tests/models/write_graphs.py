"""Writes one network with Keras and with PyTorch, in every format that holds a graph; prints the live ones' shape."""

import json
import os
import sys
import warnings
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"  # PyTorch and Keras in one process

import keras
import torch
from torch import nn

from batchnorm.api.live import from_live

L = keras.layers


class Net(nn.Module):
    """Convolutions of every sort, a branch that is added back, a dense head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stem_bn = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.deep_bn = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.up_bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem_bn(self.stem(x)))
        x = x + self.deep_bn(self.deep(x))
        x = torch.relu(self.up_bn(self.up(x)))
        return self.head(x.mean((2, 3)))


def of_keras():
    given = keras.Input((6, 6, 3), name="x")
    x = L.BatchNormalization(name="stem_bn")(L.Conv2D(8, 3, padding="same", name="stem")(given))
    x = L.ReLU()(x)
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="deep")(x)
    x = L.Add()([x, L.BatchNormalization(name="deep_bn")(y)])
    x = L.BatchNormalization(name="up_bn")(L.Conv2DTranspose(8, 2, strides=2, name="up")(x))
    x = L.GlobalAveragePooling2D()(L.ReLU()(x))
    return keras.Model(given, L.Dense(4, name="head")(x))


def nested():
    """A model called twice, a sequential one, a layer on two inputs, one over time, an operation of a tensor."""
    given = keras.Input((8, 8, 4), name="image")
    inner = keras.Model(given, L.BatchNormalization(name="bn")(L.Conv2D(4, 3, padding="same", name="conv")(given)))
    inner.name = "inner"
    chain = keras.Sequential([L.Conv2D(4, 1, name="conv"), L.BatchNormalization(name="bn")], name="chain")
    one, two = keras.Input((8, 8, 4), name="one"), keras.Input((8, 8, 4), name="two")
    shared = L.BatchNormalization(name="shared")
    x = chain(inner(inner(one))) * 2.0
    x = L.Concatenate()([shared(x), shared(two, training=True)])
    x = L.TimeDistributed(L.BatchNormalization(name="timed"), name="over")(x)
    return keras.Model([one, two], [x, L.Dropout(0.5, noise_shape=(None, 1, 1, 1))(x)])


def shape(graph):
    return [(each.name, each.kind, list(each.inputs), each.shared) for each in graph.operations]


def main(folder):
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(2, 3, 6, 6)
    torch.export.save(torch.export.export(net, (x,)), folder / "net.pt2")
    torch.export.save(torch.export.export(net, (x,)).run_decompositions(), folder / "decomposed.pt2")
    keep = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False, "dynamo": False}
    torch.onnx.export(net, (x,), folder / "net.onnx", **keep)
    for name, model in (("net", of_keras()), ("nested", nested())):
        model.save(folder / f"{name}.keras")
        model.save(folder / f"{name}.h5")
        (folder / f"{name}_live.json").write_text(json.dumps(shape(from_live(model).graph)))
    net.train()
    live = from_live(net)
    flags = [module.training for module in net.modules()]
    kernels = {each.name: list(each.weights["kernel"]().shape) for each in live.graph.operations if each.weights}
    (folder / "torch_live.json").write_text(json.dumps([shape(live.graph), kernels, all(flags)]))
    (folder / "no_graph.json").write_text(json.dumps([from_live(Deciding()).no_graph, from_live(Custom()).no_graph]))


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn(x) if x.sum() > 0 else x


class Custom(keras.Model):
    """A subclassed model: its config shows no layers."""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
