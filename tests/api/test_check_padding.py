"""`bn.check` on padded sequences: mask or lengths beside the inputs, as files and batches, and in live models."""

import copy

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.testing import assert_unchanged

torch = pytest.importorskip("torch", reason="live modules of the real PyTorch")
nn = torch.nn
SAMPLES, POSITIONS, FEATURES = 128, 20, 6
LENGTHS = np.random.default_rng(0).integers(6, POSITIONS + 1, SAMPLES)
MASK = np.arange(POSITIONS) < LENGTHS[:, None]
NOISE = np.random.default_rng(1).normal(2, 1, (SAMPLES, POSITIONS, FEATURES))
X = np.where(MASK[..., None], NOISE, 0).astype("f4")


class Net(nn.Module):
    """A dense layer over each position, normalised; with or without the mask."""

    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        self.dense, self.bn, self.head = nn.Linear(FEATURES, 8), norm(8, momentum=0.5), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.dense(x).swapaxes(1, 2))).mean(-1))


class Masked(Net):
    """The same, told which positions count."""

    def __init__(self):
        from batchnorm.torch import BatchNorm1d

        super().__init__(BatchNorm1d)

    def forward(self, x, mask):
        return self.head(torch.relu(self.bn(self.dense(x).swapaxes(1, 2), mask=mask)).mean(-1))


def trained(model, *more):
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(12):
            model.train()(torch.from_numpy(X), *more)
    return model.eval()


@pytest.fixture(scope="module")
def plain():
    return trained(Net())


def padding(found):
    return next((one.hit for one in found.findings if one.rule.code == "BN406"), None)


@pytest.mark.parametrize("beside", [{"mask": MASK}, {"mask": MASK.astype("f4")}, {"lengths": LENGTHS[:, None]}])
def test_mask_or_lengths_beside_the_input(plain, beside):
    whole = {"x": X, **beside}
    batches = [{name: each[start : start + 32] for name, each in whole.items()} for start in range(0, SAMPLES, 32)]
    labels = np.zeros(SAMPLES, int)
    found = [bn.check(plain, whole), bn.check(plain, batches), bn.check(plain, [(one, labels[:32]) for one in batches])]
    for each in found:
        hit = padding(each)
        assert hit.layer == "bn"
        assert (hit.evidence["source"], hit.evidence["sequences"]) == ("data", int(np.sum(LENGTHS < POSITIONS)))
        assert hit.evidence["moves"] > 0.5
        assert "layer(x, mask=mask)" in hit.remedy
    assert found[2].accuracy is not None


def test_a_model_that_uses_the_mask_is_sound_and_one_with_old_statistics_is_told():
    batch = {"x": X, "mask": MASK}
    model = trained(Masked(), torch.from_numpy(MASK))
    with assert_unchanged(model):
        found = bn.check(model, batch)
    assert not [one for one in found.findings if one.rule.code in ("BN401", "BN406")]
    older = Masked()
    older.load_state_dict(trained(Net()).state_dict())
    hit = padding(bn.check(older.eval(), batch))
    assert hit.evidence["source"] == "layer"
    assert "as the mask tells that the layer gets" in hit.message


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"mask": MASK, "lengths": LENGTHS}, "give one of them"),
        ({"mask": MASK[:, 0]}, r"one row a sample; got shape \(64,\), bool"),
        ({"mask": 2.0 * MASK}, "1 where there is data and 0"),
        ({"lengths": LENGTHS + POSITIONS}, "0 to 20, the longest axis of the input; got shape .*, 2. to 40"),
        ({"lengths": LENGTHS + 0.5}, "whole number"),
        ({"lengths": LENGTHS[:5]}, "same number of samples"),
    ],
)
def test_masks_that_are_none(plain, beside, words):
    with pytest.raises(bn.ArgumentError, match=f"check: .*{words}"):
        bn.check(plain, {"x": X, **beside})
    with pytest.raises(bn.ArgumentError, match="no input of the model beside it"):
        bn.check(plain, {"lengths": LENGTHS})


def test_keras(in_subprocess):
    """Masks that the model makes itself: one that reaches the layer, and one that a convolution destroys."""
    code = "import runpy; runpy.run_path('tests/api/scripts/check_keras_masks.py', run_name='__main__')"
    assert in_subprocess(code, environment={"KERAS_BACKEND": "torch"}).split() == ["dense", "conv", "embedding"]


def test_statistics_without_padding_are_no_gap(plain):
    """What recalibrate makes of the same data: the layer would count padding in training, its statistics are right."""
    model, data = copy.deepcopy(plain), {"x": X, "lengths": LENGTHS}
    assert {one.rule.code for one in bn.check(model, data).findings} & {"BN401", "BN406"} == {"BN406"}
    bn.recalibrate(model, data, batch_size=32)
    found = bn.check(model, data)
    assert not {one.rule.code for one in found.findings} & {"BN401", "BN406"}
    assert found.data.largest.effect < 0.05
    # Without lengths all is data, and the statistics are not those of it.
    assert "BN401" in {one.rule.code for one in bn.check(model, X).findings}
    assert "the stored statistics fit" in bn.explain(model, data=data).layers[0].because[0]
    assert "differ, beginning at bn" in bn.explain(model, data=X).layers[0].because[0]


@pytest.mark.parametrize("beside", [{"mask": MASK}, {"lengths": LENGTHS}])
def test_explain_and_verify_take_the_same_data(plain, beside):
    data = {"x": X, **beside}
    batches = [{name: each[start : start + 32] for name, each in data.items()} for start in range(0, SAMPLES, 32)]
    shown = bn.explain(plain, data=X).layers[0].explained[0].values[0]
    for given in (data, batches):
        assert bn.explain(plain, data=given).layers[0].explained[0].values[0].y == shown.y
        assert bn.verify(plain, data=given, engines=["numpy"]).engines[0].status == "agrees"
        assert bn.verify(plain, copy.deepcopy(plain), data=given).agrees
    with pytest.raises(bn.ArgumentError, match="explain: data holds mask and lengths"):
        bn.explain(plain, data={"x": X, "mask": MASK, "lengths": LENGTHS})
    with pytest.raises(bn.ArgumentError, match=r"verify: lengths must hold .* 0 to 20"):
        bn.verify(plain, data={"x": X, "lengths": LENGTHS + 20})
