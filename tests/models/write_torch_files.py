"""Writes, with the installed PyTorch, the files that the readers' tests read: a process of its own."""

import argparse
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.05)

    def forward(self, x):
        return x + self.bn(torch.tanh(self.conv(x)))


class Net(nn.Module):
    """Every setting of a batch normalization once."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
        self.block = Block(4)
        self.cumulative = nn.BatchNorm2d(4, momentum=None)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.flat = nn.BatchNorm1d(4)

    def forward(self, x):
        x = torch.sigmoid(self.cumulative(self.block(self.stem(x))))
        return self.flat(torch.relu(self.plain(x)).mean((2, 3)))


class Batch(nn.Module):
    """Normalised by what comes in."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x):
        return self.bn(torch.sin(x))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3, momentum=0.2)
        self.instance = nn.InstanceNorm2d(3, track_running_stats=True)

    def forward(self, x):
        return self.instance(self.bn(x))


class Branching(nn.Module):
    """One layer called twice, one called in a branch."""

    def __init__(self):
        super().__init__()
        self.shared = nn.BatchNorm2d(3)
        self.branch = nn.BatchNorm2d(3, eps=0.5)

    def forward(self, x):
        x = self.shared(torch.sin(self.shared(x)))
        return torch.cond(x.sum() > 0, lambda v: self.branch(v), lambda v: v.cos(), (x,))


class Views(nn.Module):
    """Parameters that are parts of one storage."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        storage = torch.arange(1, 31, dtype=torch.float32)
        self.bn.running_mean = storage[2:8:2]
        self.bn.running_var = storage[20:23]

    def forward(self, x):
        return self.bn(x)


class Hooked:
    """What a checkpoint of a training may hold beside tensors."""


NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def trained():
    torch.manual_seed(3)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    for _ in range(7):
        model(torch.randn(6, 3, 8, 8) * 2 + 1)
    return model.eval()


def expected(model):
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            arrays = {ours: getattr(module, theirs) for ours, theirs in NAMES.items()}
            found[name] = {
                "epsilon": module.eps,
                "momentum": module.momentum,
                "updates": int(module.num_batches_tracked),
                "kind": type(module).__name__,
            } | {ours: None if each is None else each.detach().tolist() for ours, each in arrays.items()}
    return found


def write_state_dicts(model, folder):
    state = model.state_dict()
    torch.save(state, folder / "state.pt")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "state.safetensors")
    wrapped = {f"module._orig_mod.{name}": each for name, each in state.items()}
    save_file(wrapped, folder / "wrapped.safetensors")
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"state": {}, "param_groups": []}}, folder / "n.ckpt")
    torch.save({"model": {"net": state}, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)}, folder / "d.pth")
    moved = {name: each * 2 if each.is_floating_point() else each for name, each in state.items()}
    torch.save({"state_dict": state, "ema": moved}, folder / "ema.pt")
    half = {name: each.bfloat16() if each.is_floating_point() else each for name, each in state.items()}
    torch.save(half, folder / "bfloat16.pt")
    view = torch.arange(20, dtype=torch.float32)
    broken = {"bn.running_mean": view[2:8:2], "bn.running_var": view[10:13], "half.running_mean": view[:3]}
    torch.save(broken, folder / "views.pt")
    torch.save({"x": torch.ones(3)}, folder / "nothing.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save(model, folder / "whole.pt")
    torch.save({"state_dict": state, "callback": Hooked()}, folder / "hooked.ckpt")


def write_graphs(model, folder):
    x = torch.randn(6, 3, 8, 8)
    torch.jit.script(model).save(folder / "script.pt")
    torch.jit.trace(model, x).save(folder / "traced.pt")
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "net.pt2")
    torch.export.save(program.run_decompositions(), folder / "decomposed.pt2")
    torch.export.save(torch.export.export(Plain().train(), (x,)), folder / "train.pt2")
    torch.export.save(torch.export.export(Plain().train(), (x,)).run_decompositions(), folder / "train_decomposed.pt2")
    torch.export.save(torch.export.export(Branching().eval(), (x,)), folder / "branching.pt2")
    torch.export.save(torch.export.export(Views().eval(), (x,)), folder / "views.pt2")
    torch.export.save(torch.export.export(Batch().eval(), (x,)), folder / "batch.pt2")
    torch.onnx.export(model, (x,), folder / "net.onnx", dynamo=True, external_data=False, verbose=False)
    torch.onnx.export(model, (x,), folder / "external.onnx", dynamo=True, external_data=True, verbose=False)
    torch.onnx.export(model, (x,), folder / "old.onnx", dynamo=False)
    torch.onnx.export(
        model, (x,), folder / "old_train.onnx", dynamo=False, training=torch.onnx.TrainingMode.TRAINING,
        do_constant_folding=False,
    )  # fmt: skip
    torch.onnx.export(Batch().eval(), (x,), folder / "batch.onnx", dynamo=True, verbose=False)


def main(folder):
    warnings.simplefilter("ignore")
    model = trained()
    (folder / "expected.json").write_text(json.dumps(expected(model)))
    write_state_dicts(model, folder)
    # Before the graphs: torch.onnx.export in training mode moves the statistics of the model it is given.
    np.save(folder / "y.npy", model(torch.ones(6, 3, 8, 8)).detach().numpy())
    write_graphs(model, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
