"""What batch normalization adds to whole training steps: our layers beside torch's, on the CPU, and tiny calls.

    python benchmarks/training_step.py [--rounds 15] [--threads 1]

A small residual network on images of 8 x 8, as the digits of scikit-learn are (batch 64), a ResNet-18-like network on
images of 64 x 64 (batch 8), with convolutions, loss and optimizer, and 100 calls of a layer on 32 x 128 numbers. In
every round each of the two has its turn. With one thread processor time is taken: other programs do not count.
Printed: the median over the rounds of torch's time over ours, the quartiles, and the fastest over the fastest.
"""

from __future__ import annotations

import argparse
import time

import torch
from speed.summary import ratio
from torch import nn

import batchnorm.torch as bt


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.short = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        """``relu(bn(conv(relu(bn(conv(x))))) + short(x))``."""
        y = torch.relu(self.bn1(self.first(x)))
        return torch.relu(self.bn2(self.second(y)) + self.short(x))


def digits_network():
    """A stem and one block of 16 channels on 8 x 8 images."""
    stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(stem, Block(16, 16), nn.Flatten(), nn.Linear(16 * 64, 10))


def resnet18():
    """ResNet-18 with its first convolution at full resolution."""
    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    widths = (64, 64, 128, 128, 256, 256, 512, 512)
    for before, after in zip((64, *widths), widths, strict=False):
        layers.append(Block(before, after, 1 if before == after else 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def training(build, shape):
    """Calls of one training step, with torch's layers and with ours, from the same weights."""
    torch.manual_seed(0)
    theirs, ours = build(), build()
    ours.load_state_dict(theirs.state_dict())
    x, labels = torch.randn(shape), torch.randint(10, shape[:1])

    def step_of(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def step():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()

        return step

    return step_of(theirs), step_of(bt.convert(ours))


def call(training, graph):
    """Calls of a layer alone."""
    layers = [nn.BatchNorm1d(128).train(training), bt.BatchNorm1d(128).train(training)]
    x = torch.randn(32, 128)

    def one(layer):
        def run():
            with torch.set_grad_enabled(graph):
                for _ in range(100):
                    layer(x)

        return run

    return map(one, layers)


CASES = {
    "training step, digits network": lambda: training(digits_network, (64, 1, 8, 8)),
    "training step, ResNet-18-like": lambda: training(resnet18, (8, 3, 64, 64)),
    "tiny call, training, with a graph": lambda: call(True, True),
    "tiny call, training, no_grad": lambda: call(True, False),
    "tiny call, inference, with a graph": lambda: call(False, True),
    "tiny call, inference, no_grad": lambda: call(False, False),
}


def seconds(function, clock):
    """Of one call."""
    began = clock()
    function()
    return clock() - began


def main():
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bt_threads(given.threads)
    clock = time.process_time if given.threads == 1 else time.perf_counter
    print("| | torch over ours | quartiles | fastest over fastest |\n|---|---|---|---|")
    for name, build in CASES.items():
        theirs, ours = build()
        times = [(seconds(theirs, clock), seconds(ours, clock)) for _ in range(given.rounds + 2)][2:]
        found = ratio(*map(list, zip(*times, strict=True)))
        print(f"| {name} | {found.median:.2f} | {found.low:.2f} to {found.high:.2f} | {found.best:.2f} |", flush=True)


def bt_threads(count):
    """Hold the kernels to as many threads as torch."""
    from batchnorm.kernels import cpu

    if cpu.available():
        cpu.set_threads(count)


if __name__ == "__main__":
    main()
