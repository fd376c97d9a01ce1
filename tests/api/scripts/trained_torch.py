"""Train a small residual network on scikit-learn's digits in PyTorch, and write it in every format of PyTorch.

    python trained_torch.py FOLDER [--alone]

``.pt`` and ``.safetensors`` (state dicts), ``.pt2``, TorchScript, and ``.onnx`` by the exporter of torch.export and by
the older one. ``changed`` gives copies with one constant of one layer changed.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

CHANGED = "mid_bn"
STEPS, BATCH = 60, 32
ROLES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def digits():
    """Images of 8x8 pixels between 0 and 1, with their labels, shuffled."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return torch.tensor(images[order].reshape(-1, 1, 8, 8) / 16, dtype=torch.float32), torch.tensor(labels[order])


class Digits(nn.Module):
    """Four batch normalizations: behind a convolution, in a residual branch, behind the addition, behind a dense."""

    def __init__(self, **settings):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.branch_bn = nn.BatchNorm2d(8)
        self.mid_bn = nn.BatchNorm2d(8, **settings)
        self.hidden = nn.Linear(128, 16)
        self.head_bn = nn.BatchNorm1d(16)
        self.logits = nn.Linear(16, 10)

    def forward(self, image):
        """Logits of images (n, 1, 8, 8)."""
        x = functional.relu(self.stem_bn(self.stem(image)))
        x = functional.relu(self.mid_bn(x + self.branch_bn(self.branch(x))))
        x = functional.avg_pool2d(x, 2).flatten(1)
        return self.logits(functional.relu(self.head_bn(self.hidden(x))))


def trained():
    """The network after a few dozen steps, and its accuracy on images it has not seen."""
    torch.manual_seed(0)
    images, labels = digits()
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(STEPS):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % (len(images) - 500)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(images[-500:]).argmax(1) == labels[-500:]
    return model, float(right.float().mean())


def swapped(first, second):
    return lambda held: {first: held[second], second: held[first]}


def through(dtype):
    return lambda held: {role: values.to(dtype).to(torch.float32) for role, values in held.items()}


SETTINGS = {"epsilon": {"eps": 1e-3}, "decay": {"momentum": 0.05}, "momentum-convention": {"momentum": 0.9}}
VALUES = {
    "ddof": lambda held: {"moving_variance": held["moving_variance"] * (32 / 31)},
    "gamma": lambda held: {"gamma": held["gamma"] + 0.25},
    "beta": lambda held: {"beta": held["beta"] + 0.125},
    "moving_mean": lambda held: {"moving_mean": held["moving_mean"].flip(0)},
    "moving_variance": lambda held: {"moving_variance": held["moving_variance"].sqrt()},
    "swapped gamma/beta": swapped("gamma", "beta"),
    "swapped mean/variance": swapped("moving_mean", "moving_variance"),
    "dtype": through(torch.float16),
    "dtype bfloat16": through(torch.bfloat16),
}
NEW = ("epsilon", "gamma", "swapped mean/variance", "dtype", "decay")
"""The copies that the new exporter to ONNX writes, too; it writes the same operator as the older one."""
MODE = "mode"
"""The layer normalises with the batch in a graph that is otherwise in inference; a state dict cannot say it."""


def changed(model, what):
    """A copy of the network in which one constant of the layer `CHANGED` is another."""
    copy = Digits(**SETTINGS.get(what, {}))
    copy.load_state_dict(model.state_dict())
    layer = copy.get_submodule(CHANGED)
    if what in VALUES:
        held = {role: getattr(layer, name).detach().clone() for role, name in ROLES.items()}
        with torch.no_grad():
            for role, values in VALUES[what](held).items():
                getattr(layer, ROLES[role]).copy_(values)
    copy.eval()
    if what == MODE:
        layer.train()
    return copy


def write_state(model, folder, stem):
    """``.pt`` and ``.safetensors``."""
    torch.save(model.state_dict(), folder / f"{stem}.pt")
    save_file(model.state_dict(), folder / f"{stem}.safetensors")


def write_graphs(model, folder, stem, *, new=True):
    """``.pt2``, TorchScript (``.ts.pt``), ``.onnx`` by the ``new`` exporter and ``.old.onnx`` by the older one."""
    x = torch.zeros(4, 1, 8, 8)
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: batch},)), folder / f"{stem}.pt2")
    torch.jit.script(model).save(folder / f"{stem}.ts.pt")
    names = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(
        model, (x,), folder / f"{stem}.old.onnx", dynamo=False, dynamic_axes={"image": {0: "batch"}},
        do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE, **names,
    )  # fmt: skip
    if new:  # it takes a second
        torch.onnx.export(
            model, (x,), folder / f"{stem}.onnx", dynamo=True, external_data=False, verbose=False,
            dynamic_shapes=({0: batch},), **names,
        )  # fmt: skip


def main(folder, alone=False):
    """The model, and unless it is wanted ``alone`` its copies, in every format."""
    warnings.simplefilter("ignore")
    model, accuracy = trained()
    (folder / "accuracy.json").write_text(json.dumps(accuracy))
    np.save(folder / "x.npy", digits()[0][-40:].numpy())
    write_state(model, folder, "model")
    write_graphs(model, folder, "model")
    for what in () if alone else (*SETTINGS, *VALUES, MODE):
        copy, stem = changed(model, what), what.replace("/", "-").replace(" ", "_")
        write_state(copy, folder, stem)
        write_graphs(copy, folder, stem, new=what in NEW)


if __name__ == "__main__":
    main(Path(sys.argv[1]), alone="--alone" in sys.argv)
