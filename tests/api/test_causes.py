"""Why two models part: each cause planted in a copy of a small network of PyTorch, and named at its layer."""

import copy

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.testing import assert_unchanged

torch = pytest.importorskip("torch", reason="live modules of the real PyTorch")
nn = torch.nn


class Wrong(nn.BatchNorm2d):
    """A layer whose engine is off: the constants are right, what it makes of them is not."""

    def forward(self, x):
        return super().forward(x) * 1.001


class Folding(nn.BatchNorm2d):
    """Right, in the other order of operations: the rounding of x*scale + shift."""

    def forward(self, x):
        scale = self.weight / torch.sqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Net(nn.Module):
    """Three batch normalizations, the second called twice."""

    def __init__(self, kind=nn.BatchNorm2d, **settings):
        super().__init__()
        self.conv = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.first, self.second, self.third = nn.BatchNorm2d(4), kind(4, **settings), nn.BatchNorm2d(4)

    def forward(self, x):
        x = torch.relu(self.first(self.conv[0](x)))
        x = torch.relu(self.second(self.conv[1](x)) + self.second(x))
        return self.third(self.conv[2](x))


def trained():
    torch.manual_seed(0)
    model = Net()
    for norm in (model.first, model.second, model.third):
        nn.init.normal_(norm.weight, 1, 0.2)
        nn.init.normal_(norm.bias)
    for _ in range(30):
        model(torch.randn(8, 4, 6, 6) * 2 + 1)
    return model.eval()


BASE = trained()
X = np.random.default_rng(0).normal(1, 2, (12, 4, 6, 6)).astype(np.float32)


def twin(kind=nn.BatchNorm2d, **settings):
    made = Net(kind, **settings)
    made.load_state_dict(BASE.state_dict())
    return made.eval()


def parting(other, **options):
    with assert_unchanged(BASE, other):
        return bn.verify(BASE, other, data=X, **options)


def first(other, **options):
    found = parting(other, **options)
    assert not found.agrees
    return found.comparison.first_diverging


def test_no_cause_where_nothing_was_done():
    found = parting(twin())
    assert found.agrees
    assert [pair.a for pair in found.comparison.pairs] == ["first", "second", "third"]
    assert [pair.count for pair in found.comparison.pairs] == [X.size, 2 * X.size, X.size]
    assert found.comparison.outputs.max_abs == 0


def test_another_order_of_operations_is_rounding_and_no_cause():
    found = parting(twin(Folding))
    assert found.agrees
    assert 0 < found.comparison.pairs[1].max_abs < 1e-5


def test_constant():
    found = first(twin(eps=1e-2))
    assert (found.a, found.cause, found.constants) == ("second", "constant", ("epsilon",))
    assert found.input_max_abs == 0


def test_engine():
    found = first(twin(Wrong))
    assert (found.a, found.cause, found.constants) == ("second", "engine", ())
    assert "second model's output is off what its own constants give" in found.why
    swapped = bn.verify(twin(Wrong), BASE, data=X).comparison.first_diverging
    assert "first model's output" in swapped.why


def test_an_engine_that_is_wrong_wins_over_a_constant_that_differs_little():
    found = first(twin(Wrong, eps=1.0001e-5))
    assert (found.a, found.cause) == ("second", "engine")


def test_precision_of_stored_constants():
    rounded = twin()
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            held = getattr(rounded.second, name)
            held.copy_(held.bfloat16().float())
    found = first(rounded)
    assert (found.a, found.cause) == ("second", "precision")
    assert "bfloat16" in found.why


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_of_the_arithmetic(dtype):
    """Coarser arithmetic agrees to its own rounding, and is the cause where the user allows less."""
    coarse = copy.deepcopy(BASE).to(dtype)
    found = parting(coarse)
    name = str(dtype).removeprefix("torch.")
    assert found.agrees
    assert any(name in note for note in found.notes)
    found = first(coarse, rtol=1e-6, atol=1e-6)
    assert (found.a, found.cause) == ("first", "precision")


def test_what_comes_before():
    moved = twin()
    with torch.no_grad():
        moved.conv[1].weight[0, 0, 0, 0] += 0.5
    found = first(moved)
    assert (found.a, found.cause) == ("second", "input")
    assert "before it" in found.why


def test_a_difference_after_the_last_layer_is_one_of_the_outputs():
    class Headed(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.body, self.factor = twin(), factor

        def forward(self, x):
            return self.body(x) * self.factor

    found = bn.verify(Headed(1.0).eval(), Headed(1.5).eval(), data=X)
    assert found.comparison.first_diverging is None
    assert not found.comparison.outputs.agrees
    assert not found.agrees
    assert "part in what lies between or after" in " ".join(str(found).split())


def test_a_layer_that_is_called_once_less():
    class Once(Net):
        def forward(self, x):
            x = torch.relu(self.first(self.conv[0](x)))
            return self.third(self.conv[2](torch.relu(self.second(self.conv[1](x)))))

    once = Once()
    once.load_state_dict(BASE.state_dict())
    found = first(once.eval())
    assert (found.a, found.cause) == ("second", "input")
    assert "2 and 1 times" in found.why
