"""A real training: a small residual network on scikit-learn's digits, with torch's layers and with ours."""

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm.torch as bt

# Threads that wait for one another take a hundred times as long on a busy machine.
pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 30


class Residual(nn.Module):
    def __init__(self, norm, fused):
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(i, 16, 3, padding=1) for i in (1, 16, 16))
        self.bn0, self.bn1, self.bn2 = (norm(16) for _ in range(3))
        self.head = nn.Linear(16 * 64, 10)
        self.fused = fused

    def forward(self, x):
        if self.fused:
            x = self.bn0(self.stem(x))
            return self.head(self.bn2(self.second(self.bn1(self.first(x))), x).flatten(1))
        x = torch.relu(self.bn0(self.stem(x)))
        y = torch.relu(self.bn1(self.first(x)))
        return self.head(torch.relu(self.bn2(self.second(y)) + x).flatten(1))


def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    return torch.from_numpy((x / 16).astype(np.float32)).reshape(-1, 1, 8, 8), torch.from_numpy(y)


def losses(norm, fused=False):
    images, labels = digits()
    torch.manual_seed(0)
    model = Residual(norm, fused)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.randperm(len(images))
    curve = []
    for step in range(STEPS):
        chosen = order[step * 48 : (step + 1) * 48]
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    model.eval()
    with torch.no_grad():
        held_out = nn.functional.cross_entropy(model(images[order[-256:]]), labels[order[-256:]]).item()
    return np.array(curve), held_out


@pytest.fixture(scope="module")
def theirs():
    return losses(nn.BatchNorm2d)


@pytest.mark.parametrize(("layer", "fused"), [(bt.BatchNorm2d, False), (bt.BatchNormAct2d, True)])
def test_the_loss_curve_is_that_of_torchs_layer(theirs, layer, fused):
    curve, held_out = losses(layer, fused)
    assert theirs[0][-1] < 0.5 < theirs[0][0]  # it does learn something
    np.testing.assert_allclose(curve, theirs[0], rtol=0, atol=1e-4)
    assert held_out == pytest.approx(theirs[1], abs=1e-3)  # 30 updates of the running statistics on top
