"""Every kind of difference between two records, and which layer is paired with which."""

import ml_dtypes
import numpy as np
import pytest

import batchnorm as bn
from batchnorm.analysis.diff import compare
from batchnorm.core import reference

from .cases import Fake, f32, record

A = record()
ARRAYS = {role: getattr(A, role) for role in ("gamma", "beta", "moving_mean", "moving_variance")}


def differences(a, b, **more):
    (pair,) = compare([a], [b], **more).pairs
    return pair.differences


def only(a, b, **more):
    (found,) = differences(a, b, **more)
    return found


def output(one, x, epsilon):
    return reference.inference(x, one.moving_mean, one.moving_variance, one.gamma, one.beta, epsilon=epsilon, axis=-1)


def brute_force(a, b, epsilon_b):
    """The largest difference on a fine grid over three standard deviations, by the reference."""
    steps = np.linspace(-3, 3, 201)[:, None]
    x = a.moving_mean.astype(np.float64) + steps * np.sqrt(a.moving_variance.astype(np.float64))
    return np.max(np.abs(output(b, x, epsilon_b) - output(a, x, a.epsilon)))


def through(values, dtype):
    with np.errstate(over="ignore"):
        return values.astype(dtype).astype(np.float32)


CHANGED = {
    "gamma": {"gamma": f32(1.1, 0.9, 1.5, -0.5)},
    "beta": {"beta": f32(0.1, -0.2, 0.0, 0.9)},
    "moving_mean": {"moving_mean": f32(0.5, -1.0, 2.0, 0.25)},
    "moving_variance": {"moving_variance": f32(1.2, 0.8, 2.5, 1.9)},
    "swapped gamma/beta": {"gamma": A.beta, "beta": A.gamma},
    "swapped mean/variance": {"moving_mean": f32(1.2, 0.8, 2.5, 0.9), "moving_variance": f32(0.5, 1.0, 2.0, 3.0)},
    "ddof": {"moving_variance": A.moving_variance * np.float32(32 / 31)},
    "epsilon": {"epsilon": 1e-5},
    "dtype": {role: through(values, np.float16) for role, values in ARRAYS.items()},
}


@pytest.mark.parametrize("what", CHANGED)
def test_each_constant_of_the_equation_is_named_with_its_change(what):
    a = A
    if what == "swapped mean/variance":  # a mean that can be a variance
        a = record(moving_mean=CHANGED[what]["moving_variance"], moving_variance=CHANGED[what]["moving_mean"])
    b = a.replace(**CHANGED[what])
    found = only(a, b)
    assert found.what == what
    assert found.changes_output
    # Both outputs are affine, so the ends of the grid are the maximum; what is left is float64 rounding.
    assert found.max_output_change == pytest.approx(brute_force(a, b, b.epsilon), rel=1e-12)
    back = only(b, a)
    assert back.what == what


def test_an_array_shows_its_values_where_it_matters_most():
    found = only(A, A.replace(**CHANGED["gamma"]))
    assert (found.channel, found.channels) == (2, 1)
    assert (found.a, found.b) == (1.0, 1.5)


def test_what_inference_does_not_use_moves_nothing():
    decay = only(A, A.replace(decay=0.9, momentum=0.9))
    assert (decay.what, decay.a, decay.b, decay.max_output_change) == ("decay", 0.99, 0.9, 0.0)
    convention = only(A, A.replace(decay=1 - 0.99, momentum=0.99))
    assert (convention.what, convention.max_output_change) == ("momentum-convention", 0.0)
    cumulative = only(A, A.replace(averaging="cumulative", decay=None))
    assert (cumulative.what, cumulative.b) == ("decay", "cumulative")
    divisor = only(A, A.replace(ddof=1))
    assert (divisor.what, divisor.a, divisor.b, divisor.max_output_change) == ("ddof", 0, 1, 0.0)
    frozen = only(A, A.replace(mode="frozen"))
    assert (frozen.what, frozen.max_output_change) == ("mode", 0.0)


def test_training_mode_in_the_graph():
    found = only(A, A.replace(mode="training"))
    assert (found.what, found.a, found.b) == ("mode", "by-call", "training")
    # A constant batch comes out as beta, so that |gamma| * 3 sd / sqrt(variance + epsilon) is lost at 3 sd.
    sd = np.sqrt(A.moving_variance.astype(float))
    assert found.max_output_change == pytest.approx(np.max(np.abs(A.gamma) * 3 * sd / np.sqrt(sd**2 + 1e-3)), rel=1e-6)
    assert not differences(A, A.replace(mode="inference"), kindred=False)
    assert only(A, A.replace(mode="training"), kindred=False).what == "mode"


