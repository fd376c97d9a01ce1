"""A layer of which only scale and shift are left, beside the whole one: the same, or the fault is named."""

import ml_dtypes
import numpy as np
import pytest

from batchnorm.analysis.constants import Constants
from batchnorm.analysis.diff import compare
from batchnorm.analysis.folded import effective, is_folded, is_merged, scale_and_shift
from tests.analysis.cases import record

RNG = np.random.default_rng(0)
CHANNELS = 12
ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


def layer(**changes):
    rng = np.random.default_rng(1)
    arrays = {
        "gamma": rng.uniform(0.5, 2, CHANNELS),
        "beta": rng.normal(size=CHANNELS),
        "moving_mean": rng.normal(size=CHANNELS),
        "moving_variance": rng.uniform(0.2, 3, CHANNELS),
    }
    arrays = {role: values.astype(np.float32) for role, values in arrays.items()}
    return record(channels=CHANNELS, **(arrays | changes))


def folded(whole, *, mean=False, name="folded"):
    """What a converter leaves of a layer, computed in float32 as converters do."""
    f = np.float32
    scale = (whole.gamma / np.sqrt(whole.moving_variance + f(whole.epsilon))).astype(f)
    kept = {"moving_mean": whole.moving_mean, "beta": whole.beta} if mean else {
        "moving_mean": None, "beta": (whole.beta - whole.moving_mean * scale).astype(f)}  # fmt: skip
    return record(
        name=name, channels=CHANNELS, kind="MUL/ADD (folded)", gamma=scale, moving_variance=None, epsilon=None,
        epsilon_source="unknown", mode="inference", averaging="unknown", decay=None, momentum=None, ddof=None, **kept,
    )  # fmt: skip


def through(dtype):
    return {role: getattr(layer(), role).astype(dtype).astype(np.float32) for role in ROLES}


WHOLE = layer()
FAULTS = {
    "epsilon": {"epsilon": 1e-5},
    "ddof": {"moving_variance": WHOLE.moving_variance * np.float32(32 / 31)},
    "gamma": {"gamma": WHOLE.gamma + np.float32(0.25)},
    "beta": {"beta": WHOLE.beta[::-1]},
    "moving_mean": {"moving_mean": WHOLE.moving_mean * 2},
    "moving_variance": {"moving_variance": WHOLE.moving_variance**2},
    "swapped gamma/beta": {"gamma": WHOLE.beta, "beta": WHOLE.gamma},
    "swapped mean/variance": {"moving_mean": WHOLE.moving_variance, "moving_variance": WHOLE.moving_mean},
    "dtype": through(np.float16),
    "dtype bfloat16": through(ml_dtypes.bfloat16),
}
ONE_NUMBER = {"moving_variance": "gamma", "moving_mean": "beta"}
"""What a folded layer holds as one number with another is named as that, and the detail says so."""


def only(a, b):
    (pair,) = compare([a], [b], kindred=False).pairs
    return pair


@pytest.mark.parametrize("mean", [True, False])
def test_the_same_layer_is_no_difference(mean):
    for whole in (WHOLE, layer(gamma=None), layer(beta=None)):
        given = whole.replace(gamma=np.ones(CHANNELS, np.float32)) if whole.gamma is None else whole
        given = given.replace(beta=np.zeros(CHANNELS, np.float32)) if given.beta is None else given
        for a, b in ((whole, folded(given, mean=mean)), (folded(given, mean=mean), whole)):
            pair = only(a, b)
            assert (pair.differences, pair.max_output_change, pair.paired_by) == ((), 0.0, "values")


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.filterwarnings("ignore:invalid value")  # the root of a negative mean
def test_the_fault_is_named(what, mean):
    wrong = folded(layer(**FAULTS[what]), mean=mean)
    pair = only(WHOLE, wrong)
    (found,) = pair.differences
    told = mean and what == "moving_mean"
    assert found.what == (what if told else ONE_NUMBER.get(what, what.split(" bf")[0]))
    if what in ONE_NUMBER and not told:
        assert what in found.detail
    # The output moves as the folded numbers say, within the rounding of their float32.
    constants = [Constants.of(effective(one), 0.0) for one in (WHOLE, wrong)]
    x = constants[0].ends(constants[1])
    moved = np.abs(constants[1].output(x) - constants[0].output(x))
    np.testing.assert_allclose(pair.max_output_change, moved.max(), rtol=1e-12)
    (other,) = only(wrong, WHOLE).differences
    assert (other.what, other.a, other.b) == (found.what, found.b, found.a)


def test_two_faults_are_both_shown():
    found = only(WHOLE, folded(layer(gamma=WHOLE.gamma + 1, beta=WHOLE.beta + np.float32(RNG.normal(size=CHANNELS)))))
    assert {one.what for one in found.differences} == {"gamma", "beta"}
    assert all("no single constant" in one.detail for one in found.differences)


def test_an_epsilon_that_the_whole_layer_does_not_know_is_fitted():
    for epsilon in (1e-3, 1e-5, 0.0123):
        wanted = layer(epsilon=epsilon)
        (found,) = only(WHOLE.replace(epsilon=None, epsilon_source="unknown"), folded(wanted)).differences
        assert (found.what, found.a, found.max_output_change) == ("epsilon", None, None)
        # The fit is as good as the scale it comes from: 16 u of a variance of 0.2.
        assert found.b == pytest.approx(epsilon, rel=1e-3, abs=4e-6)


def test_two_folded_layers():
    assert only(folded(WHOLE), folded(WHOLE)).differences == ()
    assert only(folded(WHOLE), folded(WHOLE, mean=True)).differences == ()
    assert only(folded(WHOLE, mean=True), folded(WHOLE)).differences == ()
    (found,) = only(folded(WHOLE), folded(layer(beta=WHOLE.beta + 1))).differences
    assert (found.what, found.max_output_change) == ("beta", pytest.approx(1, rel=1e-5))


def test_a_merged_layer_is_not_compared():
    merged = folded(WHOLE).replace(gamma=None, beta=None)
    assert is_merged(merged)
    assert is_folded(merged)
    pair = only(WHOLE, merged)
    assert (pair.differences, pair.max_output_change) == ((), None)


def test_folded_layers_find_their_partners_by_value():
    others = [layer(gamma=WHOLE.gamma + n) for n in range(3)]
    found = compare([one.replace(name=f"bn{n}") for n, one in enumerate(others)],
                    [folded(one, name=f"mul{n}") for n, one in enumerate(others[::-1])], kindred=False)  # fmt: skip
    assert [(pair.a, pair.b) for pair in found.pairs] == [("bn0", "mul2"), ("bn1", "mul1"), ("bn2", "mul0")]
    assert not any(pair.differences for pair in found.pairs)


def test_an_epsilon_given_for_all_layers_is_none_of_a_folded_one():
    given = folded(WHOLE).with_epsilon(1e-3)
    assert is_folded(given)
    assert effective(given).epsilon == 0
    assert only(WHOLE, given).differences == ()


def test_a_layer_that_is_not_folded_is_left_alone():
    assert effective(WHOLE) is WHOLE
    bare = WHOLE.replace(moving_mean=None, moving_variance=None, mode="batch-statistics")
    assert not is_folded(bare)
    assert effective(bare) is bare


def test_scale_and_shift_are_the_equation():
    constants = Constants.of(WHOLE, 0.0)
    scale, shift = scale_and_shift(constants)
    x = np.linspace(-2, 2, CHANNELS)
    np.testing.assert_allclose(x * scale + shift, constants.output(x), rtol=1e-12, atol=1e-12)
