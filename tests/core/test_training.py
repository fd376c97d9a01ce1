"""The state machine: what each mode remembers, and what leaves it alone."""

import numpy as np
import pytest

from batchnorm.core import reference
from batchnorm.core.equations import Limits, Moments
from batchnorm.core.training import Renorm, Rule, inference_statistics, or_moving, state_names, update

U = 2.0**-53


def fresh(rule, channels=2):
    return {name: np.full(channels, initial) for name, initial in state_names(rule).items()}


def batch(mean, variance, count=4):
    mean = np.asarray(mean, float)
    return Moments(count, mean, np.zeros_like(mean), np.asarray(variance, float))


@pytest.mark.parametrize("statistics", ["moving", "debiased", "cumulative"])
@pytest.mark.parametrize("ddof", [0, 1])
def test_each_mode_against_its_formula(statistics, ddof):
    rule = Rule(1e-3, 0.9, ddof, statistics)
    state = fresh(rule)
    batches = [([1.0 + t, -2.0 * t], [0.5 * t, 3.0]) for t in range(6)]
    mean, variance = np.zeros(2), np.ones(2)
    for m, v in batches:
        state, skipped = update(np, rule, state, batch(m, v))
        assert not skipped.any()
        mean = reference.update(mean, np.array(m), 0.9)
        variance = reference.update(variance, np.array(v) * 4 / (4 - ddof), 0.9)
    if statistics == "debiased":
        mean, variance = reference.debias(mean, 0.0, 0.9, 6), reference.debias(variance, 1.0, 0.9, 6)
    if statistics == "cumulative":
        mean = np.mean([m for m, _ in batches], axis=0)
        variance = np.mean([np.array(v) * 4 / (4 - ddof) for _, v in batches], axis=0)
    got = inference_statistics(np, rule, state)
    np.testing.assert_allclose(got, [mean, variance], rtol=40 * U, atol=1e-15)


def test_the_guard_is_per_channel_and_the_old_state_is_not_touched():
    rule = Rule(1e-3, 0.9, statistics="debiased")
    old = fresh(rule, 3)
    kept = {name: one.copy() for name, one in old.items()}
    new, skipped = update(np, rule, old, batch([np.nan, 1.0, 2.0], [1.0, np.inf, 3.0]))
    assert skipped.tolist() == [True, True, False]
    assert new["remaining"].tolist() == [1.0, 1.0, 0.9]
    assert new["moving_mean"].tolist()[:2] == [0.0, 0.0]
    assert all(np.array_equal(old[name], kept[name]) for name in old)
    poisoned, none = update(np, Rule(1e-3, 0.9, guard=False), fresh(Rule(1e-3, 0.9), 1), batch([np.nan], [1.0]))
    assert np.isnan(poisoned["moving_mean"]).all()
    assert not none.any()


def test_large_but_finite_statistics_are_no_reason_to_skip():
    state = {name: one.astype(np.float32) for name, one in fresh(Rule(1e-3, 0.5), 1).items()}
    huge = Moments(4, np.float32([3e38]), np.float32([0.0]), np.float32([3e38]))
    new, skipped = update(np, Rule(1e-3, 0.5), state, huge)  # their sum overflows, they do not
    assert not skipped.any()
    assert new["moving_variance"].tolist() == [np.float32(1.5e38)]


@pytest.mark.parametrize("count", [0, 1, np.array([0.0, 1.0])])
def test_fewer_than_two_counted_elements_say_nothing(count):
    for statistics in ("moving", "debiased", "cumulative"):
        rule = Rule(1e-3, 0.9, 1, statistics, renorm=Renorm())
        state = fresh(rule)
        new, skipped = update(np, rule, state, batch([np.nan, 5.0], [0.0, 0.0], count))
        assert all(np.array_equal(new[name], state[name]) for name in state)
        assert not skipped.any()


def test_renorm_averages_the_standard_deviation():
    rule = Rule(0.25, 0.9, renorm=Renorm(Limits(), 0.5))
    state, _ = update(np, rule, fresh(rule), batch([2.0, 0.0], [3.75, 0.0]))  # sqrt(3.75 + .25) = 2; sqrt(.25) = .5
    np.testing.assert_allclose(state["moving_stddev"], [1.1, 0.95], rtol=4 * U)
    np.testing.assert_allclose(state["moving_variance"], [1.1**2 - 0.25, 0.95**2 - 0.25], rtol=8 * U)
    np.testing.assert_allclose(state["renorm_mean"], [1.0, 0.0], rtol=4 * U)
    np.testing.assert_allclose(state["renorm_stddev"], [1.5, 0.75], rtol=4 * U)


def test_a_debiased_variance_is_never_negative():
    rule = Rule(1e-3, 0.99, statistics="debiased")
    state = {"moving_mean": np.zeros(1), "moving_variance": np.array([0.99 - 1e-9]), "remaining": np.array([0.99])}
    assert inference_statistics(np, rule, state)[1].tolist() == [0.0]


def test_where_nothing_was_counted_the_given_statistics_stand():
    got = or_moving(np, batch([1.0, 9.0], [2.0, 9.0], np.array([3.0, 0.0])), np.array([5.0, 6.0]), np.array([7.0, 8.0]))
    assert got.mean.tolist() == [1.0, 6.0]
    assert got.variance.tolist() == [2.0, 8.0]


def test_the_order_of_the_weights_is_keras_order():
    assert list(state_names(Rule(1e-3, 0.9, renorm=Renorm(), statistics="debiased"))) == [
        "moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev", "remaining",
    ]  # fmt: skip
