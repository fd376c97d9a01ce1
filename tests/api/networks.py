"""Small PyTorch networks that recalibration must be right on."""

import torch
from torch import nn


class Branches(nn.Module):
    """Two branches that do not feed each other, dropout, an unused layer, a shortcut."""

    def __init__(self):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.side, self.bside = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.c3, self.b3 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.dropout, self.head, self.unused = nn.Dropout(0.5), nn.Linear(8, 10), nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.b1(self.c1(x)).relu()
        x = (self.b2(self.c2(x)) + self.bside(self.side(x))).relu()
        x = self.b3(self.c3(self.dropout(x))).relu()
        return self.head(self.dropout(x).mean((2, 3)))


class Chain(nn.Module):
    """Three layers deep."""

    def __init__(self, channels=6):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if not i else channels, channels, 3) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x)).relu()
        return x.mean((2, 3))


class Recurrent(nn.Module):
    """One layer called three times, each call fed by the one before."""

    def __init__(self, gain=0.3):
        super().__init__()
        self.first, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.gain = gain

    def forward(self, x):
        for _ in range(3):
            x = x + self.gain * torch.tanh(self.norm(self.first(x)))
        return x


class Two(nn.Module):
    """Two inputs through one layer; a dict of named inputs."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(8, 2)

    def forward(self, left, right):
        return self.head(torch.cat([self.norm(left), self.norm(right)], 1))


def inputs_of(model, name, data, size=None):
    """Everything that the module ``name`` gets in inference mode, in float64, one tensor for all calls."""
    found = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, given: found.append(given[0].double()))
    was = model.training
    model.eval()
    with torch.no_grad():
        for batch in data.split(size or len(data)):
            model(batch)
    handle.remove()
    model.train(was)
    return torch.cat(found)


def off(model, name, data, size=None, measured=None):
    """How far statistics are from the population's, in standard deviations: those stored, or those ``measured``."""
    x = inputs_of(model, name, data, size)
    x = x.transpose(0, 1).reshape(x.shape[1], -1)
    module = model.get_submodule(name)
    held = (module.running_mean, module.running_var) if measured is None else (measured.mean, measured.variance)
    mean, variance = (torch.as_tensor(each, dtype=torch.float64) for each in held)
    sd = x.var(1, correction=1).sqrt()
    return float(max(((mean - x.mean(1)).abs() / sd).max(), (variance.sqrt() / sd - 1).abs().max()))
