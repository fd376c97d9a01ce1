"""ONNX graphs that stop at their layers: what crosses a stop, what is constant, and the memory of it."""

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.engines import onnx_memory

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
h, F = onnx.helper, onnx.TensorProto.FLOAT
GAMMA, BETA = np.array([0.5, 2, 1, 3], "f"), np.array([0, 1, -1, 2], "f")
UNITS = 16 * np.finfo(np.float32).eps
"""A handful of float32 operations on numbers of a few."""


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def norm(entry, output, gamma):
    return h.make_node("BatchNormalization", [entry, gamma, "beta", "mean", "variance"], [output], epsilon=1e-3)


def awkward(path, ir_version=8):
    """A value, a sequence and a branch cross the stops; parameters are computed; two nodes share their statistics."""
    nodes = [
        h.make_node("Identity", ["factor"], ["same"]),
        h.make_node("Mul", ["x", "same"], ["m"]),
        h.make_node("Constant", [], ["gamma"], value=onnx.numpy_helper.from_array(GAMMA)),
        norm("m", "y1", "gamma"),
        h.make_node("SplitToSequence", ["y1"], ["parts"], axis=2),
        norm("y1", "y2", "other"),
        h.make_node("ConcatFromSequence", ["parts"], ["joined"], axis=2),
        h.make_node("Add", ["joined", "y2"], ["s"]),
        h.make_node("Add", ["s", "m"], ["s2"]),
        h.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        h.make_node("Less", ["total", "most"], ["less"]),
        h.make_node(
            "If",
            ["less"],
            ["out"],
            then_branch=h.make_graph([h.make_node("Add", ["s2", "y1"], ["a"])], "then", [], [value("a", None)]),
            else_branch=h.make_graph([h.make_node("Identity", ["s2"], ["b"])], "else", [], [value("b", None)]),
        ),
    ]
    held = {"factor": np.float32(3), "other": GAMMA[::-1].copy(), "beta": BETA, "most": np.float32(1e9)}
    held |= {"mean": np.full(4, 0.5, "f"), "variance": np.full(4, 2, "f")}
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()]
    inputs = [value("x", ["n", 4, 5])]
    if ir_version < 4:  # where what the file holds must be among the inputs
        inputs += [value(name, list(np.shape(array))) for name, array in held.items()]
    graph = h.make_graph(nodes, "g", inputs, [value("out", None)], tensors)
    model = h.make_model(graph, ir_version=ir_version, opset_imports=[h.make_opsetid("", 13)])
    onnx.save(model, path)
    return path


def value(name, shape):
    return h.make_tensor_value_info(name, F, shape)


def by_hand(x, gamma):
    mean, variance = x.mean((0, 2), keepdims=True), x.var((0, 2), keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-3) * gamma[:, None] + BETA[:, None], (mean.ravel(), variance.ravel())


@pytest.mark.parametrize("ir_version", [3, 8])
def test_what_crosses_a_stop(ir_version, tmp_path, rng):
    x = rng.normal(1, 2, (6, 4, 5)).astype("f")
    bench = bn.load(awkward(tmp_path / "net.onnx", ir_version)).bench()
    (record,) = bench.records
    m = 3 * x.astype(np.float64)
    y1, first = by_hand(m, GAMMA)
    y2, second = by_hand(y1, GAMMA[::-1])
    with bench.session():
        trace = bench.trace(x)
        assert trace.feeds == {record.name: {record.name}}
        (out,) = bench.outputs(x, [record.name])
        found = bench.measure(x, [record.name], [record.name])[record.name]
        before = x.copy()
        (plain,) = bench.outputs(x)
    assert np.array_equal(x, before)
    assert np.abs(out - (y1 + y2 + m + y1)).max() < UNITS * np.abs(out).max()
    assert found.count == 60
    mean = (first[0] + second[0]) / 2
    assert np.abs(found.mean - mean).max() < UNITS * 10
    whole = (first[1] + first[0] ** 2 + second[1] + second[0] ** 2) / 2 - mean**2
    assert np.abs(found.variance(0) / whole - 1).max() < UNITS
    wanted = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    assert np.abs(plain - wanted).max() < UNITS * np.abs(wanted).max()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_element_types(dtype, tmp_path, rng):
    kind = h.np_dtype_to_tensor_dtype(np.dtype(dtype))
    held = {"gamma": GAMMA, "beta": BETA, "mean": np.zeros(4), "variance": np.ones(4)}
    tensors = [onnx.numpy_helper.from_array(array.astype(dtype), name) for name, array in held.items()]
    ends = ([h.make_tensor_value_info(name, kind, ["n", 4, 5])] for name in ("x", "y"))
    graph = h.make_graph([norm("x", "y", "gamma")], "g", *ends, tensors)
    onnx.save(h.make_model(graph, ir_version=8, opset_imports=[h.make_opsetid("", 15)]), tmp_path / "net.onnx")
    x = rng.normal(1, 2, (6, 4, 5)).astype(dtype)
    bench = bn.load(tmp_path / "net.onnx").bench()
    name = bench.records[0].name
    with bench.session():
        bench.trace(x)
        (y,) = bench.outputs(x, [name])
    wanted, _ = by_hand(x.astype(np.float64), GAMMA)
    assert y.dtype == dtype
    assert np.abs(y - wanted).max() < 2 * np.finfo(dtype).eps * np.abs(wanted).max()


