"""The rules about what stands around a layer, on graphs made by hand."""

import numpy as np
import pytest

from batchnorm.analysis.rules import Subject, apply
from batchnorm.analysis.rules.measured import Measurements, Stream
from batchnorm.core.graph import Graph, Operation
from tests.analysis.cases import f32, record

CONV = {"rank": 2, "groups": 1, "channel_axis": -1, "pads": False}


def operation(kind, name, inputs, outputs=None, *, weights=(), settings=None, operator=None, shared=False):
    arrays = {key: (lambda value=value: value) for key, value in dict(weights).items()}
    inputs = tuple(inputs.split()) if inputs else ()
    return Operation(
        name=name, kind=kind, operator=operator or kind, inputs=inputs, outputs=tuple((outputs or name).split()),
        weights=arrays, settings=settings or {}, shared=shared,
    )  # fmt: skip


def graph(*operations, outputs=None):
    return Graph(operations=operations, inputs=("x",), outputs=tuple((outputs or operations[-1].outputs[0]).split()))


def conv(name="conv", inputs="x", *, bias=None, **settings):
    weights = {"kernel": np.ones((3, 3, 1, 4))} | ({} if bias is None else {"bias": bias})
    return operation("conv", name, inputs, weights=weights, settings=CONV | settings)


def norm(inputs="conv", name="bn", **settings):
    return operation("batch_norm", name, inputs, settings=settings)


def found(given, *records, **subject):
    records = records or (record(),)
    looked = apply(Subject(records=records, graph=given, **subject))
    return {(one.rule.code, one.level): one.hit for one in looked if one.rule.needs in ("graph", "records")}


def test_a_healthy_graph_has_no_finding():
    relu = operation("activation", "relu", "bn")
    assert found(graph(conv(), norm(), relu)) == {}


@pytest.mark.parametrize("between", [[], ["activation"], ["identity", "dropout"], ["pad"]])
def test_axis_mismatch(between):
    operations, last = [conv(channel_axis=1)], "conv"
    for number, kind in enumerate(between):
        operations.append(operation(kind, f"o{number}", last))
        last = f"o{number}"
    given = graph(*operations, norm(last))
    assert ("BN203", "error") in found(given)
    assert ("BN203", "error") not in found(given, record(axis=1))
    assert ("BN203", "error") not in found(given, record(axis=-3))
    assert ("BN203", "error") not in found(given, record(axis=(1, 2)))


def test_axis_mismatch_with_the_convolution_after_it_and_not_over_a_reshape():
    before = graph(norm("x"), conv("c", "bn", channel_axis=1))
    assert ("BN203", "error") in found(before)
    moved = graph(conv(channel_axis=1), operation("reshape", "t", "conv"), norm("t"))
    assert ("BN203", "error") not in found(moved)


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (0, 3, 1, 2)])
def test_axis_mismatch_follows_the_channels_through_transposes(order):
    """Channels-first convolution: its channels are where the transposition puts axis 1."""
    moved = operation("reshape", "t", "conv", settings={"permutation": order})
    back = operation("reshape", "u", "bn", settings={"permutation": tuple(np.argsort(order))})
    given = graph(conv(channel_axis=1), moved, norm("t"), back, conv("c", "u", channel_axis=1))
    right = order.index(1)
    assert ("BN203", "error") not in found(given, record(axis=right))
    assert ("BN203", "error") in found(given, record(axis=1))
    assert f"axis {right}" in found(given, record(axis=1))["BN203", "error"].message


def test_axis_mismatch_is_silent_where_the_convolution_after_it_agrees():
    """A mixer: one convolution over the channels, the next over the positions."""
    moved = operation("reshape", "t", "conv", settings={"permutation": (0, 2, 1, 3)})
    given = graph(conv(channel_axis=1), moved, norm("t"), conv("c", "bn", channel_axis=1))
    assert ("BN203", "error") not in found(given, record(axis=1))


def test_several_nodes_with_the_same_statistics_are_one_shared_layer():
    a, b = norm("conv", "bn", statistics=(1, 2)), norm("other", "bn2", statistics=(1, 2))
    given = graph(conv(), conv("other"), a, b, operation("add", "sum", "bn bn2"))
    hit = found(given, record(), record(name="bn2"))["BN303", "note"]
    assert (hit.layer, hit.layers) == ("bn", ("bn", "bn2"))
    # Layers that nobody trained share constants because they are equal.
    fresh = {"moving_mean": f32(0, 0, 0, 0), "moving_variance": f32(1, 1, 1, 1)}
    assert ("BN303", "note") not in found(given, record(**fresh), record(name="bn2", **fresh))


