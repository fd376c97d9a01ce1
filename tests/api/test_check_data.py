"""`bn.check` with data: on arrays and iterables, labels, bad input, and a model that is left as it was."""

import contextlib
import itertools
import json
import tracemalloc

import numpy as np
import pytest

import batchnorm as bn
from tests.analysis.cases import Fake, record
from tests.api.test_check import document

CHANNELS = 8


def layer(mean, variance, name="bn", **changes):
    arrays = {
        "moving_mean": np.full(CHANNELS, mean, np.float32),
        "moving_variance": np.full(CHANNELS, variance, np.float32),
    }
    return record(name=name, channels=CHANNELS, gamma=None, beta=None, **arrays, **changes)


class Chain(Fake):
    """Two layers one after the other, without anything between; the output is the second's."""

    def run(self, x, capture=()):
        captured = {}
        if np.asarray(x).shape[1:] != (CHANNELS,):
            raise bn.ArgumentError(f"the model wants shape (any, {CHANNELS})")
        for one in self.layers:
            y = (x - one.moving_mean) / np.sqrt(one.moving_variance + one.epsilon)
            captured[one.name] = [(x, y)]
            x = y
        return x, {name: captured[name] for name in capture}


def draw(count, mean=0.0, sd=1.0, seed=0):
    return np.random.default_rng(seed).normal(mean, sd, (count, CHANNELS)).astype(np.float32)


def test_the_first_layer_is_named_and_the_document_holds_the_data():
    model = Chain(layer(2, 9, "first"), layer(1.0, 1, "second"), layer(0, 1, "third"))
    found = document(bn.check(model, draw(500, 2, 3)))
    codes = {one["rule"]: one for one in found["findings"]}
    assert codes["BN401"]["layer"] == "second"
    assert codes["BN401"]["evidence"]["causes"]["data_shift"] == pytest.approx(1, abs=0.01)
    assert found["data"]["samples"] == 500
    assert found["data"]["batch_size"] is None
    assert found["data"]["first_gap"] == "second"
    assert found["data"]["samples_needed"] < 500
    assert "BN405" not in codes


def test_an_iterable_is_a_stream_with_a_batch_size_and_labels():
    model = Chain(layer(0, 0.99))
    seen = []

    def batches():
        for seed in range(30):
            x = draw(4, seed=seed)
            seen.append(seed)
            yield x, x.argmax(axis=1)

    found = document(bn.check(model, batches()))
    assert len(seen) == 30
    data = found["data"]
    assert (data["samples"], data["batches"], data["batch_size"], data["first_gap"]) == (120, 30, 4, None)
    assert found["accuracy"] == {"inference": 1.0, "training": None}
    assert [one["rule"] for one in found["findings"]] == ["BN405"]


class Logit(Chain):
    """One number a sample, and no probability: the first of its input."""

    def run(self, x, capture=()):
        _, captured = super().run(x, capture)
        return np.asarray(x)[:, :1].astype(float), captured


def test_a_batch_of_logits_between_0_and_1_is_still_one_of_logits():
    x = draw(2000)
    labels = (x[:, 0] > 0).astype(int)
    batches = [(x[start : start + 1], labels[start : start + 1]) for start in range(len(x))]
    for found in bn.check(Logit(layer(0, 1)), batches), bn.check(Logit(layer(0, 1)), x, labels=labels):
        assert found.accuracy.inference == 1


def test_accuracy_in_both_modes():
    model = Chain(layer(0, 1))

    class Bench:
        def session(self):
            return contextlib.nullcontext()

        def outputs(self, batch, training):
            assert training == ["bn"]
            return -batch

    model.bench = Bench
    x = draw(100)
    found = bn.check(model, x, labels=x.argmax(axis=1))
    assert (found.accuracy.inference, found.accuracy.training) == (1.0, 0.0)
    assert "100.0 % in inference mode, 0.0 % in training mode" in str(found)
    onehot = bn.check(model, x, labels=np.eye(CHANNELS)[x.argmax(axis=1)])
    assert onehot.accuracy.inference == 1.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda x: x * 255, "255 too high"),
        (lambda x: x / 255, "255 too low"),
        (lambda x: (x + 1) * 127.5, "0 to 255 and should run from -1 to 1"),
    ],
)
def test_input_scale_is_named_at_the_first_layer(change, named):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.0, 1.0, (300, CHANNELS)).astype(np.float32) ** 2
    if "should" in named:
        x = 2 * x - 1
    model = Chain(layer(float(x.mean()), float(x.var()), "first", epsilon=1e-7), layer(0, 1, "second"))
    found = {one.rule.code: one.hit for one in bn.check(model, change(x)).findings}
    assert found["BN403"].layer == "first"
    assert named in found["BN403"].message
    assert found["BN401"].remedy == f"{found['BN403'].remedy} (BN403)"  # new statistics would fit the wrong input
    assert "BN403" not in {one.rule.code for one in bn.check(model, x).findings}
    # A shift of the data that no change explains is not said to be one.
    strange = {one.rule.code for one in bn.check(model, np.abs(draw(300, 3, 0.3))).findings}
    assert "BN401" in strange
    assert "BN403" not in strange


