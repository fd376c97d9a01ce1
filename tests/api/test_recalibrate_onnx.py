"""Recalibration of ONNX files: a twin of the PyTorch module that was exported, in both methods."""

import copy
import warnings

import numpy as np
import pytest

import batchnorm as bn
from tests.api.networks import Branches, Two
from tests.api.test_recalibrate import images

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def trained(model, *inputs):
    """A model in training that has seen a few batches, so that its statistics are its own."""
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(*(each + torch.randn_like(each) for each in inputs))
    return model.eval()


def export(model, inputs, path, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The newer exporter takes ten times as long; PRESERVE keeps batch normalizations out of the convolutions.
        torch.onnx.export(model, inputs, path, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, **more)
    return path


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    torch.manual_seed(0)
    model = trained(Branches(), torch.from_numpy(images(8)))
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    return model, export(model, (torch.from_numpy(images(2)),), path, opset_version=17, **names)


def by_mean(layers):
    """Statistics in the order of their first new mean: exporters rename layers."""
    return sorted((layer.after.mean, layer.after.variance) for layer in layers if layer.skipped is None)


@pytest.mark.parametrize("method", ["one-pass", "sequential"])
def test_an_exported_model_gets_what_its_twin_gets(twin, tmp_path, method):
    module, path = twin
    ours = bn.recalibrate(copy.deepcopy(module), images(50), method=method, batch_size=16, skip=["unused"])
    with bn.testing.assert_unchanged(path):
        theirs = bn.recalibrate(path, images(50), method=method, batch_size=16, out=tmp_path / "out.onnx")
    assert theirs.passes == ours.passes
    assert len(theirs.layers) == 4
    mine = [layer for layer in ours.layers if layer.skipped is None]
    for layer in theirs.layers:
        twin_of = min(mine, key=lambda each: np.abs(each.before.mean - layer.before.mean).max())
        assert layer.count == twin_of.count
        # Two engines' convolutions in float32, four layers deep: units of 6e-8 of activations of a few.
        np.testing.assert_allclose(layer.after.mean, twin_of.after.mean, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(layer.after.variance, twin_of.after.variance, rtol=2e-5)
    written = {record.name: record for record in bn.load(tmp_path / "out.onnx").layers}
    for layer in theirs.layers:
        np.testing.assert_array_equal(written[layer.name].moving_mean, layer.after.mean.astype("f"))


def test_nothing_else_of_the_model_changes(twin, tmp_path):
    bn.recalibrate(twin[1], images(20), out=tmp_path / "out.onnx")
    old, new = onnx.load(twin[1]), onnx.load(tmp_path / "out.onnx")
    statistics = {name for node in old.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    for model in (old, new):
        for tensor in model.graph.initializer:
            if tensor.name in statistics:
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
    (mark,) = new.metadata_props
    assert mark.key == "batchnorm.recalibrated"
    del new.metadata_props[:]
    assert old == new
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_external_data_stay_where_they_are(twin, tmp_path):
    source = tmp_path / "big.onnx"
    onnx.save_model(onnx.load(twin[1]), source, save_as_external_data=True, location="big.data", size_threshold=0)
    with bn.testing.assert_unchanged(source), bn.testing.assert_unchanged(tmp_path / "big.data"):
        found = bn.recalibrate(source, images(20), out=tmp_path / "out.onnx")
        (tmp_path / "other").mkdir()
        bn.recalibrate(source, images(20), out=tmp_path / "other" / "out.onnx")
    for target in (tmp_path / "out.onnx", tmp_path / "other" / "out.onnx"):
        y = bn.load(target).run(images(3))[0]
        assert np.isfinite(y).all()
        np.testing.assert_array_equal(bn.load(target).layers[0].moving_mean, found.layers[0].after.mean.astype("f"))


def test_a_shared_layer_takes_the_union(tmp_path):
    model = trained(Two(), torch.randn(8, 4), torch.randn(8, 4))
    axes = {"left": {0: "n"}, "right": {0: "n"}}
    path = export(
        model, (torch.randn(2, 4), torch.randn(2, 4)), tmp_path / "m.onnx", input_names=["left", "right"],
        dynamic_axes=axes, opset_version=17, do_constant_folding=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    data = {"left": rng.normal(0, 1, (40, 4)).astype("f"), "right": rng.normal(5, 3, (40, 4)).astype("f")}
    found = bn.recalibrate(path, data, method="sequential", batch_size=16, out=tmp_path / "out.onnx")
    first, second = found.layers
    assert second.skipped == f"holds the statistics of {first.name}"
    union = np.concatenate([data["left"], data["right"]]).astype(np.float64)
    np.testing.assert_allclose(first.after.mean, union.mean(0), rtol=1e-6)
    np.testing.assert_allclose(first.after.variance, union.var(0, ddof=1), rtol=1e-6)
    for record in bn.load(tmp_path / "out.onnx").layers:
        np.testing.assert_array_equal(record.moving_mean, first.after.mean.astype("f"))
