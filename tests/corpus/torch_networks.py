"""Small networks in PyTorch: six architectures for the digits of scikit-learn."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = (IMAGES.reshape(-1, 1, 8, 8) / 16).astype("float32")
DATA = {"conv1d": IMAGES[:, 0], "mlp": IMAGES.reshape(-1, 64)}
LABELS = LABELS.astype("int64")


def data(arch):
    """The input of an architecture."""
    return DATA.get(arch, IMAGES)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels, **norm):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = (nn.BatchNorm2d(channels, **norm) for _ in range(2))

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Dense(nn.Module):
    """Normalised, activated, convolved, and joined to what came in."""

    def __init__(self, channels, more, **norm):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, **norm)
        self.conv = nn.Conv2d(channels, more, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], dim=1)


def unit(convolution, norm):
    return nn.Sequential(convolution, norm, nn.ReLU())


def build(arch, *, bias=False, **norm):
    """An untrained network; ``norm`` goes to its batch normalizations."""

    def conv(a, b, size=3, **how):
        return unit(nn.Conv2d(a, b, size, padding=size // 2, bias=bias, **how), nn.BatchNorm2d(b, **norm))

    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if arch == "resnet":
        parts = [conv(1, 8), Block(8, **norm), Block(8, **norm), *pooled, nn.Linear(8, 10)]
    elif arch == "mobile":
        parts = [conv(1, 8), conv(8, 8, groups=8), conv(8, 16, 1), *pooled, nn.Linear(16, 10)]
    elif arch == "vgg":
        parts = [conv(1, 8), conv(8, 8), nn.MaxPool2d(2), conv(8, 16), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)]
    elif arch == "dense":
        parts = [nn.Conv2d(1, 8, 3, padding=1, bias=False), Dense(8, 4, **norm), Dense(12, 4, **norm),
                 nn.BatchNorm2d(16, **norm), nn.ReLU(), *pooled, nn.Linear(16, 10)]  # fmt: skip
    elif arch == "conv1d":
        parts = [unit(nn.Conv1d(8, 16, 3, padding=1, bias=bias), nn.BatchNorm1d(16, **norm)) for _ in range(1)]
        parts += [
            unit(nn.Conv1d(16, 16, 3, padding=1, bias=bias), nn.BatchNorm1d(16, **norm)),
            nn.Flatten(),
            nn.Linear(128, 10),
        ]
    else:
        parts = [unit(nn.Linear(64, 24, bias=bias), nn.BatchNorm1d(24, **norm)),
                 unit(nn.Linear(24, 24, bias=bias), nn.BatchNorm1d(24, **norm)), nn.Linear(24, 10)]  # fmt: skip
    return nn.Sequential(*parts)


def fit(net, arch, *, steps=200, batch=64, change=None, rate=0.1, seed=0):
    """Train on the digits for so many steps, at a rate that falls to 0."""
    x = data(arch) if change is None else change(data(arch))
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.SGD(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in range(steps):
        pick = rng.integers(0, len(x), batch)
        loss = nn.functional.cross_entropy(net(torch.from_numpy(x[pick])), torch.from_numpy(LABELS[pick]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def norms(net):
    """Name -> batch normalization, in the order of the modules."""
    return {name: each for name, each in net.named_modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)}
