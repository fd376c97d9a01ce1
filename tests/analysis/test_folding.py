"""The algebra of folding against the operations themselves, in float64; and what the planner refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm.analysis.fold_plan import planned
from batchnorm.analysis.folding import Affine, Linear, affine_of, bound, tolerance
from batchnorm.core.graph import Graph, Operation
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ModelFileError

torch = pytest.importorskip("torch", reason="its convolutions in float64 are the referee")
F = torch.nn.functional
CONVOLUTIONS = {
    False: {1: F.conv1d, 2: F.conv2d, 3: F.conv3d},
    True: {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d},
}
# Sums of at most 4*3**3 products in float64 on both sides: 108 roundings of 1.1e-16 on numbers of the size of 1.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


@st.composite
def convolutions(draw):
    rank, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups, per_group_in, per_group_out = (draw(st.integers(1, 3)) for _ in range(3))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    ins, outs = groups * per_group_in, groups * per_group_out
    shape = (ins, per_group_out, *kernel) if transposed else (outs, per_group_in, *kernel)
    how = {"groups": groups, "stride": draw(st.integers(1, 2)), "padding": draw(st.integers(0, 1)) * min(kernel) // 2}
    how["dilation"] = draw(st.integers(1, 2))
    return rank, transposed, ins, outs, shape, how, draw(st.booleans()), draw(st.integers(0, 2**32 - 1))


def settings_of(transposed, groups):
    return {"groups": groups, "kernel_out_axis": int(transposed), "kernel_in_axis": int(not transposed)}


def affine(rng, channels, shift=True):
    return Affine(rng.normal(size=channels), rng.normal(size=channels) * shift)


def applied(one, x):
    shape = (1, -1, *[1] * (x.ndim - 2))
    return x * torch.from_numpy(one.scale.reshape(shape)) + torch.from_numpy(one.shift.reshape(shape))


def run(linear, x, transposed, rank, how):
    kernel, bias = linear.stored(np.float64)
    return CONVOLUTIONS[transposed][rank](x, torch.from_numpy(kernel), torch.from_numpy(bias), **how)


@settings(max_examples=150, deadline=None)
@given(convolutions())
def test_every_convolution_takes_a_batch_normalization_in(case):
    """After it always; before it where nothing is padded or transposed, or nothing shifted."""
    rank, transposed, ins, outs, shape, how, has_bias, seed = case
    rng = np.random.default_rng(seed)
    kernel, bias = rng.normal(size=shape), rng.normal(size=outs) if has_bias else None
    linear = Linear.of(kernel, bias, settings_of(transposed, how["groups"]), "conv_transpose" if transposed else "conv")
    assert (linear.inputs, linear.outputs) == (ins, outs)
    np.testing.assert_array_equal(linear.stored(np.float64)[0], kernel)
    x = torch.from_numpy(rng.normal(size=(2, ins, *[7] * rank)))
    plain = run(linear, x, transposed, rank, how)
    after = affine(rng, outs)
    np.testing.assert_allclose(run(linear.then(after), x, transposed, rank, how), applied(after, plain), **CLOSE)
    before = affine(rng, ins, shift=not transposed and not how["padding"])
    folded = linear.after(before)
    wanted = run(linear, applied(before, x), transposed, rank, how)
    np.testing.assert_allclose(run(folded, x, transposed, rank, how), wanted, **CLOSE)
    both = run(folded.then(after), x, transposed, rank, how)
    np.testing.assert_allclose(both, applied(after, wanted), **CLOSE)
    np.testing.assert_allclose(run(linear.then(after).after(before), x, transposed, rank, how), both, **CLOSE)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_layouts_of_keras_are_those_of_torch_transposed(rank):
    rng = np.random.default_rng(rank)
    after, before = affine(rng, 6), affine(rng, 4)
    kernel = rng.normal(size=(6, 2, *[3] * rank))  # two groups
    theirs = Linear.of(kernel, None, settings_of(False, 2), "conv").then(after).after(before)
    moved = np.moveaxis(kernel, (0, 1), (-1, -2))
    ours = Linear.of(moved, None, {"groups": 2, "kernel_out_axis": -1, "kernel_in_axis": -2}, "conv")
    folded, bias = ours.then(after).after(before).stored(np.float64)
    np.testing.assert_allclose(np.moveaxis(folded, (-1, -2), (0, 1)), theirs.stored(np.float64)[0], rtol=1e-15)
    np.testing.assert_allclose(bias, theirs.bias, rtol=1e-14)
    # Depthwise: Keras keeps (taps, channels, multiplier), torch (channels * multiplier, 1, taps) with a group each.
    kernel = rng.normal(size=(8, 1, *[3] * rank))
    after = affine(rng, 8)
    theirs = Linear.of(kernel, None, settings_of(False, 4), "conv").then(after).after(before)
    moved = np.moveaxis(kernel.reshape(4, 2, *[3] * rank), (0, 1), (-2, -1))
    ours = Linear.of(moved, None, {"depthwise": True, "groups": None}, "conv").then(after).after(before)
    folded, bias = ours.stored(np.float64)
    np.testing.assert_allclose(np.moveaxis(folded, (-2, -1), (0, 1)).reshape(kernel.shape), theirs.stored("f8")[0])
    np.testing.assert_allclose(bias, theirs.bias)


def test_dense_layers():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(5, 3)), rng.normal(size=3)
    x, before, after = rng.normal(size=(4, 5)), affine(rng, 5), affine(rng, 3)
    held = {"kernel_out_axis": 1, "kernel_in_axis": 0}
    folded, added = Linear.of(kernel, bias, held, "dense").after(before).then(after).stored(np.float64)
    wanted = ((x * before.scale + before.shift) @ kernel + bias) * after.scale + after.shift
    np.testing.assert_allclose(x @ folded + added, wanted, **CLOSE)
    turned = Linear.of(kernel.T, bias, {"kernel_out_axis": 0, "kernel_in_axis": 1}, "dense").after(before).then(after)
    np.testing.assert_array_equal(turned.stored(np.float64)[0].T, folded)


def test_scale_and_shift_are_computed_in_float64():
    one = record("bn", 1, gamma=np.float32([0.80644524]), mean=np.float32([0.05885344]), var=np.float32([0.91000736]))
    found = affine_of(one)
    assert found.scale.dtype == np.float64
    wanted = float(np.float32(0.80644524)) / np.sqrt(float(np.float32(0.91000736)) + 1e-3)
    assert found.scale[0] == pytest.approx(wanted, rel=1e-15)
    assert found.shift[0] == pytest.approx(-wanted * float(np.float32(0.05885344)), rel=1e-15)


def test_the_bound_grows_with_depth_and_size():
    u = 2.0**-24
    assert bound([0], "float32") == pytest.approx(5 * np.sqrt(6) * u)
    assert bound([576] * 4, "float32") == pytest.approx(2 * bound([576], "float32"))
    assert bound([576], "float64") < 1e-12
    assert tolerance([576] * 100, "float32") == 1e-5
    assert tolerance([576], "float16") == pytest.approx(bound([576], "float16"))
    assert 5 * 2.0**-11 < tolerance([576], "float16") < 0.02


def record(name, channels, gamma=None, mean=None, var=None, axis=1, **more):
    return LayerRecord(
        name=name, kind="BatchNormalization", channels=channels, axis=axis, dtype="float32", gamma=gamma,
        beta=more.pop("beta", None), moving_mean=np.zeros(channels, "f4") if mean is None else mean,
        moving_variance=np.ones(channels, "f4") if var is None else var,
        **{"epsilon": 1e-3, "epsilon_source": "file"} | more,
    )  # fmt: skip


def conv(name, given, out, *, kernel=(4, 4, 3, 3), kind="conv", shared=False, weights=None, **settings):
    held = {"kernel": lambda: np.ones(kernel, "f4")} if weights is None else weights
    more = {"rank": 2, "groups": 1, "channel_axis": 1, "pads": False, "kernel_out_axis": 0, "kernel_in_axis": 1}
    if kind == "dense":
        more = {"channel_axis": -1, "kernel_out_axis": 1, "kernel_in_axis": 0}
    return Operation(name=name, kind=kind, operator="Conv", inputs=(given,), outputs=(out,), weights=held,
                     settings=more | settings, shared=shared)  # fmt: skip


def op(kind, given, out, name=None, **settings):
    given = given if isinstance(given, tuple) else (given,)
    return Operation(
        name=name or kind, kind=kind, operator=kind, inputs=given, outputs=(out,),
        shared=settings.pop("shared", False), settings=settings,
    )  # fmt: skip


def norm(given, out, name="bn", **settings):
    return op("batch_norm", given, out, name, **settings)


def plan(*operations, records=None, out="y", ranks=None, skip=()):
    graph = Graph(operations=operations, inputs=("x",), outputs=out if isinstance(out, tuple) else (out,))
    return planned(graph, records or [record("bn", 4)], ranks or {}, skip)


SHIFTED = {"beta": np.ones(4, "f4")}


def too_large():
    raise ModelFileError("m.onnx: array 'w' is too large.")


REFUSED = {
    "two consumers": ((conv("c", "x", "a"), norm("a", "b"), op("add", ("a", "b"), "y")), {}, "second consumer: add"),
    "an output, too": ((conv("c", "x", "a"), norm("a", "y")), {"out": ("a", "y")}, "an output of the model, too"),
    "shared kernel": ((conv("c", "x", "a", shared=True), norm("a", "y")), {}, "c is shared"),
    "shared layer": ((conv("c", "x", "a"), norm("a", "y", shared=True)), {}, "it is shared"),
    "called twice": ((conv("c", "x", "a"), norm("a", "b"), norm("b", "y")), {}, "it is shared"),
    "activation between": ((conv("c", "x", "a"), op("activation", "a", "b", "relu"), norm("b", "y")), {},
                           "an activation (relu) feeds it"),
    "activation inside": ((conv("c", "x", "a", activation="relu"), norm("a", "y")), {}, "c applies relu before it"),
    "padding between": ((norm("x", "a"), op("pad", "a", "b"), conv("c", "b", "y")), {}, "it feeds a padding (pad)"),
    "dropout between": ((conv("c", "x", "a"), op("dropout", "a", "b"), norm("b", "y")), {}, "a dropout"),
    "padded": ((norm("x", "a"), conv("c", "a", "y", pads=True)), {"records": [record("bn", 4, **SHIFTED)]},
               "the border would see the shift"),
    "transposed": ((norm("x", "a"), conv("c", "a", "y", kind="conv_transpose", kernel_out_axis=1, kernel_in_axis=0)),
                   {"records": [record("bn", 4, **SHIFTED)]}, "the border would see the shift"),
    "training mode": ((conv("c", "x", "a"), norm("a", "y")), {"records": [record("bn", 4, mode="training")]},
                      "training mode"),
    "training call": ((conv("c", "x", "a"), norm("a", "y", training=True)), {}, "training mode"),
    "batch statistics": ((conv("c", "x", "a"), norm("a", "y")), {"records": [record("bn", 4, mode="batch-statistics")]},
                         "statistics of each batch"),
    "unknown epsilon": ((conv("c", "x", "a"), norm("a", "y")),
                        {"records": [record("bn", 4, epsilon=None, epsilon_source="unknown")]}, "--eps"),
    "dynamic kernel": ((conv("c", "x", "a", weights={}), norm("a", "y")), {}, "no stored constant"),
    "unreadable": ((conv("c", "x", "a", weights={"kernel": too_large}), norm("a", "y")), {}, "cannot be read (m.onnx"),
    "dynamic bias": ((conv("c", "x", "a", bias_name="b"), norm("a", "y")), {}, "the bias of c is no stored constant"),
    "quantised": ((conv("c", "x", "a", weights={"kernel": lambda: np.ones((4, 4, 3, 3), "i1")}), norm("a", "y")), {},
                  "quantised (int8)"),
    "NaN": ((conv("c", "x", "a"), norm("a", "y")), {"records": [record("bn", 4, var=np.full(4, np.nan, "f4"))]},
            "not finite"),
    "negative variance": ((conv("c", "x", "a"), norm("a", "y")), {"records": [record("bn", 4, var=np.full(4, -1.0))]},
                          "not finite"),
    "channels": ((conv("c", "x", "a", kernel=(5, 4, 3, 3)), norm("a", "y")), {}, "it has 4 channels, and c 5"),
    "axis": ((conv("c", "x", "a"), norm("a", "y")), {"records": [record("bn", 4, axis=-1)]}, "axis 3 of 4"),
    "a sequence": ((conv("c", "x", "a", kernel=(4, 4), kind="dense"), norm("a", "y")), {"ranks": {"bn": 3}},
                   "axis 1 of 3, and the channels of c lie on axis 2"),
    "rank unknown": ((conv("c", "x", "a", kernel=(4, 4), kind="dense"), norm("a", "y")), {}, "--data"),
    "several axes": ((conv("c", "x", "a"), norm("a", "y")), {"records": [record("bn", 4, axis=(1, 2))]},
                     "several axes"),
    "hooks": ((conv("c", "x", "a", unfoldable="has hooks"), norm("a", "y")), {}, "c has hooks"),
    "factor": ((conv("c", "x", "a", kernel=(4, 4), kind="dense", alpha=2.0), norm("a", "y")), {"ranks": {"bn": 2}},
               "alpha or beta"),
    "nothing beside it": ((op("add", ("x", "x"), "a"), norm("a", "b"), op("activation", "b", "y", "relu")), {},
                          "no convolution or dense layer is beside it: an addition (add) feeds it"),
    "the input": ((norm("x", "y"),), {}, "fed by the model's input"),
    "separable before": ((norm("x", "a"), conv("c", "a", "y", separable=True)), {}, "two kernels"),
    "over time": ((conv("c", "x", "a"), norm("a", "y", wrapper="TimeDistributed")), {}, "inside a TimeDistributed"),
    "in a function": ((conv("c", "x", "a"), norm("a", "y", inside=True)), {}, "inside a function"),
    "not in the graph": ((conv("c", "x", "y"),), {}, "does not show where"),
    "skipped": ((conv("c", "x", "a"), norm("a", "y")), {"skip": ["bn"]}, "left out as asked"),
    "shapes": ((conv("c", "x", "a", kernel=(4, 4, 3, 3), groups=3), norm("a", "y")), {}, "does not go with"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case):
    operations, how, why = REFUSED[case]
    found = plan(*operations, **how)
    assert not found.folds
    assert why in found.refused[0].why


def test_folded_before_where_nothing_is_shifted_though_padded_or_transposed():
    for how in ({"pads": True}, {"kind": "conv_transpose", "kernel_out_axis": 1, "kernel_in_axis": 0}):
        found = plan(norm("x", "a"), conv("c", "a", "y", **how))
        assert [(each.layer, each.into, each.where) for each in found.folds] == [("bn", "c", "before")]
        assert not found.refused


def test_identities_between_and_chains_of_batch_normalizations():
    both = [record("bn", 4, mean=np.float32([1, 2, 3, 4])), record("b2", 4, var=np.float32([4, 4, 4, 4]))]
    found = plan(conv("c", "x", "a"), op("identity", "a", "b"), norm("b", "d"), norm("d", "y", "b2"), records=both)
    assert [each.layer for each in found.folds] == ["bn", "b2"]
    (edit,) = found.edits
    one, two = (affine_of(each) for each in both)
    np.testing.assert_allclose(edit.linear.bias, one.shift * two.scale + two.shift)
    # Two of them before one convolution: the second finds its place when the nearer one is gone.
    found = plan(norm("x", "a"), norm("a", "b", "b2"), conv("c", "b", "y"), records=both)
    assert sorted(each.layer for each in found.folds) == ["b2", "bn"]
    (edit,) = found.edits
    x = np.random.default_rng(0).normal(size=4)
    wanted = (x * one.scale + one.shift) * two.scale + two.shift
    got = edit.linear.kernel[0].sum(axis=2) @ x + edit.linear.bias
    np.testing.assert_allclose(got, np.ones((4, 4)) * 9 @ wanted, rtol=1e-6)  # a kernel stored in float32


def test_one_on_each_side_of_a_convolution():
    both = [record("bn", 4, mean=np.float32([1, 2, 3, 4])), record("b2", 4, beta=np.float32([1, 0, 0, 0]))]
    found = plan(norm("x", "a"), conv("c", "a", "b"), norm("b", "y", "b2"), records=both)
    assert [(each.layer, each.where) for each in found.folds] == [("bn", "before"), ("b2", "after")]
    assert len(found.edits) == 1
