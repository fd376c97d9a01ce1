"""What a cut ONNX graph hands over: results that were given, types without arrays, sparse arrays, nodes out of order.

Each graph has two layers. In inference mode its results are those of onnxruntime on the whole graph, to the bit: pieces
run the same operators on the same values.
"""

import numpy as np
import pytest

import batchnorm as bn

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
h, types = onnx.helper, onnx.TensorProto
F = types.FLOAT
HELD = {"gamma": np.array([0.5, 2, 1, 3], "f"), "beta": np.array([0, 1, -1, 2], "f")}
HELD |= {"mean": np.full(4, 0.5, "f"), "variance": np.full(4, 2, "f"), "other": np.full(4, 0.25, "f")}


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(1, 2, (6, 4, 5)).astype("f")


def value(name, kind=F, shape=None):
    return h.make_tensor_value_info(name, kind, shape)


def norm(entry, output, mean="mean", gamma="gamma"):
    return h.make_node("BatchNormalization", [entry, gamma, "beta", mean, "variance"], [output], epsilon=1e-3)


def saved(folder, nodes, outputs, held=HELD, functions=(), opset=19, **more):
    """A file with one input, ``x``."""
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in held.items()]
    entries = [value("x", F, ["n", 4, 5])]
    graph = h.make_graph(nodes, "g", entries, [value(name) for name in outputs], tensors, **more)
    opsets = [h.make_opsetid("", opset), h.make_opsetid("own", 1)]
    model = h.make_model(graph, ir_version=9, opset_imports=opsets, functions=list(functions))
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def both(path, x):
    """Results of the pieces, stopping at each layer, and of the whole graph."""
    bench = bn.load(path).bench()
    with bench.session():
        bench.measure(x, [record.name for record in bench.records])
        bench.trace(x)
        found = bench.outputs(x)
        stopped = bench._run(x, {record.name for record in bench.records}, (), bench._outputs, lambda *_: None)
    for name, array in zip(bench._outputs, found, strict=True):
        np.testing.assert_array_equal(stopped[name], array)
    return found, ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})


def between(first, last):
    """Nodes that give ``v`` from ``a`` before the first layer, and ``b`` from it behind that; the sum is the second's.

    What ``first`` and ``last`` compute crosses the cut.
    """
    sums = [h.make_node("Add", ["y1", "b"], ["c"])]
    return [h.make_node("Relu", ["x"], ["a"]), *first, norm("a", "y1"), *last, *sums, norm("c", "y2", "other")]


