"""A training step of a layer alone, forward and backward, and of the digits network: our time over torch's.

    python benchmarks/layer_steps.py [--rounds 100] [--threads 1 2]

Below 1 ours is faster. In every round each of the two has its turn of ten calls; a ratio is that of one round, and the
median of the rounds is printed, with its quartiles. Three figures a case: by the clock on the wall, in a loop (the
median of the ten calls: one in which another program had its turn is an outlier); the processor time of all threads in
that loop; and by the clock on the wall where a convolution and 3 MB of other numbers came between any two calls,
forward or back, as they do in a network: then code and tensors have left the caches.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from speed.summary import ratio
from torch import nn
from training_step import bt_threads, digits_network, training

import batchnorm.torch as bt

CALLS = 10
SHAPES = [(32, 16), (32, 128), (256, 64), (32, 16, 8, 8), (64, 16, 8, 8), (64, 32, 8, 8)]


class Between:
    """Other work: what it reads and runs takes the place of the layer's in the caches."""

    def __init__(self):
        self.numbers, self.images = torch.zeros(3 << 18), torch.randn(32, 16, 8, 8)
        self.convolution = nn.Conv2d(16, 16, 3, padding=1)

    def __call__(self, *inputs):
        """Do it; then the inputs are read, as the operation before would have written them."""
        with torch.no_grad():
            self.numbers.sum()
            torch.relu(self.convolution(self.images))
            for each in inputs:
                each.sum()


def alone(layer, x, grad, between=None):
    """Seconds of one step."""
    if between is not None:
        between(x)
    began = time.perf_counter()
    y = layer(x)
    spent = time.perf_counter() - began
    if between is not None:
        between(x, grad)
    began = time.perf_counter()
    y.backward(grad)
    return spent + time.perf_counter() - began


def turn(step):
    """Wall seconds of a call, the median of ten, and processor seconds."""
    step()
    began = time.process_time()
    each = [step() for _ in range(CALLS)]
    return statistics.median(each), (time.process_time() - began) / CALLS


def timed(step):
    """A step that returns its seconds."""

    def run():
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    return run


def layers(shape):
    """Both layers, ours second."""
    name = "BatchNorm1d" if len(shape) == 2 else "BatchNorm2d"
    return getattr(nn, name)(shape[1]), getattr(bt, name)(shape[1])


def cases(shape):
    """The step of each of the two in a loop, and with other work between."""
    x, grad, between = torch.randn(shape).requires_grad_(), torch.randn(shape), Between()
    pair = layers(shape)
    loops = [lambda layer=layer: alone(layer, x, grad) for layer in pair]
    return loops, [lambda layer=layer: alone(layer, x, grad, between) for layer in pair]


def found(pair, rounds):
    """Ratios of ours to theirs: wall, processor."""
    turns = [[turn(step) for step in pair] for _ in range(rounds + 5)][5:]
    return [ratio([ours[i] for _, ours in turns], [theirs[i] for theirs, _ in turns]) for i in range(2)]


def shown(one):
    """Median and quartiles."""
    return f"{one.median:.2f} ({one.low:.2f} to {one.high:.2f})"


def main():
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    print("| ours over torch's | threads | in a loop, wall | processor | in other work, wall |\n|---|---|---|---|---|")
    for threads in given.threads:
        torch.set_num_threads(threads)
        bt_threads(threads)
        for shape in SHAPES:
            loop, amid = cases(shape)
            wall, processor = found(loop, given.rounds)
            other, _ = found(amid, given.rounds)
            named = ", ".join(map(str, shape))
            print(f"| {named} | {threads} | {shown(wall)} | {shown(processor)} | {shown(other)} |", flush=True)
        wall, processor = found([timed(step) for step in training(digits_network, (64, 1, 8, 8))], given.rounds)
        print(f"| digits network | {threads} | {shown(wall)} | {shown(processor)} | |", flush=True)


if __name__ == "__main__":
    main()
