"""``.onnx`` files that nobody should write: one line each, in bounded time, and nothing read that lies elsewhere."""

import random
import resource

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from .fuzzing import mutated, outcomes
from .test_bad_files import refused
from .test_onnx import NAMES, function, held, model, norm


def saved(path, proto):
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "", "..", "C:\\w.bin", "a\\..\\w.bin", "x\0y", "/dev/zero"]
)
def test_external_data_elsewhere(tmp_path, location):
    (tmp_path / "w.bin").write_bytes(bytes(100))
    (tmp_path / "in").mkdir()
    refused(saved(tmp_path / "in" / "m.onnx", beside(location)), "array 's'", "beside the model")


def beside(location, offset="0", length="12", dims=(3,)):
    proto = model([norm()])
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return proto


def test_a_link_that_leads_elsewhere(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(100))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.bin").symlink_to("../secret")
    (tmp_path / "in" / "loop.bin").symlink_to("loop.bin")
    refused(saved(tmp_path / "in" / "m.onnx", beside("w.bin")), "leads elsewhere")
    refused(saved(tmp_path / "in" / "m.onnx", beside("loop.bin")), "not there")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"location": "none.bin"}, ["not there"]),
        ({"offset": "95"}, ["truncated"]),
        ({"offset": "-1"}, ["-1"]),
        ({"offset": "9" * 40}, ["999"]),
        ({"length": "13"}, ["13"]),
        ({"dims": (4,), "length": "16"}, ["one length"]),
        ({"dims": (1 << 40,)}, ["one length"]),
        ({"dims": (-3,)}, ["shape"]),
    ],
)
def test_external_data_that_do_not_fit(tmp_path, changes, words):
    (tmp_path / "w.bin").write_bytes(bytes(100))
    refused(saved(tmp_path / "m.onnx", beside(**{"location": "w.bin"} | changes)), "'", *words)


def test_cyclic_graphs(tmp_path):
    nodes = [
        helper.make_node("Add", ["x", "b1"], ["a1"], name="first"),
        helper.make_node("Relu", ["a1"], ["b1"]),
        norm(inputs=("a1", *NAMES)),
    ]
    refused(saved(tmp_path / "m.onnx", model(nodes)), "cyclic", "'first'")
    identities = [helper.make_node("Identity", ["p"], ["q"]), helper.make_node("Identity", ["q"], ["p"])]
    refused(saved(tmp_path / "m.onnx", model([*identities, norm(inputs=("x", "p", "b", "m", "v"))])), "cyclic")
    itself = [helper.make_node("Identity", ["p"], ["p"]), norm()]
    refused(saved(tmp_path / "m.onnx", model(itself)), "cyclic")


def test_functions_that_call_themselves(tmp_path):
    def calls(name, *others):
        return function(name, [helper.make_node(o, ["X"], ["Y"], domain="own", name=o) for o in others], ["X"])

    start = helper.make_node("F", ["x"], ["y"], domain="own")
    refused(saved(tmp_path / "m.onnx", model([start], functions=[calls("F", "F")])), "'F' calls itself")
    refused(saved(tmp_path / "m.onnx", model([start], functions=[calls("F", "G"), calls("G", "F")])), "calls itself")


def test_functions_that_expand_without_end(tmp_path):
    """Each of 20 functions calls the next one ten times."""
    functions = [
        function(f"F{i}", [helper.make_node(f"F{i + 1}", ["X"], [f"y{j}"], domain="own") for j in range(10)], ["X"])
        for i in range(20)
    ]
    functions.append(function("F20", [norm(["Y"], inputs=("X", "X", "X", "X", "X"))], ["X"]))
    start = helper.make_node("F0", ["x"], ["y"], domain="own")
    refused(saved(tmp_path / "m.onnx", model([start], functions=functions)), "expand")


def test_deep_bodies(tmp_path):
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = norm()
    for _ in range(31):  # the official parsers stop at 32
        node = helper.make_node("Loop", ["", "c", "x"], ["y"], body=helper.make_graph([node], "g", [], [out]))
    refused(saved(tmp_path / "m.onnx", model([node])), "nested")


