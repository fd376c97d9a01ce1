"""The graph of a model is the same whatever the format it is read from."""

import json
from pathlib import Path

import numpy as np
import pytest

from batchnorm.core.graph import Graph, LazyGraph, NoGraph, Operation
from batchnorm.models import open_model
from batchnorm.models.keras_graph import graph_of
from tests.running import script

WRITER = Path(__file__).with_name("write_graphs.py")
KINDS = [
    "conv", "batch_norm", "activation", "conv", "batch_norm", "add", "conv_transpose", "batch_norm", "activation",
    "pool", "dense",
]  # fmt: skip
FILES = ("net.keras", "net.h5", "net.onnx", "net.pt2", "decomposed.pt2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("keras", reason="the files are written by the real Keras")
    pytest.importorskip("torch", reason="the files are written by the real PyTorch")
    target = tmp_path_factory.mktemp("graphs")
    script(WRITER, target)
    return target


def fed_by(graph):
    """Kind of each operation, and the kinds of what feeds it."""
    return [
        (each.kind, [made.kind if (made := graph.producer(value)) else "input" for value in each.inputs])
        for each in graph.operations
        if each.kind != "reshape"
    ]


WANTED = [
    ("conv", ["input"]), ("batch_norm", ["conv"]), ("activation", ["batch_norm"]), ("conv", ["activation"]),
    ("batch_norm", ["conv"]), ("add", ["activation", "batch_norm"]), ("conv_transpose", ["add"]),
    ("batch_norm", ["conv_transpose"]), ("activation", ["batch_norm"]), ("pool", ["activation"]), ("dense", ["pool"]),
]  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_one_network_in_every_format(folder, file):
    model = open_model(folder / file)
    graph = model.graph
    assert model.no_graph is None
    if file == "decomposed.pt2":  # PyTorch spells the dense layer as a transposition and an addmm
        assert fed_by(graph)[:10] == WANTED[:10]
    else:
        assert fed_by(graph) == WANTED
    norms = [each for each in graph.operations if each.kind == "batch_norm"]
    assert [each.name for each in norms] == [record.name for record in model.layers]
    assert len(graph.inputs) == len(graph.outputs) == 1
    stem, deep, up = (each for each in graph.operations if each.kind.startswith("conv"))
    channels_last = file.startswith("net.k") or file.endswith("h5")
    assert stem.weights["kernel"]().shape == ((3, 3, 3, 8) if channels_last else (8, 3, 3, 3))
    assert set(stem.weights) == {"kernel", "bias"}
    assert set(deep.weights) == {"kernel"}
    assert [each.settings["pads"] for each in (stem, deep, up)] == [True, True, False]
    assert [each.settings["rank"] for each in (stem, deep, up)] == [2, 2, 2]
    assert up.settings["strides"] == (2, 2)
    assert deep.settings.get("depthwise") or deep.settings["groups"] == 8
    for each in (stem, up):
        kernel = each.weights["kernel"]()
        assert kernel.shape[each.settings["kernel_out_axis"]] == 8
        assert kernel.shape[each.settings["kernel_in_axis"]] in (3, 8)


def test_the_weights_are_those_of_the_file(folder):
    """Both files of one Keras model; the two of PyTorch are of one module."""
    for one, other in (("net.keras", "net.h5"), ("net.onnx", "net.pt2")):
        graphs = [open_model(folder / name).graph.operations for name in (one, other)]
        read = [[read() for each in graph for _, read in sorted(each.weights.items())] for graph in graphs]
        assert len(read[0]) == 7
        for first, second in zip(*read, strict=True):
            np.testing.assert_array_equal(first, second)


def test_live_models(folder):
    found, kernels, flags = json.loads((folder / "torch_live.json").read_text())
    assert [kind for _, kind, _, _ in found] == KINDS
    assert kernels == {"stem": [8, 3, 3, 3], "deep": [8, 1, 3, 3], "up": [8, 8, 2, 2], "head": [4, 8]}
    assert flags is True  # tracing put the training flags back
    for name in ("net", "nested"):
        live = json.loads((folder / f"{name}_live.json").read_text())
        graph = open_model(folder / f"{name}.keras").graph
        assert live == [[e.name, e.kind, list(e.inputs), e.shared] for e in graph.operations]


@pytest.mark.parametrize("file", ["nested.keras", "nested.h5"])
def test_nested_shared_and_repeated(folder, file):
    model = open_model(folder / file)
    graph = model.graph
    norms = [each for each in graph.operations if each.kind == "batch_norm"]
    assert [each.name for each in norms] == ["inner/bn", "inner/bn", "chain/bn", "shared", "shared", "over/timed"]
    assert {each.name for each in norms} == {record.name for record in model.layers}
    assert [each.shared for each in norms] == [True, True, False, True, True, False]
    assert graph.inputs == ("one", "two")
    assert [each.settings.get("training") for each in norms] == [None, None, None, None, True, None]
    assert norms[-1].settings["wrapper"] == "TimeDistributed"
    assert len(list(graph.calls("inner/bn"))) == 2
    first, second = graph.calls("inner/bn")
    assert [each.name for each in graph.consumers(first.outputs[0])] == ["inner/conv"]
    assert graph.producer(second.inputs[0]).inputs == first.outputs
    kinds = [each.kind for each in graph.operations]
    assert kinds[-1] == "stochastic_depth"
    assert kinds.count("elementwise_linear") == kinds.count("concat") == 1


def test_a_reason_where_there_is_no_graph(folder):
    deciding, custom = json.loads((folder / "no_graph.json").read_text())
    assert "cannot be traced" in deciding
    assert "subclassed" in custom


def node(name, *given):
    return {
        "class_name": "Dense", "name": name, "config": {"name": name, "units": 3},
        "inbound_nodes": [[[each, 0, 0, {}] for each in given]],
    }  # fmt: skip


def functional(*layers, out="a"):
    entry = {"class_name": "InputLayer", "name": "in", "config": {"name": "in"}, "inbound_nodes": []}
    return {
        "class_name": "Functional",
        "config": {"layers": [entry, *layers], "input_layers": [["in", 0, 0]], "output_layers": [[out, 0, 0]]},
    }


def test_layers_in_any_order_and_in_a_circle():
    graph = graph_of(functional(node("b", "a"), node("a", "in"), out="b"))
    assert [each.name for each in graph.operations] == ["a", "b"]
    with pytest.raises(NoGraph, match="wait for each other"):
        graph_of(functional(node("a", "b"), node("b", "a")))
    with pytest.raises(NoGraph, match="how its layers are connected"):
        graph_of({"class_name": "Functional", "config": {"layers": [1, 2]}})


def test_calls_of_a_nested_model_counted_from_one_as_keras_2_did():
    inner = functional(node("d", "in"), out="d") | {"name": "inner", "inbound_nodes": [[["in", 0, 0, {}]]]}
    inner["config"]["name"] = "inner"
    outer = functional(inner, node("a", "inner"))
    outer["config"]["layers"][-1]["inbound_nodes"] = [[["inner", 1, 0, {}]]]
    assert [(each.name, each.inputs) for each in graph_of(outer).operations] == [
        ("inner/d", ("in",)),
        ("a", ("inner/d",)),
    ]


def test_models_that_call_each_other_without_end_are_refused():
    model = functional(node("a", "in"))
    for depth in range(40):
        twice = [[["in", 0, 0, {}]], [["m", 0, 0, {}]]]
        nested = model | {"name": "m", "inbound_nodes": twice}
        nested["config"] = nested["config"] | {"name": "m"}
        model = functional(nested, out="m")
        model["config"]["output_layers"] = [["m", 1, 0]]
        assert depth < 40
    with pytest.raises(NoGraph, match="more than"):
        graph_of(model)


def test_a_graph_is_read_once():
    made = []

    def read():
        made.append(1)
        return Graph(operations=(), inputs=("x",), outputs=("x",))

    lazy = LazyGraph(read)
    assert lazy.graph is lazy.graph
    assert (made, lazy.reason) == ([1], None)
    operation = Operation(name="a", kind="other", operator="A", inputs=("x", "x"), outputs=("y",))
    graph = Graph(operations=(operation,), inputs=("x",), outputs=("y",))
    assert graph.consumers("x") == (operation,)
    assert graph.producer("x") is None
    assert graph.leaves("y")
