"""Whether batches differ from each other by more than chance, and what BN401 then says."""

import numpy as np
import pytest

from tests.analysis.rules.test_data import CHANNELS, draw, found, measured, trained

SIZE, STEPS, CLASSES = 16, 500, 10


def sorted_by_class(step):
    """Batches of one class after the other, whose means are 2 standard deviations apart from each other's."""
    centre = np.random.default_rng(10**6 + step * CLASSES // STEPS).normal(0, 2, CHANNELS)
    return (draw(step, SIZE, CHANNELS) + centre).astype(np.float32)


def shuffled(batches, seed=0):
    whole = np.concatenate(batches)
    return np.split(whole[np.random.default_rng(seed).permutation(len(whole))], len(batches))


def test_a_loader_that_is_sorted_shows_in_its_batches():
    one, batches = trained(sorted_by_class, STEPS), [sorted_by_class(step) for step in range(STEPS)]
    hit = found(one, measured(one, *batches, batched=True))["BN401", "error"]
    # Between classes 4 of a variance of 5, all of it between batches: 16 * 4 / 5 and the 1 of chance within.
    assert hit.evidence["between_batches"] == pytest.approx(16 * 4 / 5 + 1 / 5, rel=0.35)
    assert "times as much as shuffled ones" in hit.message
    assert "Shuffle what the model is trained on" in hit.remedy
    mixed = found(one, measured(one, *shuffled(batches), batched=True))["BN401", "error"]
    assert mixed.evidence["between_batches"] == pytest.approx(1, abs=0.3)
    assert "shuffled" not in mixed.message
    whole = found(one, measured(one, np.concatenate(batches)))["BN401", "error"]
    assert whole.evidence["between_batches"] is None, "one array has no batches"


@pytest.mark.parametrize("batches", [4, 8, 40])
@pytest.mark.parametrize("alike", [False, True], ids=["channels by themselves", "channels all alike"])
def test_chance_alone_is_never_an_order(batches, alike):
    """Samples of one distribution, whose elements go together as neighbouring pixels do."""
    one = trained(lambda n: draw(n, 64, CHANNELS), 10)
    ratios = []
    for seed in range(150):
        x = draw(seed, batches, SIZE, 1, 1 if alike else CHANNELS) + draw(
            seed + 10**6, batches, SIZE, 5, CHANNELS, sd=0.1
        )
        order = measured(one, *x.astype("f"), batched=True).order
        assert not order.shows
        ratios.append(order.ratio)
    # The mean of 150 ratios of standard deviation sqrt(2/(batches - 1)) at most: three of its own deviations.
    assert np.mean(ratios) == pytest.approx(1, abs=3 * np.sqrt(2 / (batches - 1) / 150) + 0.02)


def test_three_batches_tell_nothing():
    one = trained(lambda n: draw(n, 64, CHANNELS), 10)
    assert measured(one, *draw(0, 3, SIZE, CHANNELS), batched=True).order is None
    assert measured(one, *np.ones((8, SIZE, CHANNELS), "f"), batched=True).order is None