@pytest.mark.parametrize(
    ("tensors", "inputs", "words"),
    [
        (None, ("x", "s", "b"), ["'bn'", "3 inputs", "takes 5"]),
        ([held("s"), held("b"), held("m"), numpy_helper.from_array(np.ones(4, "f4"), "v")], None, ["one length"]),
        ([held("s"), held("b"), held("m"), numpy_helper.from_array(np.ones((1, 3), "f4"), "v")], None, ["one length"]),
        ([held("s"), held("b"), held("m"), numpy_helper.from_array(np.ones((), "f4"), "v")], None, ["one length"]),
        ([held("s"), held("b"), held("m"), numpy_helper.from_array(np.ones(3, "i4"), "v")], None, ["int32"]),
        ([held("s"), held("b"), held("m"), helper.make_tensor("v", 8, [3], [b"a", b"b", b"c"])], None, ["type 8"]),
        ([numpy_helper.from_array(np.ones(0, "f4"), name) for name in NAMES], None, ["[0]"]),
    ],
)
def test_parameters_that_do_not_fit(tmp_path, tensors, inputs, words):
    refused(saved(tmp_path / "m.onnx", model([norm(inputs=inputs or ("x", *NAMES))], tensors)), *words)


def test_arrays_shorter_than_their_shape(tmp_path):
    for field in ("raw_data", "float_data"):
        proto = model([norm()])
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        if field == "raw_data":
            tensor.raw_data = bytes(8)
        else:
            tensor.float_data.extend([1.0, 2.0])
        refused(saved(tmp_path / "m.onnx", proto), "array 's'", "other than 3")


def test_names_are_escaped(tmp_path):
    proto = model([norm(name="\x1b[31m\n" * 200, inputs=("x",))])
    refused(saved(tmp_path / "m.onnx", proto), "takes 5")


def test_no_model(tmp_path):
    path = tmp_path / "m.onnx"
    path.touch()
    refused(path, "empty")
    for data in (b"\x08\x07", b"\0" * 50, b"\xff" * 50, b"\x3a\xff\xff\xff\xff\x0f", b"hello world"):
        path.write_bytes(data)
        refused(path, "no ONNX model")
    proto = model([norm()])
    del proto.opset_import[:]
    refused(saved(path, proto), "names no version")


def test_truncated(tmp_path):
    data = model([norm()]).SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(1, len(data) - 1, 7):
        path.write_bytes(data[:length])
        refused(path)


def test_a_bomb_of_small_fields(tmp_path):
    inner = b"\x0a\x00" * 1_000_000
    field = b"\x3a" + varint(3 * len(inner)) + inner * 3
    (tmp_path / "m.onnx").write_bytes(field)
    refused(tmp_path / "m.onnx", "fields")


def varint(value):
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def test_many_layers_that_share_one_large_array(tmp_path):
    large = [numpy_helper.from_array(np.ones(1 << 18, "f4"), name) for name in NAMES]
    nodes = [norm([f"y{i}"], f"n{i}") for i in range(1000)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(saved(tmp_path / "m.onnx", model(nodes, large)), "claim more")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20


def sources():
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    body = helper.make_graph([norm(["o"], "inner")], "g", [], [out])
    leaf = function("Leaf", [norm(["Y"], "leaf", ("X", "S", "B", "M", "V"))])
    nodes = [
        helper.make_node("Identity", ["m"], ["m1"]),
        helper.make_node("Constant", [], ["c"], value=held("s")),
        helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body),
        helper.make_node("Leaf", ["z", *NAMES], ["w"], domain="own"),
        norm(inputs=("w", "c", "b", "m1", "v"), epsilon=1e-3, momentum=0.5),
        helper.make_node("Mul", ["y", "v"], ["q"]),
        helper.make_node("Add", ["q", "b"], ["batchnorm/q"]),
    ]
    return model(nodes, functions=[leaf]).SerializeToString()


def test_fuzz(tmp_path):
    data = sources()
    rng = random.Random(7)  # noqa: S311
    tally = outcomes(tmp_path / "m.onnx", (mutated(data, rng) for _ in range(600)))
    assert tally["opened"] > 50
    assert tally["refused"] > 100
    assert tally["slowest"] < 2


def test_fuzz_of_what_torch_writes(torch_files, tmp_path):
    data = (torch_files / "net.onnx").read_bytes()
    rng = random.Random(8)  # noqa: S311
    tally = outcomes(tmp_path / "m.onnx", (mutated(data, rng) for _ in range(200)))
    assert tally["slowest"] < 2
