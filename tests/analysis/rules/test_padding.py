"""BN406: padding that the data, the model or the layer tells of, or that is seen; planted, mild, and sound."""

import numpy as np
import pytest

from batchnorm.analysis.rules.measured import Stream
from batchnorm.core.padding import Told
from tests.analysis.rules.test_data import draw, found, layer

CHANNELS, SAMPLES, POSITIONS = 8, 300, 20
LENGTHS = np.random.default_rng(0).integers(8, POSITIONS + 1, SAMPLES)
MASK = np.arange(POSITIONS) < LENGTHS[:, None]


def sequences(pad, sd=1.0):
    """Numbers about 0, padded with numbers about ``pad`` that no eye could tell from data."""
    x = draw(1, SAMPLES, POSITIONS, CHANNELS, sd=sd)
    return np.where(MASK[..., None], x, pad + draw(2, SAMPLES, POSITIONS, CHANNELS, sd=0.1))


def of_moments(x, **changes):
    flat = x.reshape(-1, CHANNELS)
    return layer(channels=CHANNELS, moving_mean=flat.mean(0), moving_variance=flat.var(0), **changes)


def hit(one, x, told=None, masks=(), parts=3):
    stream = Stream(one, batched=False)
    samples = np.array_split(np.arange(SAMPLES), parts)
    for rows in samples:
        part = x if len(x) != SAMPLES else x[rows]
        cut = None if told is None else Told(told[rows], (POSITIONS, CHANNELS), "data")
        stream.add([(part, part)], len(rows), [mask[rows] for mask in masks], cut)
    return found(one, stream.result()).get(("BN406", "warning"))


def moved(pad):
    """How far padding of a third of the positions moves the statistics, by hand."""
    x = sequences(pad)
    data, whole = x[MASK], x.reshape(-1, CHANNELS)
    s = np.sqrt(data.var(0) + 1e-3)
    shift, stretch = (whole.mean(0) - data.mean(0)) / s, np.sqrt(whole.var(0) + 1e-3) / s - 1
    return float(np.sqrt(np.mean(shift**2 + stretch**2)))


@pytest.mark.parametrize("told", [MASK, LENGTHS], ids=["mask", "lengths"])
def test_padding_that_moves_the_statistics_by_half_a_deviation(told):
    x = sequences(1.7)
    assert moved(1.7) == pytest.approx(0.5, abs=0.03)
    one = of_moments(x)
    planted = hit(one, x, told)
    assert planted.evidence["moves"] == pytest.approx(moved(1.7), rel=1e-4)
    assert planted.evidence["share"] == pytest.approx(1 - MASK.mean())
    assert planted.evidence["sequences"] == int(np.sum(LENGTHS < POSITIONS))
    assert planted.evidence["source"] == "data"
    assert "as mask or lengths tell" in planted.message
    assert hit(one, x) is None  # nobody tells, and it is no constant


@pytest.mark.parametrize("told", [MASK, LENGTHS], ids=["mask", "lengths"])
def test_what_is_sound(told):
    x = sequences(1.7)
    assert hit(of_moments(x[MASK]), x, told) is None  # statistics without the padding
    mild = sequences(0.9)
    assert moved(0.9) < 0.4
    assert hit(of_moments(mild), mild, told) is None
    full = np.full(SAMPLES, POSITIONS) if told.ndim == 1 else np.ones_like(told)
    assert hit(of_moments(x), x, full) is None  # no padding


def test_where_the_positions_lie():
    x = sequences(3.0)
    first = of_moments(x, axis=1)
    assert hit(first, x.swapaxes(1, 2), LENGTHS) is not None  # channels first
    assert hit(of_moments(x), x.reshape(-1, CHANNELS), LENGTHS, parts=1) is not None  # one behind the other
    assert hit(of_moments(x), x.reshape(-1, CHANNELS), MASK, parts=1) is not None
    strided = x[:, ::2]
    assert hit(of_moments(strided), strided, LENGTHS) is not None
    assert hit(of_moments(strided), strided, MASK) is not None
    assert hit(of_moments(x[:, 0]), x[:, 0], MASK) is None  # one vector a sample: no positions
    odd = x[:, :7]
    assert hit(of_moments(odd), odd, MASK) is None  # which of the input's positions these are is not known


def test_a_mask_that_the_layer_gets_is_no_gap_and_no_padding():
    x = sequences(3.0)
    trained = of_moments(x[MASK])
    stream = Stream(trained, batched=False)
    stream.add([(x, x)], SAMPLES, [MASK])
    seen = stream.result()
    np.testing.assert_allclose(seen.mean, x[MASK].astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(seen.variance, x[MASK].astype(float).var(0), rtol=1e-12)
    assert seen.count == MASK.sum()
    assert not [key for key in found(trained, seen) if key[0] in ("BN401", "BN406")]
    older = hit(of_moments(x), x, masks=[MASK])
    assert older.evidence["source"] == "layer"
    assert "its stored statistics are older" in older.remedy
    # Flax' own masks have the rank of the input, and end in the channels.
    assert hit(trained, x, masks=[np.broadcast_to(MASK[..., None], x.shape)]) is None


def test_padding_is_told_of_all_batches_or_of_none():
    x = sequences(3.0)
    one = of_moments(x)
    stream = Stream(one, batched=False)
    stream.add([(x, x)], SAMPLES, (), Told(LENGTHS, (POSITIONS,)))
    stream.add([(x[:, :7], x[:, :7])], SAMPLES, (), None)
    assert stream.result().padding.whole.count == x[..., 0].size