def test_too_few_samples_say_how_many():
    found = bn.check(Chain(layer(3, 1)), draw(12))
    assert not found.findings
    assert "12 samples are too few" in str(found)


class Items:
    """A data set as torch.utils.data has them: no iterable, and single samples."""

    def __len__(self):
        return 3

    def __getitem__(self, place):
        return draw(1)[0]


def test_bad_data():
    model = Chain(layer(0, 1))
    x = draw(200)
    x[131, 3] = np.nan
    for how, said in (
        ({"data": x}, "sample 131"),
        ({"data": draw(0)}, "no sample"),
        ({"data": []}, "no sample"),
        ({"data": 3}, "int"),
        ({"data": Items()}, "a Items, which gives samples one by one; put a data loader around it"),
        ({"data": draw(20), "labels": np.zeros(19)}, "each of 20 samples"),
        ({"labels": np.zeros(20)}, "--data"),
        ({"data": [draw(20)], "labels": np.zeros(20)}, "tuples"),
        ({"data": draw(20), "batch_size": 0}, "at least 1"),
        ({"data": draw(20)[:, :3]}, "wants shape"),
        ({"data": {"a": draw(3), "b": draw(4)}}, "same number"),
        ({"data": draw(20), "others": [model]}, "single MODEL"),
    ):
        with pytest.raises(bn.ArgumentError, match=said):
            bn.check(model, **how)


def test_samples_that_are_not_finite_are_left_out_if_asked_for():
    model = Chain(layer(0, 1))
    x = draw(200)
    x[[131, 7], 3] = np.nan, np.inf
    for data in (x, [x[:150], x[150:]]):
        found = bn.check(model, data, skip_nonfinite=True)
        assert (found.data.samples, found.data.skipped, found.failed) == (198, 2, False)
        assert "2 more are not finite and left out." in " ".join(str(found).split())
    assert document(bn.check(model, draw(200)))["data"]["skipped"] == 0


def test_labels_have_to_fit_where_they_are_given():
    model = Chain(layer(0, 1))
    x = draw(20)
    for labels, said in (
        (np.full(20, CHANNELS), "the label of sample 0, counted from 0, is 8; the model has 8 classes, 0 to 7"),
        (np.zeros((20, 3)), r"labels of shape \(20, 3\) fit no output of the model, which gives \(20, 8\)"),
        (np.full(20, 0.5), "fit no output"),
    ):
        with pytest.raises(bn.ArgumentError, match=f"check: .*{said}"):
            bn.check(model, x, labels=labels)
    assert bn.check(model, [(x, np.zeros((20, 3)))]).accuracy is None  # what a loader brings may be anything


def test_a_live_layer_gets_a_line_of_code_and_stays_as_it_was():
    live = bn.BatchNormalization(momentum=0.99)
    live(draw(64, 5, 3), training=True)
    before = [np.array(one) for one in live.get_weights()]
    found = json.loads(bn.check(live, [draw(50, 5, 3, seed) for seed in range(8)]).to_json())
    assert {one["rule"] for one in found["findings"]} == {"BN107", "BN401"}
    assert {one["remedy"] for one in found["findings"]} == {"bn.recalibrate(model, loader)"}
    assert found["data"]["largest"] == {"layer": live.name, "effect": found["findings"][0]["evidence"]["effect"]}
    for old, new in zip(before, live.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_stream_of_any_length_in_constant_memory():
    """10 times the batches: the same peak, and nothing is asked of the stream but its next batch."""
    model = Chain(layer(0, 1))
    peaks = []
    for count in (3, 30, 300):  # the first to load what is loaded once
        asked = iter(range(count + 10**6))
        stream = (draw(1000, seed=number) for number in asked)
        tracemalloc.start()
        found = bn.check(model, itertools.islice(stream, count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (found.data.samples, found.data.batches) == (1000 * count, count)
        assert next(asked) == count
    # A batch is 32 kB and the peak 1.2 MB; what the collector of cycles has not yet taken is up to a tenth of that.
    assert peaks[2] < 1.2 * peaks[1]
