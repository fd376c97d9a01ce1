"""Networks of the second part in PyTorch: none of them stands in the first."""

import numpy as np
import torch
from torch import nn

from tests.corpus.holdout.samples import known, shapes, waves, wines

KNOWN = known()
LABELS = {"shapes_chw": shapes()[1], "waves_cf": waves()[1], "wine": wines()[1], "wine_raw": wines()[1]}
LABELS |= {"padded_cf": LABELS["waves_cf"]}


def conv(a, b, size=3, *, bias=False, act=nn.SiLU, norm=None, **how):
    parts = [nn.Conv2d(a, b, size, padding=size // 2, bias=bias, **how), nn.BatchNorm2d(b, **norm or {})]
    return nn.Sequential(*parts, act()) if act else nn.Sequential(*parts)


class Squeeze(nn.Module):
    """Every channel weighed by what all of them hold."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, 4), nn.SiLU(), nn.Linear(4, channels), nn.Sigmoid())

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class Inverted(nn.Module):
    def __init__(self, channels, norm):
        super().__init__()
        wide = channels * 2
        self.expand = conv(channels, wide, 1, norm=norm)
        self.dw = conv(wide, wide, groups=wide, norm=norm)
        self.se = Squeeze(wide)
        self.project = conv(wide, channels, 1, act=None, norm=norm)

    def forward(self, x):
        return x + self.project(self.se(self.dw(self.expand(x))))


class UNet(nn.Module):
    def __init__(self, bias=False, norm=None):
        super().__init__()
        self.down = conv(3, 8, act=nn.ReLU, bias=bias, norm=norm)
        self.deep = conv(8, 16, act=nn.ReLU, bias=bias, norm=norm)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2, bias=bias)
        self.up_bn = nn.BatchNorm2d(8, **norm or {})
        self.out = conv(16, 8, act=nn.ReLU, bias=bias, norm=norm)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        down = self.down(x)
        x = torch.relu(self.up_bn(self.up(self.deep(nn.functional.max_pool2d(down, 2)))))
        return self.head(self.out(torch.cat([x, down], 1)).mean((2, 3)))


class Recurrent(nn.Module):
    """Convolution over time and a GRU; ``over`` says what the layer behind the convolution normalises."""

    def __init__(self, over="channels", dropout=0.0, twice=False, norm=None):
        super().__init__()
        self.over = over
        self.conv = nn.Conv1d(3, 12, 3, padding=1, bias=False)
        self.conv_bn = nn.BatchNorm1d(12 if over == "channels" else 16, **norm or {})
        self.again = nn.BatchNorm1d(12) if twice else nn.Identity()
        self.gru = nn.GRU(12, 8, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(8, 12, bias=False)
        self.fc_bn = nn.BatchNorm1d(12, **norm or {})
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.conv(x)
        x = self.conv_bn(x) if self.over == "channels" else self.conv_bn(x.transpose(1, 2)).transpose(1, 2)
        x, _ = self.gru(torch.relu(self.again(x)).transpose(1, 2))
        return self.head(torch.relu(self.fc_bn(self.fc(self.drop(x[:, -1])))))


class Siamese(nn.Module):
    """One normalization behind two convolutions."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (nn.Conv2d(3, 8, 3, bias=False) for _ in range(2))
        self.shared = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        a, b = self.shared(self.left(x)), self.shared(self.right(x.flip(3)))
        return self.head(torch.relu(a - b).mean((2, 3)))


class Aside(nn.Module):
    """A network with a second head that training wanted."""

    def __init__(self):
        super().__init__()
        self.body = conv(3, 8)
        self.aux = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.body(x)
        return self.head(x.mean((2, 3))), self.aux(x).mean((2, 3))


def build(arch, *, first=False, **how):
    """An untrained network."""
    norm = how.pop("norm", None)
    if arch == "efficient":
        body = [conv(3, 8, stride=2, norm=norm), Inverted(8, norm), Inverted(8, norm)]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    if arch == "unet":
        return UNet(norm=norm, **how)
    if arch == "recurrent":
        return Recurrent(norm=norm, **how)
    if arch == "siamese":
        return Siamese()
    layers = [nn.BatchNorm1d(13, **norm or {})] if first else []
    for a, b in ((13, 16), (16, 16)):
        layers += [nn.Linear(a, b, bias=how.get("bias", False)), nn.BatchNorm1d(b, **norm or {}), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 3))


DATA = {
    "efficient": "shapes_chw",
    "unet": "shapes_chw",
    "siamese": "shapes_chw",
    "recurrent": "waves_cf",
    "mlp": "wine",
}


def fit(net, data, *, steps=120, batch=48, rate=3e-3, scale=1.0, optimizer=None, seed=0, x=None):
    """Train on so many batches, and leave the network in inference mode."""
    x, y = (KNOWN[data] if x is None else x), torch.from_numpy(LABELS[data]).long()
    rng = np.random.default_rng(seed)
    optimizer = optimizer or torch.optim.AdamW(net.parameters(), rate)
    net.train()
    for _ in range(steps):
        pick = rng.integers(0, len(x), batch)
        out = net(torch.from_numpy(x[pick] * np.float32(scale)))
        loss = nn.functional.cross_entropy(out[0] if isinstance(out, tuple) else out, y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def made(arch, *, data=None, train=None, **how):
    """A trained network."""
    torch.manual_seed(7)
    return fit(build(arch, **how), data or DATA[arch], **train or {})


def norms(net):
    return {name: each for name, each in net.named_modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)}
