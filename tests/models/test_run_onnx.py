"""ONNX models run in onnxruntime; the numbers of ONNX' own suites, and what its evaluators give beside ours."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import batchnorm as bn
from batchnorm.errors import ArgumentError, ModelFileError, Refused, UnknownLayer
from batchnorm.models import open_model
from batchnorm.models.onnx_live import from_live
from batchnorm.testing import assert_unchanged
from tests.engines.bounds import formula

from .test_onnx import NAMES, ROLES, VALUES, held, model, node_cases, norm

onnxruntime = pytest.importorskip("onnxruntime", reason="the engine is the real onnxruntime")

X = np.random.default_rng(0).normal(size=(5, 3, 4)).astype("f4")
CONVERTED = Path(onnx.__file__).parent / "backend" / "test" / "data" / "pytorch-converted"


def written(path, proto):
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("file", ["net.onnx", "external.onnx", "old.onnx"])
def test_what_torch_exports_runs_to_what_torch_gave(torch_files, file):
    names = [record.name for record in open_model(torch_files / file).layers]
    with assert_unchanged(torch_files / file):
        read = open_model(torch_files / file)
        outputs, captured = read.run(np.ones((6, 3, 8, 8)), capture=names)
    # Five layers of some hundred float32 operations each, on values below 10.
    np.testing.assert_allclose(outputs, np.load(torch_files / "y.npy"), rtol=1e-4, atol=1e-4)
    for record in read.layers:
        for x, got in captured[record.name]:
            y, bound = formula(record, x)
            assert np.all(np.abs(got - y) <= bound), record.name


def test_a_live_proto_is_run_and_stays_as_it_is():
    proto = model([helper.make_node("Sin", ["x"], ["h"]), norm(inputs=("h", *NAMES), epsilon=1e-3)])
    before = proto.SerializeToString()
    read = bn.load(proto)
    with assert_unchanged():
        y, captured = read.run(X, capture=["bn"])
    ((h, got),) = captured["bn"]
    np.testing.assert_allclose(h, np.sin(X), rtol=1e-6)
    np.testing.assert_array_equal(got, y)
    want, bound = formula(read.layers[0], h)
    assert np.all(np.abs(y - want) <= bound)
    with pytest.raises(ArgumentError):
        read.run(X[:, :2])
    assert proto.SerializeToString() == before


def test_several_inputs_and_outputs_go_by_name():
    proto = model(
        [helper.make_node("Add", ["x", "b2"], ["h"]), norm(inputs=("h", *NAMES))],
        inputs=[("b2", ["n", 3, 4])], outputs=("y", "h"),
    )  # fmt: skip
    read = from_live(proto)
    outputs, captured = read.run({"x": X, "b2": X}, capture=["bn"])
    assert sorted(outputs) == ["h", "y"]
    np.testing.assert_array_equal(outputs["h"], captured["bn"][0][0])
    np.testing.assert_array_equal(read.run([X, X])[0]["y"], outputs["y"])
    with pytest.raises(ArgumentError) as caught:
        read.run({"x": X, "c": X})
    assert str(caught.value) == (
        "the model's inputs are 'x' of shape (any, 3, 4) and dtype float32; 'b2' of shape (any, 3, 4) and dtype "
        "float32; got 'x', 'c'"
    )
    with pytest.raises(ArgumentError, match="wants 2 inputs"):
        read.run(X)


def test_types_that_do_not_fit_are_refused_and_numbers_are_not():
    read = from_live(model([norm()]))
    with pytest.raises(ArgumentError, match=r"'x' of shape \(any, 3, 4\) and dtype float32; got dtype <U1"):
        read.run(np.full((1, 3, 4), "a"))
    np.testing.assert_array_equal(read.run(X.astype("f8"))[0], read.run(X)[0])
    with pytest.raises(UnknownLayer, match="'none'; it has 'bn'"):
        read.run(X, capture=["none"])


def test_a_model_the_engine_refuses(tmp_path):
    odd = model([helper.make_node("NoSuchThing", ["x"], ["h"]), norm(inputs=("h", *NAMES))])
    path = written(tmp_path / "m.onnx", odd)
    with assert_unchanged(path), pytest.raises(ModelFileError, match="onnxruntime refuses it") as caught:
        open_model(path).run(X)
    assert "\n" not in str(caught.value)


def test_an_error_in_the_middle_leaves_the_file_alone(tmp_path):
    proto = model([norm(outputs=("h",)), helper.make_node("Reshape", ["h", "shape"], ["y"])],
                  [*(held(name) for name in NAMES), numpy_helper.from_array(np.array([7, 11]), "shape")])  # fmt: skip
    path = written(tmp_path / "m.onnx", proto)
    with assert_unchanged(path), pytest.raises(ModelFileError, match="onnxruntime refuses it"):
        open_model(path).run(X, capture=["bn"])


def test_inside_a_branch_nothing_can_be_shown():
    body = [helper.make_graph([norm(outputs=(name,), name=name)], name,
                              [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
            for name in ("then", "else")]  # fmt: skip
    proto = model(
        [helper.make_node("ReduceSum", ["x"], ["s0"], keepdims=0),
         helper.make_node("Greater", ["s0", "zero"], ["c"]),
         helper.make_node("If", ["c"], ["y"], then_branch=body[0], else_branch=body[1])],
        [*(held(name) for name in NAMES), numpy_helper.from_array(np.float32(0), "zero")],
    )  # fmt: skip
    read = from_live(proto)
    read.run(X)
    with pytest.raises(Refused, match="inside a branch"):
        read.run(X, capture=[read.layers[0].name])


def test_without_onnxruntime_the_install_line(tmp_path, in_subprocess):
    path = written(tmp_path / "m.onnx", model([norm()]))
    code = f"""