@pytest.mark.parametrize("shared", ["", "output", "second"])
def test_a_relu_behind_a_layer(shared, tmp_path, rng):
    """Computed with the layer where nobody else takes the layer's own output; else both are there."""
    nodes = [h.make_node("Mul", ["x", "three"], ["m"]), norm("m", "y", "gamma"), h.make_node("Relu", ["y"], ["r"])]
    nodes.append(h.make_node("Add", ["r", "y" if shared == "second" else "three"], ["z"]))
    held = {"gamma": GAMMA, "beta": BETA, "mean": np.zeros(4, "f"), "variance": np.ones(4, "f"), "three": np.float32(3)}
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()]
    outputs = [value(name, None) for name in ("z", *(["y"] if shared == "output" else []))]
    graph = h.make_graph(nodes, "g", [value("x", ["n", 4, "l"])], outputs, tensors)
    onnx.save(h.make_model(graph, ir_version=8, opset_imports=[h.make_opsetid("", 15)]), tmp_path / "net.onnx")
    bench = bn.load(tmp_path / "net.onnx").bench()
    for x in (rng.normal(1, 2, (6, 4, 5)).astype("f"), rng.normal(1, 2, (60, 4, 50)).astype("f")):
        with bench.session():
            z, *own = bench.outputs(x, [bench.records[0].name])
        y, _ = by_hand(3 * x.astype(np.float64), GAMMA)
        wanted = np.maximum(y, 0) + (y if shared == "second" else 3)
        assert np.abs(z - wanted).max() < UNITS * np.abs(wanted).max()
        assert np.abs(own[0] - y).max() < UNITS * np.abs(y).max() if own else shared != "output"


def test_what_is_drawn_is_drawn_once(tmp_path):
    """A node without inputs is no constant where it draws: both layers get the same numbers."""
    nodes = [
        h.make_node("RandomNormal", [], ["r"], shape=[8, 4, 5], mean=3.0),
        h.make_node("Add", ["x", "r"], ["a"]),
        norm("a", "y1", "gamma"),
        h.make_node("Sub", ["y1", "r"], ["b"]),
        h.make_node("Add", ["b", "r"], ["c"]),
        h.make_node("Sub", ["c", "y1"], ["y"]),
    ]
    held = {"gamma": GAMMA, "beta": BETA, "mean": np.zeros(4, "f"), "variance": np.ones(4, "f")}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = h.make_graph(nodes, "g", [value("x", [8, 4, 5])], [value("y", None)], tensors)
    onnx.save(h.make_model(graph, ir_version=8, opset_imports=[h.make_opsetid("", 15)]), tmp_path / "net.onnx")
    bench = bn.load(tmp_path / "net.onnx").bench()
    with bench.session():
        (y,) = bench.outputs(np.zeros((8, 4, 5), "f"), [bench.records[0].name])
    assert np.abs(y).max() < 1e-5


def test_memory_is_given_back(in_subprocess):
    """64 MB of activations, several times over, are gone with the session."""
    code = """
import numpy as np, onnx, onnxruntime as ort
from batchnorm.engines.onnx_memory import give_back, shared

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

h, F = onnx.helper, onnx.TensorProto.FLOAT
names = ["x", "a", "b", "c"]
nodes = [h.make_node("Exp", [one], [other]) for one, other in zip(names, names[1:])]
ends = ([h.make_tensor_value_info(name, F, [None])] for name in ("x", "c"))
model = h.make_model(h.make_graph(nodes, "g", *ends), ir_version=8, opset_imports=[h.make_opsetid("", 14)])
session = ort.InferenceSession(model.SerializeToString(), shared(ort, ort.SessionOptions()))
give_back(ort, onnx)
x = np.zeros(1 << 24, "f")
before = resident()
out = session.run(None, {"x": x})
held = resident()
del out, session
give_back(ort, onnx)
print(held - before, resident() - before)
"""
    held, kept = map(int, in_subprocess(code).split())
    assert held >= 64
    assert kept < held - 48


def test_no_threads_stay():
    """The session that is kept for giving memory back would otherwise hold a thread for each core, for good."""
    assert onnx_memory._idle(ort, onnx).get_session_options().intra_op_num_threads == 1
