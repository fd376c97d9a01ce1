"""A ResNet-50 in shape: how many passes a sequential recalibration takes, and how many forwards they are worth."""

import numpy as np
import pytest

import batchnorm as bn
from tests.api.networks import off

torch = pytest.importorskip("torch")
nn = torch.nn

# Thousands of tiny calls, which threads only hold up.
pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = (3, 4, 6, 3)
WIDTH = 4
"""Of the first stage, where ResNet-50 has 64."""


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut, which the first of a stage projects."""

    def __init__(self, entry, width, stride, *, projects):
        super().__init__()
        leave = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(entry, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, leave, 1, bias=False), nn.BatchNorm2d(leave)
        self.down = None
        if projects:
            self.down = nn.Sequential(nn.Conv2d(entry, leave, 1, stride, bias=False), nn.BatchNorm2d(leave))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + (x if self.down is None else self.down(x))).relu()


class ResNet50(nn.Module):
    """Its 53 convolutions and batch normalizations, narrow, for images of 32 x 32."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTH)
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks, entry = [], WIDTH
        for stage, count in enumerate(STAGES):
            width = WIDTH * 2**stage
            for number in range(count):
                stride = 2 if stage and not number else 1
                blocks.append(Bottleneck(entry, width, stride, projects=not number))
                entry = 4 * width
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(entry, 10)

    def forward(self, x):
        x = self.pool(self.bn(self.stem(x)).relu())
        return self.head(self.blocks(x).mean((2, 3)))


def test_passes_and_forwards(record_property):
    torch.manual_seed(0)
    model = ResNet50()
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 53
    data = np.random.default_rng(0).normal(0, 1, (32, 3, 32, 32)).astype("float32")
    calls = dict.fromkeys(norms, 0)

    def seen(name):
        def hook(*_):
            calls[name] += 1

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(seen(name)) for name in norms]
    one = bn.load(model).bench()
    with one.session():
        trace = one.trace(data)
    calls = dict.fromkeys(norms, 0)
    with one.session():
        one.trace(data)
    traced = dict(calls)
    calls = dict.fromkeys(norms, 0)
    found = bn.recalibrate(model, data, method="sequential", batch_size=32)
    for handle in handles:
        handle.remove()
    print(f"\nResNet-50: {found.passes} passes, {found.forwards:.1f} forwards' worth")
    record_property("passes", found.passes)
    record_property("forwards", round(found.forwards, 1))
    # The stem, three for each of 16 blocks; a projection shares the pass of its block's first layer.
    assert found.passes == 1 + 3 * sum(STAGES) == 49
    assert trace.feeds["blocks.0.down.1"].isdisjoint({"blocks.0.bn1", "blocks.0.bn2", "blocks.0.bn3"})
    # A pass stops at the layer it measures: later layers are called less often, in the middle half as often.
    measured = {name: calls[name] - traced[name] for name in norms}
    assert measured["bn"] > measured["blocks.7.bn1"] > measured["blocks.15.bn3"]
    assert abs(measured["blocks.7.bn1"] / measured["bn"] - 0.5) < 0.1
    # By time, which depends on the machine: about half of the passes. Equal layers would give 49/2 = 24.5.
    assert 15 < found.forwards < 35
    for name in ("bn", "blocks.0.down.1", "blocks.7.bn2", "blocks.15.bn3"):
        assert off(model, name, torch.from_numpy(data)) < 1e-5
