"""`check` of exported models on data: the accuracy is that of the live module, and batches are those they take."""

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.errors import ArgumentError
from tests.api.test_fold import conv_norm, exported, saved, trained

torch = pytest.importorskip("torch", reason="the models are exported from it")
onnx = pytest.importorskip("onnx", reason="one of the formats")
pytest.importorskip("onnxruntime", reason="runs one of the formats")
nn = torch.nn


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporters'
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_accuracy_of_a_file_in_both_modes(form, tmp_path):
    """The statistics are off, so that the modes answer differently; labels are what training mode says."""
    torch.manual_seed(1)
    model = trained(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)))
    x = torch.randn(32, 3, 6, 6)
    place = exported(model, tmp_path, form, (x,))
    with torch.no_grad():
        inference = model(x).argmax(1)
        labels = model.train()(x).argmax(1)
    expected = float((inference == labels).float().mean())
    assert expected < 1
    found = bn.check(place, x.numpy(), labels=labels.numpy(), batch_size=32)
    assert found.accuracy.training == 1
    assert found.accuracy.inference == pytest.approx(expected)


def test_old_operators_have_an_accuracy_in_both_modes(tmp_path):
    """Class 1 of 4, told by channels of 5 by 5: both modes as PyTorch computes them from the arrays of the file."""
    place, x = saved(conv_norm(opset=8, ir=3, as_inputs=True, shape=("n", 3, 7, 7)), tmp_path / "old.onnx"), images()
    held = {each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in onnx.load(place).graph.initializer}
    found = bn.check(place, x, labels=np.ones((20, 5, 5), int))
    for training, accuracy in (False, found.accuracy.inference), (True, found.accuracy.training):
        parts = [held[name].clone() for name in ("mean", "var", "gamma", "beta")]
        convolved = nn.functional.conv2d(torch.tensor(x), held["w"])
        right = nn.functional.batch_norm(convolved, *parts, training=training).argmax(1) == 1
        assert accuracy == pytest.approx(float(right.float().mean()), abs=0.01)  # of 500 answers some may be close


def images():
    return np.random.default_rng(0).normal(size=(20, 3, 7, 7)).astype("f4")


def test_a_model_exported_for_one_batch_size_is_run_so(tmp_path):
    """torch.onnx.export fixes the batch unless told otherwise."""
    place, x = saved(conv_norm(shape=(1, 3, 6, 6)), tmp_path / "m.onnx"), np.ones((20, 3, 6, 6), "f4")
    assert bn.check(place, x).data.samples == 20
    place = saved(conv_norm(shape=(8, 3, 6, 6)), tmp_path / "m.onnx")
    with pytest.raises(ArgumentError, match=r"exported for 8 at a time: give whole batches of 8 \(batch size 8\)"):
        bn.check(place, x)
    with pytest.raises(ArgumentError, match=r"got shape \(8, 2, 6, 6\)$"):
        bn.check(place, x[:8, :2])
