"""TorchScript is run as it is, and shows what goes in and out of the layers that lie in no branch."""

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.errors import Refused
from batchnorm.testing import assert_unchanged
from tests.engines.bounds import formula

torch = pytest.importorskip("torch", reason="archives of the real PyTorch")
nn = torch.nn

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Net(nn.Module):
    """One layer called twice, one in a branch; two outputs."""

    def __init__(self):
        super().__init__()
        self.twice = nn.BatchNorm2d(3)
        self.branch = nn.BatchNorm2d(3, eps=0.5)

    def forward(self, x, deep: bool = False):
        y = self.twice(torch.sin(self.twice(x)))
        if bool(x.sum() > 0):
            y = self.branch(y)
        return y, y.mean()


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    torch.manual_seed(0)
    model = Net()
    for _ in range(5):
        model(torch.randn(6, 3, 4, 4).abs() * 2 + 1)
    path = tmp_path_factory.mktemp("script") / "net.pt"
    torch.jit.script(model.eval()).save(path)
    return path, model


X = np.random.default_rng(0).normal(1, 2, (5, 3, 4, 4)).astype(np.float32)


def test_outputs_and_calls(script):
    path, model = script
    read = bn.load(path, trust=True)
    with assert_unchanged(path):
        (y, mean), calls = read.run({"x": X, "deep": np.bool_(False)}, capture=["twice"])
    with torch.no_grad():
        expected, average = model(torch.from_numpy(X))
    np.testing.assert_array_equal(y, expected.numpy())
    assert mean == average.numpy()
    record = next(one for one in read.layers if one.name == "twice")
    (first, second) = calls["twice"]
    np.testing.assert_array_equal(first[0], X)
    np.testing.assert_array_equal(second[0], torch.sin(torch.from_numpy(first[1])).numpy())
    for x, y in (first, second):
        wanted, bound = formula(record, x)
        assert np.all(np.abs(y - wanted) <= bound)


def test_a_layer_in_a_branch_is_not_shown(script):
    read = bn.load(script[0], trust=True)
    given = {"x": X, "deep": np.bool_(False)}
    with pytest.raises(Refused, match="branch"):
        read.run(given, capture=["branch"])
    _, calls = read.run(given, capture=["twice", "branch"])
    assert (len(calls["twice"]), len(calls["branch"])) == (2, 0)


def test_input_of_another_kind(script):
    read = bn.load(script[0], trust=True)
    wide = read.run({"x": X.astype(np.float64), "deep": np.bool_(False)})[0]  # float64 becomes the module's float32
    np.testing.assert_array_equal(wide[0], read.run({"x": X, "deep": np.bool_(False)})[0][0])
    with pytest.raises(bn.ArgumentError, match="'x'"):
        read.run({"image": X})
    with pytest.raises(bn.ModelFileError, match="PyTorch refuses it"):
        read.run({"x": X[:, :2], "deep": np.bool_(False)})
    with pytest.raises(bn.UnknownLayer):
        read.run({"x": X, "deep": np.bool_(False)}, capture=["none"])
