"""``.onnx``: what exporters write, what the operator's versions say, and what is spread over a graph."""

import importlib.util
import json
import os
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batchnorm.models import open_model
from batchnorm.models.onnx_file import from_bytes

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
NAMES = ("s", "b", "m", "v")
RNG = np.random.default_rng(5)
VALUES = {name: RNG.uniform(0.5, 2, 3).astype("f4") for name in NAMES}


def held(name, values=VALUES, **changes):
    return numpy_helper.from_array((values | changes)[name], name)


def model(nodes, initializers=None, *, opset=15, inputs=(), outputs=("y",), functions=(), ir=10, producer=""):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4])
    given = [x, *(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs)]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    initializers = [held(name) for name in NAMES] if initializers is None else initializers
    graph = helper.make_graph(list(nodes), "g", given, made, initializers)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(f.domain, 1) for f in functions)]
    return helper.make_model(
        graph, opset_imports=opsets, functions=list(functions), ir_version=ir, producer_name=producer
    )


def norm(outputs=("y",), name="bn", inputs=("x", *NAMES), **attributes):
    return helper.make_node("BatchNormalization", list(inputs), list(outputs), name=name, **attributes)


def layers(proto):
    return from_bytes("m.onnx", proto.SerializeToString()).layers


def assert_values(record, values=VALUES):
    for role, name in zip(ROLES, NAMES, strict=True):
        np.testing.assert_array_equal(getattr(record, role), values[name])


def test_every_field(tmp_path):
    path = tmp_path / "any name"
    onnx.save(model([norm(epsilon=1e-3, momentum=0.99)], producer="pytorch"), tmp_path / "any name")
    path = path.rename(tmp_path / "m.onnx")
    (record,) = open_model(path).layers
    assert (record.name, record.kind, record.channels, record.axis) == ("bn", "BatchNormalization", 3, 1)
    assert (record.epsilon, record.epsilon_source, record.dtype) == (1e-3, "file", "float32")
    assert (record.averaging, record.decay, record.momentum) == ("exponential", 0.99, 0.99)
    assert (record.ddof, record.mode, record.updates, record.source) == (1, "inference", None, None)
    assert_values(record)


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes", "mode"),
    [
        (1, 1, {}, "training"),
        (1, 1, {"is_test": 1}, "inference"),
        (6, 5, {"is_test": 0}, "training"),
        (6, 1, {"is_test": 1}, "inference"),
        (7, 1, {}, "inference"),
        (8, 5, {}, "training"),
        (9, 1, {}, "inference"),
        (13, 3, {}, "training"),
        (14, 3, {"training_mode": 1}, "training"),
        (14, 1, {"training_mode": 1}, "training"),
        (15, 1, {}, "inference"),
        (15, 1, {"training_mode": 0}, "inference"),
        (99, 1, {}, "inference"),
    ],
)
def test_mode_of_every_version(opset, outputs, attributes, mode):
    outputs = ["y", "m2", "v2", "sm", "sv"][:outputs]
    (record,) = layers(model([norm(outputs, **attributes)], opset=opset))
    assert record.mode == mode
    assert (record.epsilon, record.momentum) == (1e-5, 0.9)
    assert record.ddof == (0 if mode == "training" else None)
    assert_values(record)


def test_before_opsets_were_named():
    proto = model([norm(is_test=1)], ir=2)
    del proto.opset_import[:]
    assert layers(proto)[0].mode == "inference"


def test_per_element_statistics_of_old_versions():
    values = {name: RNG.uniform(1, 2, (3, 4)).astype("f4") for name in NAMES}
    (record,) = layers(model([norm(spatial=0)], [held(name, values) for name in NAMES], opset=7))
    assert (record.channels, record.axis, record.channel_shape) == (12, (1, 2), (3, 4))


def test_roles_go_by_position():
    swapped = dict(zip(NAMES, ("running_var", "running_mean", "weight", "bias"), strict=True))
    tensors = [numpy_helper.from_array(VALUES[name], swapped[name]) for name in NAMES]
    (record,) = layers(model([norm(inputs=("x", *swapped.values()))], tensors))
    assert_values(record)