def test_training_mode_and_batch_statistics():
    assert ("BN204", "error") in found(None, record(mode="training"))
    assert "predict()" in found(None, record(mode="training"))["BN204", "error"].message
    assert "predict()" not in found(None, record(mode="training"), deployed=True)["BN204", "error"].message
    assert ("BN205", "warning") in found(None, record(mode="batch-statistics"))


def test_useless_bias():
    bias = f32(0.1, 0, 0.2, 0)
    assert ("BN301", "note") in found(graph(conv(bias=bias), norm()))
    assert found(graph(conv(bias=0 * bias), norm())) == {}
    used = graph(conv(bias=bias), norm(), operation("add", "sum", "bn conv"))
    assert found(used) == {}
    activated = graph(conv(bias=bias, activation="relu"), norm())
    assert found(activated) == {}


def test_dropout_before():
    dropped = graph(operation("dropout", "drop", "x"), conv(inputs="drop"), norm())
    assert ("BN302", "note") in found(dropped)
    depth = graph(operation("stochastic_depth", "drop", "x"), conv(inputs="drop"), norm())
    assert found(depth) == {}
    added = graph(operation("dropout", "drop", "x"), operation("add", "sum", "drop x"), conv(inputs="sum"), norm())
    assert found(added) == {}
    behind = graph(conv(), norm(), operation("dropout", "drop", "bn"))
    assert found(behind) == {}


def measure(one, *calls):
    stream = Stream(one, batched=False)
    stream.add([(x, x) for x in calls], len(calls[0]))
    return Measurements(len(calls[0]), {one.name: stream.result()})


def draw(seed, mean=0.0, sd=1.0):
    return np.random.default_rng(seed).normal(mean, sd, (400, 4)).astype(np.float32)


def test_dropout_that_shifts_the_variance():
    dropped = graph(operation("dropout", "drop", "x"), conv(inputs="drop"), norm())
    one = record(moving_mean=f32(0, 0, 0, 0), moving_variance=f32(1.5, 1.4, 1.6, 1.5))
    assert ("BN302", "warning") in found(dropped, one, data=measure(one, draw(0)))
    fine = record(moving_mean=f32(0, 0, 0, 0), moving_variance=f32(1, 1.1, 1, 0.9))
    assert ("BN302", "note") in found(dropped, fine, data=measure(fine, draw(0)))


def test_shared_layer():
    twice = graph(
        conv("a"), norm("a"), conv("b"), operation("batch_norm", "bn", "b", "bn2"), operation("add", "s", "bn bn2")
    )
    assert ("BN303", "note") in found(twice)
    one = record(moving_mean=f32(0, 0, 0, 0), moving_variance=f32(1, 1, 1, 1))
    assert ("BN303", "warning") in found(twice, one, data=measure(one, draw(0), draw(1, 2.0)))
    assert ("BN303", "note") in found(twice, one, data=measure(one, draw(0), draw(1)))


def test_normalised_twice():
    second = record(name="second")
    straight = graph(conv(), norm(), operation("elementwise_linear", "scale", "bn"), norm("scale", "second"))
    assert found(straight, record(), second)["BN304", "note"].layer == "second"
    activated = graph(conv(), norm(), operation("activation", "relu", "bn"), norm("relu", "second"))
    assert found(activated, record(), second) == {}


def test_unused_layer():
    aside = graph(conv(), norm(), conv("end", "conv"))
    assert found(aside)["BN305", "note"].layer == "bn"
    assert found(graph(conv(), norm(), conv("end", "conv"), outputs="end bn")) == {}


def test_a_layer_that_is_never_called():
    assert found(graph(conv(), norm()), record(), record(name="other"))["BN305", "note"].layer == "other"
    assert found(graph(conv()), record()) == {}  # a graph that names no layer says nothing about any


def test_foldable_in_a_deployed_graph_only():
    given, one = graph(conv(), norm()), record(mode="inference")
    assert ("BN306", "note") in found(given, one, deployed=True)
    assert found(given, one) == {}
    assert found(graph(conv(activation="relu"), norm()), one, deployed=True) == {}
    assert found(given, record(mode="training"), deployed=True).keys() == {("BN204", "error")}


def test_runtime_faults():
    fresh = record(mode="training", beta=f32(0, 0, 0, 0), moving_mean=f32(0, 0, 0, 0), gamma=f32(2, 2, 2, 2))
    assert ("BN307", "warning") in found(graph(conv(), norm(opset=15)), fresh, deployed=True)
    assert ("BN307", "warning") not in found(graph(conv(), norm()), fresh, deployed=True)
    old = record(mode="inference")
    assert ("BN307", "note") in found(graph(conv(), norm(opset=12)), old, deployed=True)
    assert ("BN307", "note") not in found(graph(conv(), norm(opset=14)), old, deployed=True)
