"""The figures of an error, worked out by hand; what is allowed, and what never agrees."""

import numpy as np
import pytest

from batchnorm.analysis.agreement import Agreement, Errors, Tolerance, allowed
from batchnorm.analysis.constants import Constants

U32 = 2.0**-24


def constants(gamma=1.0, beta=0.0, mean=0.0, variance=1.0, epsilon=0.0):
    return Constants(*(np.array([v]) for v in (gamma, beta, mean, variance)), epsilon)


BOUND = Tolerance()


def agreement(y, reference, bound, tolerance=BOUND, dtype=np.float32):
    found = Agreement("engine", ("bn",), tolerance)
    y, reference = np.array(y, dtype), np.array(reference, np.float64)
    found.add("bn", np.zeros_like(y), y, reference, np.broadcast_to(np.float64(bound), y.shape))
    return found.result()


def test_the_figures_of_an_error():
    found = agreement([1.0, 2.5, -40.0, 0.0], [1.0, 2.0, -50.0, 0.0], 1.0)
    assert found.status == "differs"
    assert (found.max_abs, found.max_rel, found.share_of_bound) == (10.0, 0.25, 10.0)
    # The last place of float32 is 2^-23 of the power of two below: 2^-22 at 2, 2^-18 at 50.
    assert found.max_ulp == max(0.5 / 2.0**-22, 10 / 2.0**-18)
    assert found.required_tolerance == max(0.5 / 3, 10 / 51)
    assert np.allclose([1, 2.5, -40, 0], [1, 2, -50, 0], rtol=found.required_tolerance * 1.0001,
                       atol=found.required_tolerance * 1.0001)  # fmt: skip
    assert [(row.decade, row.count, row.max_abs) for row in found.by_decade] == [
        (None, 1, 0.0),
        (0, 2, 0.5),
        (1, 1, 10.0),
    ]
    assert (found.worst.index, found.worst.y, found.worst.reference) == ((2,), -40.0, -50.0)
    assert "bn at 2" in found.why


def test_the_bound_is_the_contract():
    c = constants(gamma=-2.0, beta=0.5, mean=3.0, variance=0.75, epsilon=0.25)
    x, y = np.float32([[5.0]]), np.float32([[-3.5]])
    assert allowed(c, x, y)[0, 0] == pytest.approx(4 * U32 * (2 * (5 + 3) + 0.5 + 3.5), rel=1e-12)
    assert allowed(c, x, y.astype(np.float16))[0, 0] == 4 * 2.0**-11 * 20 + 2.0**-14  # the smallest normal


@pytest.mark.parametrize("way", ["subtract first", "scale and shift"])
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
def test_the_bound_holds_for_both_ways_to_compute(way, mean):
    rng = np.random.default_rng(0)
    x = (mean + rng.standard_normal((4000, 1))).astype(np.float32)
    c = constants(gamma=1.7, beta=-0.3, mean=np.float32(mean), variance=1.1, epsilon=1e-3)
    gamma, beta, m, v = (np.float32(one) for one in (1.7, -0.3, mean, 1.1))
    c = Constants(*(np.array([one], np.float64) for one in (gamma, beta, m, v)), 1e-3)
    scale = gamma / np.sqrt(v + np.float32(1e-3))
    y = (x - m) * scale + beta if way == "subtract first" else x * scale + (beta - m * scale)
    assert y.dtype == np.float32
    assert np.all(np.abs(y - c.output(x.astype(np.float64))) <= allowed(c, x, y))


def test_what_is_no_number_agrees_with_itself_alone():
    nan, inf = np.nan, np.inf
    assert agreement([nan, inf, -inf], [nan, inf, -inf], 0.0).status == "agrees"
    for y, expected in ((nan, 1.0), (1.0, nan), (inf, 1.0), (inf, -inf), (1.0, inf)):
        found = agreement([y], [expected], inf)  # an infinite output makes an infinite bound: it still differs
        assert (found.status, found.max_abs, found.required_tolerance) == ("differs", inf, inf)


def test_what_the_type_cannot_hold_is_infinite():
    assert agreement([np.inf], [1e39], 0.0).status == "agrees"
    assert agreement([np.inf], [1e39], 0.0, dtype=np.float64).status == "differs"


def test_a_tolerance_of_the_user():
    assert agreement([1.5], [1.0], 0.0, Tolerance(atol=0.5)).status == "agrees"
    assert agreement([1.5], [1.0], 9.0, Tolerance(rtol=0.1)).status == "differs"
    assert agreement([1.0], [1.0], 0.0, Tolerance(atol=0.0)).status == "agrees"


def test_batches_are_one_whole():
    rng = np.random.default_rng(0)
    y, reference = rng.normal(size=(2, 40, 3)) * [[[1.0]], [[1.001]]]
    whole, parts = Errors("bn"), Errors("bn")
    whole.add(y, y, reference, np.ones_like(y), "float64")
    for start in range(0, 40, 7):
        cut = slice(start, start + 7)
        parts.add(y[cut], y[cut], reference[cut], np.ones_like(y[cut]), "float64")
    assert whole.public() == parts.public()
    assert whole.decades == parts.decades


def test_the_first_layer_is_the_models_first():
    found = Agreement("engine", ("one", "two", "three"), Tolerance(atol=0.1))
    for name, error in (("three", 9.0), ("two", 1.0), ("one", 0.0)):
        found.add(name, np.ones(1), np.array([1.0 + error]), np.ones(1), np.zeros(1))
    result = found.result()
    assert result.first_differing_layer == "two"
    assert [layer.name for layer in result.layers] == ["one", "two", "three"]
    assert result.worst.layer == "three"


def test_float64_computed_in_float32_is_said():
    found = agreement([1.0 + 1e-8], [1.0], 4 * 2.0**-53, dtype=np.float64)
    assert "computes in float32" in found.why


def test_nothing_reached():
    assert Agreement("engine", ("bn",), Tolerance()).result().status == "failed"
