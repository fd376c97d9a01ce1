"""What the layers need of the core beyond whole arrays: empty batches, masks of their own, many updates at once."""

import numpy as np
import pytest

from batchnorm.core import equations, training
from batchnorm.core.equations import Moments
from batchnorm.core.plan import mask_shape
from batchnorm.core.training import Renorm, Rule


def test_an_empty_batch_has_moments_of_zero():
    batch = equations.moments(np, np.zeros((0, 4, 3)), (0, 1), 1)
    for value in batch[1:]:
        assert value.shape == (1, 1, 3)
        assert not value.any()


def test_each_kept_row_may_have_its_own_mask():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(1e8, 1.0, (3, 5, 4, 2)), rng.random((3, 5, 4, 1)) > 0.5
    mask[0, 0] = False
    count = mask.sum((1, 2), keepdims=True)
    together = equations.moments(np, x, (1, 2), count, mask)
    for k in range(3):
        rows = x[k][mask[k, ..., 0]]
        # float64 around the first counted element: a few roundings of 1.1e-16 at 1e8 in the mean, none in the spread.
        np.testing.assert_allclose(together.mean[k, 0, 0], rows.mean(0), rtol=1e-15)
        np.testing.assert_allclose(together.variance[k, 0, 0], (rows - 1e8).var(0), rtol=1e-9)


def test_a_constant_row_is_exactly_constant_in_every_part():
    x = np.full((3, 5, 2), 0.1, "float32")
    mask = np.arange(15).reshape(3, 5, 1) % 4 > 0
    batch = equations.moments(np, x, (1,), mask.sum(1, keepdims=True), mask)
    assert not batch.variance.any()
    assert (batch.mean == np.float32(0.1)).all()


def test_mask_lengths_that_are_not_known_yet_fit():
    assert mask_shape((None, 1), (None, None, 3), (2,)) == ((None, 1, 1), (None, None, 1))
    with pytest.raises(ValueError, match="mask must have the shape"):
        mask_shape((None, 5), (None, 4, 3), (2,))


RULES = {
    "moving": Rule(1e-3, 0.9),
    "no decay": Rule(1e-3, 0.0),
    "debiased": Rule(1e-3, 0.9, statistics="debiased"),
    "cumulative": Rule(1e-3, 0.9, statistics="cumulative", ddof=1),
    "renorm": Rule(1e-3, 0.9, renorm=Renorm(decay=0.7)),
    "renorm cumulative": Rule(1e-3, 0.9, statistics="cumulative", renorm=Renorm(decay=0.7), ddof=1),
    "renorm debiased": Rule(1e-3, 0.9, statistics="debiased", renorm=Renorm(decay=0.7)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("steps", [1, 6])
def test_all_updates_at_once_are_one_after_the_other(name, steps):
    rule, rng = RULES[name], np.random.default_rng(0)
    count = rng.integers(0, 4, (steps, 1)) * np.ones((1, 3))
    mean, variance = rng.normal(size=(steps, 3)), rng.random((steps, 3))
    mean[-1, 1] = np.nan
    state = {key: np.full(3, initial) for key, initial in training.state_names(rule).items()}
    once, skipped = training.update_all(np, rule, state, Moments(count, mean, 0 * mean, variance))
    for k in range(steps):
        state, one = training.update(np, rule, state, Moments(count[k], mean[k], 0 * mean[k], variance[k]))
        np.testing.assert_array_equal(skipped[k], one)
    for key, value in state.items():
        # float64: a power and a sum of six terms.
        np.testing.assert_allclose(once[key], value, rtol=1e-14, err_msg=key)


def test_renorm_debiases_the_standard_deviation():
    rule, batch = RULES["renorm debiased"], Moments(8, np.array([3.0]), np.array([0.0]), np.array([4.0]))
    state = {key: np.full(1, initial) for key, initial in training.state_names(rule).items()}
    state, _ = training.update(np, rule, state, batch)
    mean, variance = training.inference_statistics(np, rule, state)
    np.testing.assert_allclose((mean[0], variance[0]), (3.0, 4.0), rtol=1e-13)


def test_renorm_stores_the_corrected_variance_and_corrects_towards_the_plain_one():
    rule = Rule(1e-3, 0.0, ddof=1, renorm=Renorm(decay=0.0))
    state = {key: np.full(1, initial) for key, initial in training.state_names(rule).items()}
    state, _ = training.update(np, rule, state, Moments(5, np.array([3.0]), np.array([0.0]), np.array([4.0])))
    np.testing.assert_allclose(state["moving_variance"], 5.0)
    np.testing.assert_allclose(state["renorm_stddev"], np.sqrt(4.001))