def test_axis():
    found = only(A, A.replace(axis=1))
    assert (found.what, found.a, found.b) == ("axis", -1, 1)
    x = A.moving_mean.astype(float) + np.array([[-3.0], [3.0]]) * np.sqrt(A.moving_variance.astype(float))
    own = output(A, x, A.epsilon)
    crossed = [np.abs(own[:, c, None] - output(A, np.repeat(x[:, c, None], 4, 1), A.epsilon)).max() for c in range(4)]
    assert found.max_output_change == pytest.approx(max(crossed), rel=1e-12)
    assert not differences(A, A.replace(axis=1), kindred=False)  # a channels-first conversion
    assert not differences(A, A.replace(axis=3))  # the last axis of images, as tf.keras counts it
    assert only(A, A.replace(axis=(1, 2))).b == [1, 2]


def test_equal_numbers_in_other_clothes_are_silent():
    assert differences(A, A) == ()
    ones = record(gamma=None, beta=None)
    assert not differences(ones, record(gamma=f32(1, 1, 1, 1), beta=f32(0, 0, 0, 0)))
    assert not differences(A, A.replace(epsilon=float(np.float32(1e-3)), decay=1 - (1 - 0.99)))
    assert not differences(A, A.replace(decay=float(np.float32(0.99))))
    nan = record(moving_mean=f32(np.nan, 0, 0, 0))
    assert not differences(nan, nan)


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16")])
def test_rounding_is_named_by_its_type(dtype, name):
    found = only(A, A.replace(moving_mean=through(f32(0.5, -1.0, 2.0, 0.1), dtype)).replace(moving_mean=A.moving_mean,
                 gamma=through(A.gamma, dtype)))  # fmt: skip
    assert (found.what, found.a, found.b) == ("dtype", "float32", name)
    assert "gamma" in found.detail
    assert 0 < found.max_output_change < 3 * 1.1 * 2.0**-8  # |gamma| (1 + u) 3 sd, u of bfloat16 at most


def test_the_last_digit_of_float32_and_double_precision():
    nudged = A.replace(moving_variance=np.nextafter(A.moving_variance, np.float32(9)))
    assert only(A, nudged).what == "dtype"
    wide = record(dtype="float64", moving_mean=np.array([0.1, 0.2, 0.3, 0.4]))
    narrow = record(moving_mean=f32(0.1, 0.2, 0.3, 0.4))
    found = only(wide, narrow)
    assert (found.what, found.a, found.b) == ("dtype", "float64", "float32")
    stored = only(A, A.replace(dtype="float16", **{role: values.astype(np.float16) for role, values in ARRAYS.items()}))
    assert (stored.what, stored.b) == ("dtype", "float16")
    exact = only(record(dtype="float64"), A)
    assert (exact.what, exact.max_output_change) == ("dtype", 0.0)


def test_an_overflow_to_infinity_is_damage():
    large = record(moving_variance=f32(1e5, 1, 1, 1))
    found = only(large, large.replace(moving_variance=through(large.moving_variance, np.float16)))
    assert found.what == "dtype"
    # Infinite variance: the output is beta, where |gamma| * 3 was.
    assert found.max_output_change == pytest.approx(3 * 1.1, rel=1e-3)


def test_one_channel_does_not_make_a_divisor():
    one = record(channels=1, **{role: values[:1] for role, values in ARRAYS.items()})
    assert only(one, one.replace(moving_variance=one.moving_variance * np.float32(32 / 31))).what == "ddof"
    assert only(one, one.replace(moving_variance=one.moving_variance * np.float32(1.0123))).what == "moving_variance"
    assert only(one, one.replace(moving_variance=one.moving_variance * np.float32(1.00001))).what == "moving_variance"
    dead = record(moving_variance=f32(1.2, 0, 2.5, 0.9))
    assert only(dead, dead.replace(moving_variance=dead.moving_variance * np.float32(8 / 7))).what == "ddof"


def test_an_unknown_epsilon_is_said_and_not_guessed():
    unknown = A.replace(epsilon=None, epsilon_source="unknown")
    found = only(A, unknown)
    assert (found.what, found.b, found.max_output_change, found.changes_output) == ("epsilon", None, None, False)
    assert differences(unknown, unknown) == ()
    assert only(unknown, unknown.replace(**CHANGED["beta"])).max_output_change == pytest.approx(0.6, rel=1e-6)


def test_a_lost_epsilon_names_whose_default_it_is():
    assert "PyTorch" in only(A, A.replace(epsilon=1e-5)).detail


