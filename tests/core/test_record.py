"""The layer record: what it refuses, and when a counter is not believed."""

import numpy as np
import pytest

from batchnorm.core.record import LayerRecord


def record(mean, variance, **changes):
    fields = {
        "name": "bn", "kind": "BatchNormalization", "channels": 2, "axis": -1, "dtype": "float32", "epsilon": 1e-3,
        "epsilon_source": "file", "averaging": "exponential", "decay": 0.99, "momentum": 0.99,
        "moving_mean": None if mean is None else np.float32(mean),
        "moving_variance": None if variance is None else np.float32(variance),
    }  # fmt: skip
    return LayerRecord(**(fields | changes))


def test_a_counter_that_fits_is_taken():
    one = record([0.06, 0.05], [0.91, 1.2]).with_updates(10, "optimizer iterations")
    assert (one.updates, one.updates_source, one.updates_doubt) == (10, "optimizer iterations", None)
    assert one.initial_weight == 0.99**10


def test_no_counter_changes_nothing():
    one = record([0.06, 0.05], [0.91, 1.2])
    assert one.with_updates(None, "num_batches_tracked") is one
    assert one.initial_weight is None


@pytest.mark.parametrize(
    ("mean", "variance", "updates", "changes", "doubt"),
    [
        # Statistics that moved without an update: load_weights into a new model (BN107).
        ([0.3, 0.4], [0.9, 1.1], 0, {}, "the counter says 0 updates, but the statistics have moved"),
        # A counter that ran while the statistics stood still: frozen, or never trained.
        ([0, 0], [1, 1], 50, {}, "the counter says 50 updates, but the statistics are still their initial 0 and 1"),
        ([0, 0], [4, 4], 5, {"initial_variance": 4.0}, "still their initial 0 and 4"),
        # .99^10 = .904 of the initial variance must be left; .2 is less (a new optimizer, a lost counter).
        ([0.3, 0.4], [0.2, 1.1], 10, {}, "after 10 updates at decay 0.99 at least 0.904 .* stored variance is 0.2"),
        ([0.3, 0.4], [1.7, 1.9], 10, {"initial_variance": 2.0}, "at least 1.81 .* stored variance is 1.7"),
        # Renorm averages the standard deviation: what is left of the initial variance cannot be told.
        ([0.3, 0.4], [0.82, 1.1], 10, {"renorm": True}, "with renorm the layer averages standard deviations"),
        ([0.3, 0.4], [-1e-9, 1.1], 10_000, {}, "stored variance is -1e-09"),
    ],
)
def test_a_counter_that_the_statistics_contradict_is_doubted(mean, variance, updates, changes, doubt):
    one = record(mean, variance, **changes).with_updates(updates, "num_batches_tracked")
    assert (one.updates, one.updates_source, one.initial_weight) == (None, None, None)
    with pytest.raises(AssertionError, match=doubt):
        raise AssertionError(one.updates_doubt)


@pytest.mark.parametrize(
    ("mean", "variance", "updates", "changes"),
    [
        ([0, 0], [1, 1], 0, {}),
        # Exactly at the floor: a batch of variance 0 each time, rounded to float32 at every update.
        ([0, 0], [0.99**50, 0.99**50], 50, {}),
        # What cannot be judged is believed: unknown initial values, unknown decay, a plain mean, absent statistics.
        ([0.3, 0.4], [0.2, 1.1], 10, {"initial_variance": None}),
        ([0.3, 0.4], [1.0, 1.1], 0, {"initial_mean": None}),
        (None, [1.0, 1.0], 0, {}),
        ([0.3, 0.4], None, 7, {}),
        ([0.3, 0.4], [0.2, 1.1], 10, {"decay": None}),
        ([0.3, 0.4], [0.2, 1.1], 10, {"averaging": "cumulative", "decay": None}),
        # A decay of 1 never moves anything.
        ([0, 0], [1, 1], 50, {"decay": 1.0}),
        # Only finite variances can contradict.
        ([0.3, 0.4], [np.nan, np.inf], 10, {}),
    ],
)
def test_a_counter_that_nothing_contradicts_is_believed(mean, variance, updates, changes):
    one = record(mean, variance, **changes).with_updates(updates, "num_batches_tracked")
    assert (one.updates, one.updates_doubt) == (updates, None)


def test_the_slack_at_the_floor_covers_the_roundings_of_float32():
    variance = np.float32(1)
    for updates in range(1, 2001):
        variance = np.float32(0.99) * variance + np.float32(0.01) * np.float32(0)
        if updates in (1, 10, 100, 460, 2000):
            one = record([0.1, 0.1], [variance, variance]).with_updates(updates, "num_batches_tracked")
            assert one.updates == updates, (updates, one.updates_doubt)


def test_arrays_are_copied_flat_and_read_only():
    mean = np.zeros((1, 2))
    one = record(None, None, moving_mean=mean)
    mean[:] = 5
    assert one.moving_mean.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="read-only"):
        one.moving_mean[0] = 1
    assert one.channel_shape == (2,)


def test_contradictions_inside_a_record_are_refused():
    with pytest.raises(ValueError, match="bn: moving_mean has 3 elements; the layer has 2 channels"):
        record([1, 2, 3], None)
    with pytest.raises(ValueError, match="bn: epsilon None contradicts epsilon_source 'file'"):
        record(None, None, epsilon=None)


def test_an_epsilon_given_by_the_user_only_fills_a_gap():
    one = record(None, None)
    assert one.with_epsilon(1e-5) is one
    gap = record(None, None, epsilon=None, epsilon_source="unknown").with_epsilon(1e-5)
    assert (gap.epsilon, gap.epsilon_source) == (1e-5, "option")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
def test_a_channel_that_never_varied_contradicts_no_counter(decay, dtype):
    # Its variance is multiplied by the decay at every update: relative roundings add up, and in the end it is 0.
    variance = np.ones(2, dtype)
    for updates in range(1, 1501):
        variance = (np.asarray(decay, dtype) * variance).astype(dtype)
        variance[np.abs(variance) < np.finfo(dtype).smallest_normal] = 0  # as processors that flush subnormals do
        one = record([0.1, 0.1], None, moving_variance=variance, decay=decay, dtype=dtype)
        assert one.with_updates(updates, "num_batches_tracked").updates_doubt is None, updates
