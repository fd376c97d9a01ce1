"""Networks in PyTorch whose wiring is what the graph rules look at, for the digits of scikit-learn."""

import torch
from torch import nn

from tests.corpus.torch_networks import build, norms


def head(*parts, size):
    return nn.Sequential(*parts, nn.Linear(size, 10))


class Moved(nn.Module):
    """A layer between two exchanges of the axes 1 and 2."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


def over_time():
    parts = [nn.Conv1d(8, 16, 3, padding=1, bias=False), Moved(nn.BatchNorm1d(8)), nn.ReLU()]
    return head(*parts, nn.Conv1d(16, 8, 1), nn.Flatten(), size=64)


def mixer():
    """Sound: what is normalised are the channels of the convolution after it."""
    parts = [nn.Conv1d(8, 8, 3, padding=1, bias=False), nn.BatchNorm1d(8), nn.ReLU()]
    mixed = nn.Sequential(nn.BatchNorm1d(8), nn.Conv1d(8, 8, 1), nn.ReLU())
    return head(*parts, Moved(mixed), nn.Flatten(), size=64)


def double():
    parts = [nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Identity(), nn.BatchNorm2d(8), nn.ReLU()]
    return head(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), size=8)


class Scaled(nn.Module):
    def forward(self, x):
        return x * 2 + 1


def doubled_mlp():
    return head(nn.Linear(64, 24), nn.BatchNorm1d(24), Scaled(), nn.BatchNorm1d(24), nn.ReLU(), size=24)


class Twins(nn.Module):
    """One normalization behind two layers."""

    def __init__(self, left, right, shared, end):
        super().__init__()
        self.left, self.right, self.shared, self.end = left, right, shared, end

    def forward(self, x):
        return self.end(torch.relu(self.shared(self.left(x)) + self.shared(self.right(x))))


def twins():
    left, right = (nn.Conv2d(1, 8, 3, bias=False) for _ in range(2))
    end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return Twins(left, right, nn.BatchNorm2d(8), end)


def twin_mlp():
    return Twins(nn.Linear(64, 24, bias=False), nn.Linear(64, 24, bias=False), nn.BatchNorm1d(24), nn.Linear(24, 10))


class Branches(nn.Module):
    """Two layers on one input, each with statistics of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 3, padding=1, bias=False)
        self.one, self.two = nn.BatchNorm1d(16), nn.BatchNorm1d(16)
        self.end = nn.Linear(128, 10)

    def forward(self, x):
        x = self.conv(x)
        return self.end(torch.flatten(torch.relu(self.one(x)) - torch.tanh(self.two(x)), 1))


def branches():
    return Branches()


class Spare(nn.Module):
    """A network with a head that ``forward`` does not call."""

    def __init__(self, body, aside):
        super().__init__()
        self.body, self.aside = body, aside

    def forward(self, x):
        return self.body(x)


def with_spare(arch):
    first = nn.Linear(64, 12) if arch == "mlp" else nn.Conv2d(1, 12, 3)
    norm = nn.BatchNorm1d(12) if arch == "mlp" else nn.BatchNorm2d(12)
    return Spare(build(arch), nn.Sequential(first, norm))


def frozen(arch):
    """The first layer frozen, the others live; all are this package's, which stay frozen in ``train()``."""
    from batchnorm.torch import convert, freeze

    net = convert(build(arch))
    freeze(next(iter(norms(net).values())))
    return net


def network(kind):
    """The network of that kind."""
    if kind.startswith("frozen_"):
        return frozen(kind.removeprefix("frozen_"))
    if kind.startswith("spare_"):
        return with_spare(kind.removeprefix("spare_"))
    own = globals().get(kind)
    return own() if callable(own) else build(kind)
