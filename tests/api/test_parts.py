"""explain on data of any length: what is shown of it, what is measured on all of it, and what it costs."""

import tracemalloc

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.api import parts
from batchnorm.api.parts import in_parts
from batchnorm.errors import ArgumentError


@pytest.fixture
def layer():
    made = bn.BatchNormalization(name="bn")
    made(np.random.default_rng(0).normal(size=(64, 3)).astype("f4"), training=True)
    return made


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "MOST_SHOWN", 600)  # bytes: 50 samples of three float32


def stream(count, size=10):
    rng = np.random.default_rng(1)
    return (rng.normal(5, 2, (size, 3)).astype("f4") for _ in range(count))


def test_small_data_are_one_part_however_they_come(layer):
    whole = np.concatenate(list(stream(4)))
    found = [bn.explain(layer, data=each).to_json() for each in (whole, stream(4), ((x, 1) for x in stream(4)))]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("make", [lambda: stream(40), lambda: np.concatenate(list(stream(40)))])
def test_more_is_shown_in_part_and_measured_whole(layer, small_parts, make):
    (found,) = bn.explain(layer, data=make(), channel=0, limit=1000).layers
    assert found.because[0].endswith("(400 elements a channel).")
    assert "the first 50 of 400 samples; the gap was measured on all of them" in found.because[-1]
    assert found.explained[0].batch.count == 50
    assert len(found.explained[0].values) == 50


def test_parts_lose_and_repeat_nothing(small_parts):
    data = np.concatenate(list(stream(13)))
    for given in (data, stream(13)):
        found = list(in_parts(given))
        assert [len(part) for part in found] == [50, 50, 30]
        np.testing.assert_array_equal(np.concatenate(found), data)
    named = list(in_parts({"a": data, "b": data[:, :1]}))
    assert [len(part["a"]) for part in named] == [37, 37, 37, 19]
    assert all(set(part) == {"a", "b"} for part in named)
    named = list(in_parts({"a": x} for x in stream(13)))
    np.testing.assert_array_equal(np.concatenate([part["a"] for part in named]), data)


def test_a_batch_larger_than_the_bound_is_a_part(small_parts):
    assert [len(part) for part in in_parts(stream(3, size=100))] == [100, 100, 100]


def test_memory_is_constant_in_the_number_of_samples(layer, monkeypatch):
    """1 MB and 10 MB of samples: the same peak, that of the quarter of a megabyte that is shown."""
    monkeypatch.setattr(parts, "MOST_SHOWN", 1 << 18)

    def batches(count):
        for _ in range(count):
            yield np.ones((2_000, 3), "f4")

    peaks = []
    for count in (42, 420):
        tracemalloc.start()
        bn.explain(layer, data=batches(count), limit=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


NO_DATA = {
    "number": (5, "got a int"),
    "empty": (iter(()), "no sample"),
    "text": ("text", "got a str"),
    "ragged": (iter([np.ones((1, 3)), np.ones((1, 4))]), "do not go together"),
}


@pytest.mark.parametrize("name", NO_DATA)
def test_what_is_no_data(layer, name):
    data, words = NO_DATA[name]
    with pytest.raises(ArgumentError, match=words):
        bn.explain(layer, data=data)
