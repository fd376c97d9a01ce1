"""`check --labels` on exported models: the accuracy in both modes is that of the live module."""

import numpy as np
import pytest

import batchnorm as bn
from tests.api.test_fold import exported, trained

torch = pytest.importorskip("torch", reason="the models are exported from it")
pytest.importorskip("onnx", reason="one of the formats")
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