import sys
sys.modules["onnxruntime"] = None
import numpy as np
from batchnorm.errors import MissingExtra
from batchnorm.models import open_model
try: open_model({str(path)!r}).run(np.ones((1, 3, 4)))
except MissingExtra as error: print(error)
"""
    assert "pip install 'batchnorm[onnx]'" in in_subprocess(code)


def test_memory_is_constant_in_the_number_of_samples(tmp_path, in_subprocess):
    """Many batches through one session: what it takes after 20 is what it takes after 200."""
    path = written(tmp_path / "m.onnx", model([norm()]))
    code = f"""
import json, resource
import numpy as np
from batchnorm.models import open_model
read, peaks = open_model({str(path)!r}), []
for batches in (20, 180):
    for _ in range(batches):
        read.run(np.ones((20_000, 3, 4), "f4"), capture=["bn"])  # 1 MB in, 1 MB out
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""
    first, last = json.loads(in_subprocess(code).splitlines()[-1])
    assert last - first < 20_000  # KiB; all 180 batches would be 360 MB


# The proof on ONNX' own suites.


def suites():
    """Name -> (model, inputs, output) of each case that ONNX ships."""
    found = {}
    for case in node_cases():
        inputs, outputs = case.data_sets[0]
        found[case.name] = case.model, list(inputs), np.asarray(outputs[0])
    for folder in sorted(CONVERTED.glob("test_BatchNorm*")):
        data = folder / "test_data_set_0"
        x, y = (numpy_helper.to_array(onnx.load_tensor(data / f"{side}_0.pb")) for side in ("input", "output"))
        found[folder.name] = onnx.load(folder / "model.onnx"), [x], y
    return found


SUITES = suites()


def ours(proto, inputs):
    """The record of the reader and the float64 formula; parameters that are inputs of the graph come from there."""
    (record,) = from_live(proto).layers
    x = np.asarray(inputs[0], np.float64)
    if record.moving_mean is None:
        record = record.replace(**dict(zip(ROLES, inputs[1:5], strict=True)))
    if record.mode == "training":
        axes = (0, *range(2, x.ndim))
        record = record.replace(moving_mean=x.mean(axes), moving_variance=x.var(axes))
    return formula(record, x)


def others(proto, inputs):
    """What ONNX' reference evaluator and onnxruntime give: the output, or the error in a line."""
    from onnx.reference import ReferenceEvaluator

    fed = dict(zip((value.name for value in proto.graph.input), inputs, strict=False))
    for name, run in (
        ("reference evaluator", lambda: ReferenceEvaluator(proto).run(None, fed)[0]),
        ("onnxruntime", lambda: onnxruntime.InferenceSession(proto.SerializeToString()).run(None, fed)[0]),
    ):
        try:
            yield name, np.asarray(run())
        except Exception as error:  # recorded, whatever it is
            yield name, f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"


def beside(record_property, proto, inputs, y):
    """Keep what the others give in the test report; nothing is asserted of it, they may be mended."""
    for name, got in others(proto, inputs):
        shown = got if isinstance(got, str) else f"{np.abs(got - y).max():.2g}"
        record_property(name, shown)


@pytest.mark.parametrize("name", SUITES)
def test_the_cases_of_onnx_are_right(name, record_property):
    proto, inputs, want = SUITES[name]
    y, bound = ours(proto, inputs)
    # The suite's own outputs are float32 as well, whence twice the bound; its training cases sum 60 numbers.
    assert np.all(np.abs(want - y) <= (2 + 60 * (from_live(proto).layers[0].mode == "training")) * bound)
    beside(record_property, proto, inputs, y)


def test_there_are_all_of_them():
    assert sum(name.startswith("test_batchnorm") for name in SUITES) == 4
    assert sum(name.startswith("test_BatchNorm") for name in SUITES) == 5


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, onnx.defs.onnx_opset_version()])
def test_every_version_in_inference(opset, record_property):
    proto = model([norm(epsilon=1e-2)], opset=opset)
    y, _ = ours(proto, [X])
    shape = (3, 1)
    gamma, beta, mean, variance = (VALUES[name].astype("f8").reshape(shape) for name in NAMES)
    np.testing.assert_allclose(y, gamma * (X - mean) / np.sqrt(variance + 1e-2) + beta, rtol=1e-14, atol=1e-14)
    beside(record_property, proto, [X], y)


@pytest.mark.parametrize("opset", [14, 15])
def test_training_mode_is_told(opset, record_property):
    """onnxruntime#29790: with equal initializers and only Y used its output was wrong; ours does not run it."""
    ones = {name: np.ones(3, "f4") for name in NAMES}
    proto = model([norm(training_mode=1)], [held(name, ones) for name in NAMES], opset=opset)
    (record,) = from_live(proto).layers
    assert record.mode == "training"
    y, _ = ours(proto, [X])
    np.testing.assert_allclose(y.mean((0, 2)), 1, atol=1e-12)
    beside(record_property, proto, [X], y)


def test_the_reports_of_the_other_evaluators_are_whole():
    """What is recorded is a number or an error, for each of them."""
    for name, got in others(model([norm()]), [X]):
        assert name
        assert isinstance(got, (str, np.ndarray))