def test_a_node_without_a_name_goes_by_its_output():
    nodes = [norm(["p"], name=""), norm(["q"], name="bn", inputs=("p", *NAMES)), norm(inputs=("q", *NAMES))]
    assert [record.name for record in layers(model(nodes))] == ["p", "bn", "bn#2"]


def test_constants_identities_and_shared_initializers():
    nodes = [
        helper.make_node("Constant", [], ["c"], value=held("s")),
        helper.make_node("Identity", ["c"], ["c1"]),
        helper.make_node("Identity", ["c1"], ["c2"]),
        helper.make_node("Constant", [], ["cb"], value_floats=VALUES["b"].tolist()),
        helper.make_node("Identity", ["m"], ["m1"]),
        helper.make_node("ConstantOfShape", ["three"], ["ones"], value=helper.make_tensor("o", 1, [1], [2.0])),
        norm(["z"], inputs=("x", "c2", "cb", "m1", "v"), name="first"),
        norm(["w"], inputs=("z", "c1", "cb", "m", "v"), name="second"),
        norm(inputs=("w", "ones", "b", "m", "ones"), name="third"),
    ]
    three = numpy_helper.from_array(np.array([3]), "three")
    first, second, third = layers(model(nodes, [held("b"), held("m"), held("v"), three]))
    assert_values(first)
    assert_values(second)
    np.testing.assert_array_equal(third.moving_variance, [2, 2, 2])


@pytest.mark.parametrize("dtype", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT])
@pytest.mark.parametrize("raw", [True, False])
def test_types_and_both_ways_to_store_them(dtype, raw):
    array = np.array([1.5, -0.25, 3], "f4").astype(helper.tensor_dtype_to_np_dtype(dtype))
    data = array.tobytes() if raw else array.astype("f4").tolist()
    tensors = [helper.make_tensor(name, dtype, [3], data, raw=raw) for name in NAMES]
    (record,) = layers(model([norm()], tensors))
    assert record.dtype == array.dtype.name
    np.testing.assert_array_equal(record.gamma, array)


def test_parameters_from_outside():
    inputs = [(name, [3]) for name in NAMES]
    proto = model([norm()], [], inputs=inputs)
    found = from_bytes("m.onnx", proto.SerializeToString())
    (record,) = found.layers
    assert (record.channels, record.dtype, record.mode) == (3, "float32", "inference")
    assert [getattr(record, role) for role in ROLES] == [None] * 4
    assert any("outside the graph" in note for note in found.notes)


def test_an_initializer_that_is_an_input_too_is_its_default():
    (record,) = layers(model([norm()], inputs=[("m", [3])], ir=3))
    assert_values(record)


def test_batch_statistics():
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0, 2], keepdims=0),
        helper.make_node("Sub", ["x", "mean"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["dd"]),
        helper.make_node("ReduceMean", ["dd"], ["var"], axes=[0, 2], keepdims=0),
        norm(inputs=("x", "s", "b", "mean", "var")),
    ]
    found = from_bytes("m.onnx", model(nodes).SerializeToString())
    (record,) = found.layers
    assert (record.mode, record.moving_mean, record.moving_variance) == ("batch-statistics", None, None)
    np.testing.assert_array_equal(record.gamma, VALUES["s"])
    assert any("computes" in note for note in found.notes)


def test_momentum_one_is_cumulative_where_nothing_is_updated():
    (record,) = layers(model([norm(momentum=1.0)]))
    assert (record.averaging, record.decay, record.momentum) == ("cumulative", None, 1.0)
    (record,) = layers(model([norm(momentum=1.0, training_mode=1)]))
    assert (record.averaging, record.decay) == ("exponential", 1.0)


def test_control_flow_bodies():
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    then = helper.make_graph([norm(["o"], "then/bn")], "then", [], [out], [held("m", m=VALUES["m"] + 1)])
    nested = helper.make_graph([norm(["o"], "else/bn")], "nested", [], [out])
    otherwise = helper.make_graph(
        [helper.make_node("If", ["c"], ["o"], then_branch=nested, else_branch=nested)], "else", [], [out]
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise)]
    found = {record.name: record for record in layers(model(nodes, inputs=[("c", [])]))}
    assert set(found) == {"then/bn", "else/bn", "else/bn#2"}
    assert_values(found["else/bn"])
    assert_values(found["then/bn"], VALUES | {"m": VALUES["m"] + 1})


