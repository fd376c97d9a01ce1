"""Figures for the PyTorch layers: ``PYTHONPATH=src python benchmarks/torch_layers.py [overhead|accuracy]``.

``overhead``: the time of a training step (forward and backward of the layer alone) on CPU, ours against torch's; the
two take turns, so that a busy machine slows both; medians and their ratio.

``accuracy``: how well a small residual network on scikit-learn's digits does in inference mode after few steps, for
"moving" and "debiased" statistics. Training does not look at them, so both networks have the same weights and the
statistics are the whole difference. Mean of three seeds.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch
from torch import nn

import batchnorm.torch as bt

SHAPES = [(64, 8), (64, 256), (32, 16, 8, 8), (32, 64, 16, 16), (32, 64, 56, 56)]
STEPS = (1, 5, 20, 100)
SEEDS = 3


def step_time(layer, x, grad):
    """Seconds of one forward and backward pass."""
    began = time.perf_counter()
    layer(x).backward(grad)
    return time.perf_counter() - began


def overhead():
    """Print the time of a step, ours against theirs."""
    print(f"{'shape':>20} {'threads':>7} {'torch ms':>9} {'ours ms':>9} {'ratio':>6}")
    for shape in SHAPES:
        name = "BatchNorm1d" if len(shape) == 2 else "BatchNorm2d"
        layers = getattr(nn, name)(shape[1]), getattr(bt, name)(shape[1])
        x, grad = torch.randn(shape).requires_grad_(), torch.randn(shape)
        rounds = 200 if x.numel() < 10**5 else 15
        times = [[step_time(layer, x, grad) for layer in layers] for _ in range(rounds + 3)][3:]
        theirs, ours = (1e3 * statistics.median(each) for each in zip(*times, strict=True))
        print(f"{shape!s:>20} {torch.get_num_threads():7} {theirs:9.3f} {ours:9.3f} {ours / theirs:6.2f}")


class Network(nn.Module):
    """A convolution, one residual block of two, a linear head."""

    def __init__(self, mode):
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(i, 16, 3, padding=1) for i in (1, 16, 16))
        self.bn0, self.bn1, self.bn2 = (bt.BatchNormAct2d(16, statistics=mode) for _ in range(3))
        self.head = nn.Linear(16 * 64, 10)

    def forward(self, x):
        """Class scores of images."""
        x = self.bn0(self.stem(x))
        return self.head(self.bn2(self.second(self.bn1(self.first(x))), x).flatten(1))


def digits():
    """Images (N, 1, 8, 8) from 0 to 1, and their labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy((x / 16).astype(np.float32)).reshape(-1, 1, 8, 8), torch.from_numpy(y)


def score(model, images, labels):
    """Share of right answers in inference mode."""
    model.eval()
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean().item()
    model.train()
    return right


def accuracies(mode, seed):
    """Train one network; its score on held-out images after each of STEPS."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = Network(mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.randperm(len(images))
    held_out, training = order[-360:], order[:-360]
    found = []
    for step in range(1, max(STEPS) + 1):
        chosen = training[torch.randint(len(training), (64,))]
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in STEPS:
            found.append(score(model, images[held_out], labels[held_out]))
    return found


def accuracy():
    """Print the mean score for both kinds of statistics."""
    print("| steps | " + " | ".join(str(step) for step in STEPS) + " |")
    print("|---" * (len(STEPS) + 1) + "|")
    for mode in ("moving", "debiased"):
        mean = np.mean([accuracies(mode, seed) for seed in range(SEEDS)], axis=0)
        print(f"| {mode} | " + " | ".join(f"{100 * value:.1f} %" for value in mean) + " |")


if __name__ == "__main__":
    for figure in sys.argv[1:] or ("overhead", "accuracy"):
        {"overhead": overhead, "accuracy": accuracy}[figure]()