def test_a_negative_variance_makes_nan():
    swapped = A.replace(moving_mean=A.moving_variance, moving_variance=A.moving_mean)
    found = only(A, swapped)
    assert found.what == "swapped mean/variance"
    assert np.isnan(found.max_output_change)
    assert found.changes_output


def test_several_at_once_the_worst_first():
    b = A.replace(epsilon=1e-5, decay=0.9, **CHANGED["gamma"])
    (pair,) = compare([A], [b]).pairs
    assert [one.what for one in pair.differences] == ["gamma", "epsilon", "decay"]
    assert pair.max_output_change == pytest.approx(brute_force(A, b, 1e-5), rel=1e-12)


def layers(count, seed, **more):
    rng = np.random.default_rng(seed)
    return [
        record(
            name=f"block{i}/bn",
            gamma=f32(*rng.uniform(0.5, 2, 4)),
            beta=f32(*rng.normal(0, 1, 4)),
            moving_mean=f32(*rng.normal(0, 1, 4)),
            moving_variance=f32(*rng.uniform(0.5, 2, 4)),
            **more,
        )
        for i in range(count)
    ]


def matched(a, b):
    return [(pair.a, pair.b, pair.paired_by) for pair in compare(a, b).pairs]


def test_values_pair_layers_whatever_their_names_and_order():
    a = layers(6, 0)
    b = [one.replace(name=f"features.{5 - i}") for i, one in enumerate(a[::-1])]
    assert matched(a, b) == [(one.name, f"features.{i}", "values") for i, one in enumerate(a)]


def test_values_pair_layers_that_were_edited():
    a = layers(6, 0)
    names = [one.name for one in a]
    for edit in (
        {"epsilon": 1e-5},
        {"gamma": f32(3, 3, 3, 3)},
        {"dtype": "bfloat16"},
    ):
        b = [one.replace(name=names[-1 - i], **edit) for i, one in enumerate(a)]  # misleading names
        assert matched(a, b) == [(name, names[-1 - i], "values") for i, name in enumerate(names)]
    swapped = [one.replace(name="x", gamma=one.beta, beta=one.gamma) for one in a]
    assert [by for *_, by in matched(a, swapped)] == ["values"] * 6
    assert {one.what for pair in compare(a, swapped).pairs for one in pair.differences} == {"swapped gamma/beta"}


def test_another_training_pairs_by_name_then_by_order():
    a, b = layers(3, 0), layers(3, 1)
    assert matched(a, b[::-1]) == [(one.name, one.name, "name") for one in a]
    renamed = [one.replace(name=f"n{i}") for i, one in enumerate(b)]
    assert matched(a, renamed) == [(one.name, f"n{i}", "order") for i, one in enumerate(a)]


def test_untrained_layers_pair_in_order():
    fresh = record(gamma=f32(1, 1, 1, 1), beta=f32(0, 0, 0, 0), moving_mean=f32(0, 0, 0, 0),
                   moving_variance=f32(1, 1, 1, 1))  # fmt: skip
    a = [fresh.replace(name=f"a{i}") for i in range(3)]
    b = [fresh.replace(name=f"b{i}") for i in range(2)]
    found = compare(a, b)
    assert [(pair.a, pair.b) for pair in found.pairs] == [("a0", "b0"), ("a1", "b1")]
    assert (found.only_a, found.only_b) == (("a2",), ())


def test_shapes_must_agree():
    wide = record(name="wide", channels=8, **{role: np.tile(values, 2) for role, values in ARRAYS.items()})
    found = compare([A, wide], [wide.replace(name="w")])
    assert [(pair.a, pair.b) for pair in found.pairs] == [("wide", "w")]
    assert found.only_a == ("bn",)


def test_thousands_of_equal_layers_take_no_time():
    many = [A.replace(name=f"l{i}") for i in range(2000)]
    found = compare(many, many)
    assert all(pair.a == pair.b for pair in found.pairs)


def test_python_and_text():
    found = bn.diff(Fake(A), Fake(A.replace(epsilon=1e-5)))
    assert found.changes_output
    assert "epsilon" in str(found)
    assert "1e-05" in str(found)
    assert found.to_document()["models"][0]["sha256"] is None
    same = bn.diff(Fake(A), Fake(A))
    assert not same.changes_output
    assert "1 pair of layers, none of them differ" in str(same)
    with pytest.raises(bn.NoBatchNorm):
        bn.diff(Fake(A), Fake())
    hostile = bn.diff(Fake(A.replace(name="\x1b[31m\n[red]")), Fake(A.replace(name="b", epsilon=1.0)))
    assert "\x1b" not in str(hostile)