def function(name, nodes, inputs=("X", "S", "B", "M", "V"), attributes=(), protos=()):
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, list(inputs), ["Y"], nodes, opsets, list(attributes), list(protos))


def test_functions_once_for_each_call():
    inner = helper.make_node("BatchNormalization", ["X", "S", "B", "M", "V"], ["Y"], name="n")
    epsilon = inner.attribute.add()
    epsilon.name, epsilon.ref_attr_name, epsilon.type = "epsilon", "eps", onnx.AttributeProto.FLOAT
    default = helper.make_attribute("eps", 0.25)
    leaf = function("Leaf", [inner], protos=[default])
    outer = function("Outer", [helper.make_node("Leaf", ["X", "S", "B", "M", "V"], ["Y"], name="leaf", domain="own")])
    nodes = [
        helper.make_node("Leaf", ["x", *NAMES], ["a"], name="one", domain="own", eps=0.5),
        helper.make_node("Leaf", ["a", "b", "s", "m", "v"], ["c"], name="two", domain="own"),
        helper.make_node("Outer", ["c", *NAMES], ["y"], name="three", domain="own"),
    ]
    one, two, three = layers(model(nodes, functions=[leaf, outer]))
    assert [record.name for record in (one, two, three)] == ["one/n", "two/n", "three/leaf/n"]
    assert [record.epsilon for record in (one, two, three)] == [0.5, 0.25, 0.25]
    assert_values(one)
    assert_values(three)
    np.testing.assert_array_equal(two.gamma, VALUES["b"])


@pytest.fixture
def external(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model([norm()]), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def test_external_data(external):
    assert external.with_name("w.bin").stat().st_size > 0
    (record,) = open_model(external).layers
    assert_values(record)


def test_external_data_through_the_links_of_a_download_cache(external, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name in ("m.onnx", "w.bin"):
        os.rename(tmp_path / name, blobs / f"{name}0")
        (snapshot / name).symlink_to(f"../../blobs/{name}0")
    assert_values(open_model(snapshot / "m.onnx").layers[0])


def test_two_gigabytes_beside_it_are_not_touched(external, tmp_path):
    proto = onnx.load(external, load_external_data=False)
    big = proto.graph.initializer.add()
    big.name, big.data_type = "big", TensorProto.FLOAT
    big.dims.extend([1 << 19, 1 << 10])
    big.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "big.bin"), ("offset", "0"), ("length", str(2 << 30))):
        big.external_data.add(key=key, value=value)
    proto.graph.node.add(op_type="Identity", input=["big"], output=["unused"])
    external.write_bytes(proto.SerializeToString())
    with (tmp_path / "big.bin").open("wb") as stream:
        stream.truncate(2 << 30)  # takes no room on the disk
    started = time.process_time()
    assert len(open_model(external).layers) == 1
    assert time.process_time() - started < 1


def test_a_live_proto_is_read_and_stays_as_it_is():
    from batchnorm.models.onnx_live import from_live, is_live

    proto = model([norm()])
    before = proto.SerializeToString()
    assert is_live(proto)
    assert not is_live(proto.graph)
    assert_values(from_live(proto).layers[0])
    assert proto.SerializeToString() == before


# What is written by real programs


def test_what_torch_exports(torch_files):
    wanted = json.loads((torch_files / "expected.json").read_text())
    for file in ("net.onnx", "external.onnx", "old.onnx"):
        found = open_model(torch_files / file)
        assert len(found.layers) == len(wanted) == 5
        for record, (name, want) in zip(found.layers, wanted.items(), strict=True):
            assert record.epsilon == want["epsilon"]
            assert record.ddof == 1
            assert record.mode == "inference"
            if want["momentum"] is None:
                assert (record.averaging, record.decay, record.momentum) == ("cumulative", None, 1.0)
            else:
                assert record.decay == pytest.approx(1 - want["momentum"], rel=1e-7)
            for role in ROLES:
                absent = np.ones(4) if role == "gamma" else np.zeros(4)
                expected = absent if want[role] is None else np.array(want[role], "f4")
                np.testing.assert_array_equal(getattr(record, role), expected)
            if file != "old.onnx":
                assert record.source.startswith(f"{name} at ")
                assert "write_torch_files.py:" in record.source