def test_a_result_that_was_given(tmp_path, x):
    """Exporters make an input an output, where a module returns it as it is."""
    nodes = [norm("x", "y1"), h.make_node("Mul", ["y1", "x"], ["a"]), norm("a", "y2", "other")]
    found, wanted = both(saved(tmp_path, nodes, ["y2", "x"]), x)
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    bench = bn.load(tmp_path / "net.onnx").bench()
    with bench.session():
        np.testing.assert_array_equal(bench.outputs(x, [record.name for record in bench.records])[1], x)
    assert bn.recalibrate(tmp_path / "net.onnx", x).gap.after < 1e-5


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT16", "UINT16", "BOOL"])
def test_types_that_cross(kind, tmp_path, x):
    first = [h.make_node("Cast", ["a"], ["v"], to=types.DataType.Value(kind))]
    first.append(h.make_node("Neg", ["a"], ["plain"]))
    last = [h.make_node("Cast", ["v"], ["w"], to=F), h.make_node("Add", ["w", "plain"], ["b"])]
    nodes = between(first, last)
    for mine, theirs in zip(*both(saved(tmp_path, nodes, ["y2"]), x), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def optional():
    kind = h.make_tensor_type_proto(F, None)
    result = {name: h.make_value_info(name, h.make_optional_type_proto(kind)) for name in ("something", "nothing")}
    there = h.make_graph([h.make_node("Optional", ["a"], ["something"])], "there", [], [result["something"]])
    absent = h.make_graph([h.make_node("Optional", [], ["nothing"], type=kind)], "absent", [], [result["nothing"]])
    first = [
        h.make_node("ReduceMax", ["a"], ["most"], keepdims=0),
        h.make_node("Cast", ["most"], ["positive"], to=types.BOOL),
        h.make_node("If", ["positive"], ["v"], then_branch=there, else_branch=absent),
        h.make_node("If", ["positive"], ["w"], then_branch=absent, else_branch=there),
    ]
    last = [
        h.make_node("OptionalHasElement", ["w"], ["has"]),
        h.make_node("Cast", ["has"], ["zero"], to=F),
        h.make_node("OptionalGetElement", ["v"], ["held"]),
        h.make_node("Add", ["held", "zero"], ["b"]),
    ]
    return first, last


def empty():
    first = [
        h.make_node("Shape", ["a"], ["shape"]),
        h.make_node("SequenceEmpty", [], ["none"], dtype=types.INT64),
        h.make_node("SequenceInsert", ["none", "shape"], ["one"]),
        h.make_node("SequenceErase", ["one"], ["v"]),
    ]
    last = [
        h.make_node("Shape", ["y1"], ["again"]),
        h.make_node("SequenceInsert", ["v", "again"], ["filled"]),
        h.make_node("SequenceLength", ["filled"], ["length"]),
        h.make_node("Cast", ["length"], ["b"], to=F),
    ]
    return first, last


@pytest.mark.parametrize("crossing", [optional, empty])
def test_containers_that_cross(crossing, tmp_path, x):
    for mine, theirs in zip(*both(saved(tmp_path, between(*crossing()), ["y2"], opset=17), x), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("places", [[1, 3], [[1], [3]]])
def test_sparse_parameters(places, tmp_path, x):
    parts = (np.array([2, 3], "f"), "sparse"), (np.array(places, np.int64), "places")
    sparse = h.make_sparse_tensor(*(onnx.numpy_helper.from_array(*part) for part in parts), [4])
    nodes = [h.make_node("Relu", ["x"], ["a"]), norm("a", "y1", gamma="sparse"), norm("y1", "y2", "other")]
    path = saved(tmp_path, nodes, ["y2"], sparse_initializer=[sparse])
    for mine, theirs in zip(*both(path, x), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_nodes_in_any_order(tmp_path, x):
    """onnxruntime sorts them; the checker of onnx would not let them pass."""
    nodes = between([h.make_node("Exp", ["a"], ["v"])], [h.make_node("Neg", ["v"], ["b"])])
    path = saved(tmp_path, nodes[::-1], ["y2"])
    for mine, theirs in zip(*both(path, x), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_name_of_a_branch_that_is_given_again(tmp_path, x):
    """What is called so inside a branch is its own; the graph may call a later value the same."""
    own = [h.make_node("Relu", ["y1"], ["q"]), h.make_node("Neg", ["q"], ["one"])]
    there = h.make_graph(own, "there", [], [value("one")])
    absent = h.make_graph([h.make_node("Neg", ["y1"], ["two"])], "absent", [], [value("two")])
    nodes = [
        h.make_node("Relu", ["x"], ["a"]),
        h.make_node("ReduceMax", ["a"], ["most"], keepdims=0),
        h.make_node("Cast", ["most"], ["positive"], to=types.BOOL),
        norm("a", "y1"),
        h.make_node("If", ["positive"], ["v"], then_branch=there, else_branch=absent),
        norm("v", "y2", "other"),
        h.make_node("Exp", ["y2"], ["q"]),
    ]
    for mine, theirs in zip(*both(saved(tmp_path, nodes, ["q"]), x), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_input_of_one_axis(tmp_path):
    """The operator then takes it for one channel."""
    x = np.random.default_rng(0).normal(3, 2, 50).astype("f")
    held = {name: np.full(1, number, "f") for name, number in zip(HELD, (2, 1, 0.5, 2, 0), strict=True)}
    nodes = [h.make_node("Relu", ["x"], ["a"]), norm("a", "y")]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = h.make_graph(nodes, "g", [value("x", F, ["n"])], [value("y")], tensors)
    onnx.save(h.make_model(graph, ir_version=8, opset_imports=[h.make_opsetid("", 17)]), tmp_path / "net.onnx")
    for mine, theirs in zip(*both(tmp_path / "net.onnx", x), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    bench = bn.load(tmp_path / "net.onnx").bench()
    name, entry = bench.records[0].name, np.maximum(x, 0).astype(np.float64)
    with bench.session():
        (y,), found = bench.outputs(x, [name]), bench.measure(x, [name])[name]
    wanted = 2 * (entry - entry.mean()) / np.sqrt(entry.var() + 1e-3) + 1
    assert y.shape == x.shape
    assert np.abs(y - wanted).max() < 8 * np.finfo(np.float32).eps
    np.testing.assert_allclose([found.mean[0], found.variance(0)[0]], [entry.mean(), entry.var()], rtol=1e-12)


def test_functions_that_draw(tmp_path, x):
    """A function without inputs is no constant where it draws: what crosses is what was drawn."""
    inner = h.make_node("RandomNormal", [], ["r"], shape=[6, 4, 5], mean=3.0)
    drawn = h.make_function("own", "Inner", [], ["r"], [inner], [h.make_opsetid("", 19)])
    once = h.make_node("Inner", [], ["r"], domain="own")
    outer = h.make_function("own", "Outer", [], ["r"], [once], [h.make_opsetid("own", 1)])
    nodes = [
        h.make_node("Outer", [], ["drawn"], domain="own"),
        h.make_node("Add", ["x", "drawn"], ["a"]),
        norm("a", "y1"),
        h.make_node("Sub", ["a", "drawn"], ["same"]),
        h.make_node("Mul", ["y1", "nothing"], ["zero"]),
        h.make_node("Add", ["same", "zero"], ["y"]),
    ]
    held = HELD | {"nothing": np.zeros((), "f")}
    bench = bn.load(saved(tmp_path, nodes, ["y"], held, [drawn, outer])).bench()
    with bench.session():
        (y,) = bench.outputs(x, [bench.records[0].name])
    # One addition and one subtraction of numbers up to some 16.
    assert np.abs(y - x).max() < 16 * np.finfo(np.float32).eps


def test_a_result_without_an_array(tmp_path, x):
    """It cannot be compared, whatever it is cut at: that is said, and nothing is left behind."""
    nodes = between([h.make_node("Cast", ["a"], ["v"], to=types.BFLOAT16)], [h.make_node("Neg", ["a"], ["b"])])
    path = saved(tmp_path, nodes, ["y2", "v"])
    with pytest.raises(bn.ModelFileError, match="bfloat16"):
        bn.recalibrate(path, x, out=tmp_path / "out.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]


def test_what_goes_wrong_at_a_stop_is_not_onnxruntimes(tmp_path, x, monkeypatch):
    def none_left(*_args, **_more):
        raise MemoryError("of the kernels")

    monkeypatch.setattr("batchnorm.engines.array_call.batch_norm", none_left)
    path = saved(tmp_path, [norm("x", "y1")], ["y1"])
    with pytest.raises(MemoryError, match="of the kernels"):
        bn.recalibrate(path, x)
