"""Batch normalization that was exported as arithmetic, and arithmetic that is none."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from batchnorm.models.onnx_file import from_bytes

from .test_onnx import model

N = 3
ROW = {name: np.random.default_rng(2).uniform(0.5, 2, N).astype("f4") for name in ("g", "b", "m", "v")}
EPSILON = np.float32(1e-3)
GOING = {name: array.reshape(1, N, 1) for name, array in ROW.items()}


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), [output], name=attributes.pop("name", f"n_{output}"), **attributes)


def found(nodes, arrays, conv=True):
    given = {"w": np.ones((N, N, 1), "f4"), "e": EPSILON} | arrays
    start = [node("Conv", "x w", "c")] if conv else [node("Relu", "x", "c")]
    proto = model([*start, *nodes], [numpy_helper.from_array(np.asarray(each), name) for name, each in given.items()])
    return from_bytes("m.onnx", proto.SerializeToString())


def only(nodes, arrays, conv=True):
    (record,) = found(nodes, arrays, conv).layers
    return record


def spelled_out(reciprocal):
    root = [node("Add", "v e", "ve"), node("Sqrt", "ve", "sd")]
    if reciprocal:
        return [*root, node("Reciprocal", "sd", "i"), node("Mul", "i g", "k")]
    return [*root, node("Div", "g sd", "k")]


@pytest.mark.parametrize("arrays", [ROW, GOING], ids=["last axis", "second axis"])
@pytest.mark.parametrize("reciprocal", [True, False])
def test_all_of_it_is_known_where_the_root_is_spelled_out(arrays, reciprocal):
    nodes = [*spelled_out(reciprocal), node("Sub", "c m", "d"), node("Mul", "d k", "p"), node("Add", "p b", "y")]
    record = only(nodes, arrays, conv=False)
    assert record.kind == "Sub/Mul/Add (un-fused)"
    assert (record.epsilon, record.epsilon_source, record.mode, record.channels) == (1e-3, "file", "inference", N)
    assert record.axis == (-1 if arrays is ROW else 1)
    for role, name in {"gamma": "g", "beta": "b", "moving_mean": "m", "moving_variance": "v"}.items():
        np.testing.assert_array_equal(getattr(record, role), ROW[name])


def test_scale_and_shift_with_the_constants_still_computed_in_the_graph():
    """What tf.nn.batch_normalization becomes: x*k + (beta - mean*k)."""
    shift = [node("Mul", "m k", "mk"), node("Sub", "b mk", "s")]
    record = only([*spelled_out(True), *shift, node("Mul", "c k", "p"), node("Add", "p s", "y")], ROW, conv=False)
    assert (record.kind, record.epsilon) == ("Mul/Add (un-fused)", 1e-3)
    for role, name in {"gamma": "g", "beta": "b", "moving_mean": "m", "moving_variance": "v"}.items():
        np.testing.assert_array_equal(getattr(record, role), ROW[name])


def test_divided_by_the_deviation():
    root = [node("Add", "v e", "ve"), node("Sqrt", "ve", "sd")]
    steps = [node("Sub", "c m", "d"), node("Div", "d sd", "p"), node("Mul", "p g", "q"), node("Add", "q b", "y")]
    record = only([*root, *steps], GOING)
    np.testing.assert_array_equal(record.gamma, ROW["g"])
    np.testing.assert_array_equal(record.moving_variance, ROW["v"])
    assert record.kind == "Sub/Div/Mul/Add (un-fused)"


def test_what_was_folded_is_not_made_up():
    record = only([node("Sub", "c m", "d"), node("Mul", "d g", "p"), node("Add", "p b", "y")], GOING)
    np.testing.assert_array_equal(record.moving_mean, ROW["m"])
    np.testing.assert_array_equal(record.gamma, ROW["g"])
    assert (record.moving_variance, record.epsilon, record.epsilon_source) == (None, None, "unknown")
    record = only([node("Mul", "c g", "p"), node("Add", "p b", "y")], GOING)
    assert (record.kind, record.moving_mean, record.axis) == ("Mul/Add (folded)", None, 1)
    np.testing.assert_array_equal(record.gamma, ROW["g"])
    np.testing.assert_array_equal(record.beta, ROW["b"])


def test_a_note_says_so():
    notes = found([node("Mul", "c g", "p"), node("Add", "p b", "y")], GOING).notes
    assert any("multiplications and additions" in note for note in notes)


def test_a_name_is_evidence_too():
    steps = [node("Mul", "c g", "p", name="block/bn1/mul"), node("Add", "p b", "y")]
    assert only(steps, GOING, conv=False).name == "block/bn1/mul"


def test_the_bias_of_the_convolution_before_it_is_not_taken_in():
    bias = {"o": np.ones((1, N, 1), "f4")}
    record = only([node("Add", "c o", "d"), node("Mul", "d g", "p"), node("Add", "p b", "y")], GOING | bias)
    assert record.kind == "Mul/Add (folded)"


def test_two_in_a_row():
    steps = [node("Mul", "c g", "p"), node("Add", "p b", "q"), node("Relu", "q", "r"), node("Conv", "r w", "t")]
    steps += [node("Mul", "t v", "u"), node("Add", "u m", "y")]
    assert [record.name for record in found(steps, GOING).layers] == ["n_p", "n_u"]


NONE_OF_IT = {
    "layer normalization": [
        node("ReduceMean", "c", "mean"),
        node("Sub", "c mean", "d"),
        node("Mul", "d d", "dd"),
        node("ReduceMean", "dd", "var"),
        node("Add", "var e", "ve"),
        node("Sqrt", "ve", "sd"),
        node("Div", "d sd", "n"),
        node("Mul", "n g", "p"),
        node("Add", "p b", "y"),
    ],
    "group normalization": [
        node("InstanceNormalization", "c g b", "i"),
        node("Mul", "i g", "p"),
        node("Add", "p b", "y"),
    ],
    "the scaling of an image": [node("Sub", "x m", "d"), node("Div", "d v", "y")],
    "the scaling of an image by numbers": [node("Mul", "x e", "d"), node("Add", "d e", "y")],
    "scalars after a convolution": [node("Mul", "c e", "d"), node("Add", "d e", "y")],
    "a scale alone": [node("Mul", "c g", "y")],
    "a bias alone": [node("Add", "c b", "y")],
    "a gate": [node("Sigmoid", "c", "d"), node("Mul", "c d", "p"), node("Add", "p b", "y")],
    "a matrix": [node("Mul", "c k", "p"), node("Add", "p b", "y")],
    "what others use too": [node("Mul", "c g", "p"), node("Add", "p b", "q"), node("Add", "p q", "y")],
    "two vectors that do not go together": [node("Mul", "c g", "p"), node("Add", "p two", "y")],
}


@pytest.mark.parametrize("nodes", NONE_OF_IT.values(), ids=NONE_OF_IT.keys())
def test_what_is_no_batch_normalization(nodes):
    more = {"k": np.ones((N, N), "f4"), "two": np.ones((1, 2, 1), "f4")}
    assert found(nodes, GOING | more).layers == ()