def test_the_older_exporter_in_training_mode(torch_files):
    records = open_model(torch_files / "old_train.onnx").layers
    assert [record.mode for record in records] == ["training"] * 5
    assert records[0].name.startswith("/stem/")


def test_torch_without_running_statistics(torch_files):
    (record,) = open_model(torch_files / "batch.onnx").layers
    assert record.mode == "batch-statistics"
    assert "self.bn(torch.sin(x))" in record.source


def node_cases():
    """The node tests of ONNX' own suite, which newer versions make instead of shipping."""
    from onnx.backend.test.case import node

    importlib.import_module("onnx.backend.test.case.node.batch_normalization")
    return [case for case in node._NodeTestCases if case.name.startswith("test_batchnorm")]


def test_onnx_node_tests():
    """Mode and epsilon are right where the formula of that mode, with that epsilon, gives the suite's own output."""
    cases = node_cases()
    assert len(cases) == 4
    for case in cases:
        (record,) = layers(case.model)
        assert (record.channels, record.gamma, record.moving_mean) == (3, None, None)
        (x, gamma, beta, mean, variance), outputs = (list(map(np.float64, each)) for each in case.data_sets[0])
        if record.mode == "training":
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        by_channel = [each[:, None, None] for each in (gamma, beta, mean, variance)]
        y = by_channel[0] * (x - by_channel[2]) / np.sqrt(by_channel[3] + record.epsilon) + by_channel[1]
        # The suite computes in float32, some ten roundings of values up to 30 deep.
        np.testing.assert_allclose(outputs[0], y, rtol=0, atol=30 * 10 * 2**-24)
        if record.mode == "training":
            moved = record.decay * np.float64(case.data_sets[0][0][3]) + (1 - record.decay) * mean
            np.testing.assert_allclose(outputs[1], moved, rtol=0, atol=30 * 10 * 2**-24)


def test_onnx_files_converted_from_torch():
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "pytorch-converted"
    files = sorted(folder.glob("test_BatchNorm*/model.onnx"))
    assert files
    for file in files:
        (record,) = open_model(file).layers
        data = onnx.load(file).graph.initializer
        assert record.mode == "inference"
        np.testing.assert_array_equal(record.moving_variance, numpy_helper.to_array(data[-1]))
        # Their oldest exporter wrote torch's momentum as it was for some, and 1 - momentum for others.
        assert record.decay == record.momentum


def test_large_graphs_of_onnx():
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    counts = {"densenet121": 121, "inception_v2": 69, "resnet50": 53, "shufflenet": 49, "vgg19": 0, "squeezenet": 0}
    for name, count in counts.items():
        found = open_model(folder / f"light_{name}.onnx").layers
        assert len(found) == count
        assert all(record.kind == "BatchNormalization" for record in found)


def test_a_model_that_a_package_ships():
    found = importlib.util.find_spec("rapidocr_onnxruntime")
    if found is None:
        pytest.skip("rapidocr-onnxruntime is not installed")
    path = Path(found.submodule_search_locations[0]) / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    records = open_model(path).layers
    assert len(records) == 35
    graph = onnx.load(path).graph
    values = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    nodes = [node for node in graph.node if node.op_type == "BatchNormalization"]
    for record, node in zip(records, nodes, strict=True):
        assert (record.mode, record.epsilon, record.decay) == ("inference", 1e-5, 0.9)
        for role, name in zip(ROLES, node.input[1:], strict=True):
            np.testing.assert_array_equal(getattr(record, role), numpy_helper.to_array(values[name]))


def test_a_layer_without_statistics_gets_its_verdict(torch_files):
    import batchnorm as bn

    found = bn.explain(torch_files / "batch.onnx")
    assert found.layers[0].explained == ()
    assert found.layers[0].because == ("no moving statistics in the file; each batch is normalised by its own",)
    assert len(bn.explain(torch_files / "batch.onnx", np.ones((1, 3, 2, 2)), mode="training").layers[0].explained) == 3


def test_a_live_proto_through_the_front_door():
    import batchnorm as bn

    assert bn.load(model([norm(epsilon=1e-3)])).layers[0].epsilon == 1e-3
