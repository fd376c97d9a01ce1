"""The rules about data, on inputs drawn here: the gap and its causes, the noise that is no gap, the batch, padding."""

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.analysis.rules import Subject, apply
from batchnorm.analysis.rules.effect import effect, left_in, shares
from batchnorm.analysis.rules.inputs import CHANGES, changed
from batchnorm.analysis.rules.measured import Measurements, Stream
from batchnorm.core.graph import Graph, Operation
from batchnorm.kernels import cpu
from tests.analysis.cases import record

CHANNELS = 32


def layer(mean=0.0, variance=1.0, **changes):
    channels = changes.pop("channels", CHANNELS)
    arrays = {
        "gamma": np.ones(channels, np.float32),
        "beta": np.zeros(channels, np.float32),
        "moving_mean": np.full(channels, mean, np.float32),
        "moving_variance": np.full(channels, variance, np.float32),
    }
    return record(channels=channels, **(arrays | changes))


def measured(one, *batches, batched=False, y=None):
    stream = Stream(one, batched)
    for x in batches:
        stream.add([(x, x if y is None else y)], len(x))
    return stream.result()


def draw(seed, *shape, mean=0.0, sd=1.0):
    return np.random.default_rng(seed).normal(mean, sd, shape).astype(np.float32)


def found(one, seen, graph=None, helps=()):
    data = Measurements(seen.samples, {one.name: seen}, dict(helps))
    return {
        (f.rule.code, f.level): f.hit
        for f in apply(Subject(records=(one,), data=data, graph=graph))
        if f.rule.needs == "data"
    }


def test_moments_of_a_stream_are_those_of_the_whole():
    x = draw(0, 100, 5, 6, CHANNELS, mean=1e3)
    one = layer()
    parts = measured(one, x[:30], x[30:70], x[70:])
    wide = x.astype(np.float64)
    np.testing.assert_allclose(parts.mean, wide.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(parts.variance, wide.var((0, 1, 2)), rtol=1e-9)
    # The noise of the mean, from the spread of the samples' own means: independent elements share it out by 30.
    np.testing.assert_allclose(parts.mean_noise, wide.mean((1, 2)).var(0, ddof=1), rtol=1e-6)
    assert np.median(parts.mean_noise) == pytest.approx(1 / 30, rel=0.2)
    # For normal numbers the variance of a sample's variance estimate is 2/n.
    assert np.median(parts.variance_noise) == pytest.approx(2 / 30, rel=0.3)


@pytest.mark.parametrize("axis", [-1, 1])
def test_the_effect_is_that_of_its_definition(axis):
    one = layer(mean=0.0, variance=1.0, axis=axis, epsilon=1e-3)
    x = draw(1, 4000, CHANNELS, 3, mean=0.6, sd=2.0) if axis == 1 else draw(1, 4000, 3, CHANNELS, mean=0.6, sd=2.0)
    s = np.sqrt(4 + 1e-3)
    expected = np.hypot(0.6 / s, np.sqrt(1.001) / s - 1)
    assert effect(one, measured(one, x)).size == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("samples", [12, 16, 40, 100, 1000])
@pytest.mark.parametrize("correlated", [False, True])
def test_sampling_noise_alone_is_never_a_gap(samples, correlated):
    """Neither with independent elements nor where a sample's elements, and its channels, say all the same."""
    one = layer()
    for seed in range(40):
        x = draw(seed, samples, 4, CHANNELS)
        if correlated:
            x = draw(seed, samples, 1, 1) + 0.1 * x
            one = layer(variance=1.01)
        seen = measured(one, x)
        assert not found(one, seen), effect(one, seen)


def test_a_dozen_samples_prove_nothing_and_enough_do():
    one = layer(mean=0.7)
    assert not found(one, measured(one, draw(2, 12, CHANNELS)))
    hit = found(one, measured(one, draw(2, 200, CHANNELS)))["BN401", "error"]
    assert hit.evidence["samples_needed"] <= 200
    assert hit.evidence["effect"] == pytest.approx(0.7, rel=0.1)
    mild = layer(mean=0.38)
    assert ("BN401", "warning") in found(mild, measured(mild, draw(3, 1000, CHANNELS)))
    fine = layer(mean=0.25)
    assert not found(fine, measured(fine, draw(3, 1000, CHANNELS)))


def test_a_frozen_layer_normalises_alike_in_both_modes():
    one = layer(mean=3, mode="frozen")
    assert not found(one, measured(one, draw(2, 200, CHANNELS)))


def test_shares_of_the_initial_value_and_of_shifted_data():
    decay = 0.99**50
    one = layer(mean=(1 - decay) * 2, variance=decay + (1 - decay) * 9).with_updates(50, "option")
    seen = measured(one, draw(4, 2000, CHANNELS, mean=2, sd=3))
    causes = shares(one, seen)
    assert sum(causes.values()) == pytest.approx(1)
    assert causes["initial_value"] > 0.98
    shifted = shares(layer(mean=1), measured(layer(), draw(5, 2000, CHANNELS)))
    assert shifted["data_shift"] > 0.99


def test_shares_of_small_batches_and_of_the_divisor():
    # Batches of 2 with one value each: variances with divisor 2 average to half of the whole.
    within = layer(variance=0.5, decay=0.999, momentum=0.999, epsilon=1e-5)
    batches = [draw(seed, 2, CHANNELS) for seed in range(600)]
    assert shares(within, measured(within, *batches, batched=True))["divisor"] > 0.8
    unbiased = within.replace(ddof=1)
    assert shares(unbiased, measured(unbiased, *batches, batched=True))["divisor"] == 0
    # Elements of a sample that are all alike: it is the samples that are few, and no divisor would help.
    alike = [np.repeat(batch[:, None], 50, axis=1) for batch in batches]
    assert shares(within, measured(within, *alike, batched=True))["small_batch"] > 0.8
    # An array has no batch size, and so no such causes.
    alone = shares(within, measured(within, np.concatenate(batches)))
    assert alone["small_batch"] == alone["divisor"] == 0


def trained(draws, steps, **settings):
    """A layer of the library that went through a training with one thing wrong, as `check` reads it."""
    live = bn.BatchNormalization(name="bn", **settings)
    for step in range(steps):
        live(draws(step), training=True)
    return bn.load(live).layers[0]


def correlated(seed, samples):
    """Samples whose 30 elements say nearly the same, as neighbouring pixels do."""
    return np.repeat(draw(seed, samples, 1, CHANNELS), 30, axis=1) + draw(seed + 10**6, samples, 30, CHANNELS, sd=0.1)


PLANTED = {
    "initial_value": (lambda n: draw(n, 64, CHANNELS, mean=2, sd=3), 50, lambda n: draw(n, 64, CHANNELS, mean=2, sd=3)),
    "data_shift": (lambda n: draw(n, 64, CHANNELS), 1500, lambda n: draw(n, 64, CHANNELS, mean=1)),
    "small_batch": (lambda n: correlated(n, 1), 1500, lambda n: correlated(n, 1)),
    "divisor": (lambda n: draw(n, 2, CHANNELS), 1500, lambda n: draw(n, 2, CHANNELS)),
}


@pytest.mark.parametrize("cause", PLANTED)
def test_a_cause_that_was_trained_in_alone_has_most_of_the_gap(cause):
    draws, steps, given = PLANTED[cause]
    one = trained(draws, steps)
    seen = measured(one, *(given(5000 + n) for n in range(400)), batched=True)
    found = shares(one, seen)
    assert sum(found.values()) == pytest.approx(1)
    assert found[cause] > 0.8
    assert found["epsilon"] == 0
    # A divisor alone halves a variance at most: 1 - sqrt(1/2) = .29.
    assert effect(one, seen).size > (0.25 if cause == "divisor" else 0.5)


def test_an_initial_value_shows_in_the_statistics_where_no_counter_tells():
    rng = np.random.default_rng(0)
    mean, sd = rng.normal(0, 2, CHANNELS), rng.uniform(0.2, 3, CHANNELS)

    def draws(n):
        return (draw(n, 64, CHANNELS) * sd + mean).astype(np.float32)

    one = trained(draws, 50).replace(updates=None)
    seen = measured(one, *(draws(5000 + n) for n in range(40)))
    assert one.initial_weight is None
    weight, share = left_in(one, seen)
    assert weight == pytest.approx(0.99**50, abs=0.03)
    assert share > 0.98
    assert shares(one, seen)["initial_value"] == share
    hit = found(one, seen)["BN401", "error"]
    assert "by the statistics themselves" in hit.message
    # Shifted data are none, whatever one weight might make of them; nor statistics that are like the initial value.
    whole, standard = trained(draws, 1500).replace(updates=None), layer()
    for change in (lambda x: 3 * x, lambda x: 0.5 * x, lambda x: x + 1, lambda x: x / 255, lambda x: -x):
        assert left_in(whole, measured(whole, *(change(draws(5000 + n)) for n in range(40)))) is None
        assert left_in(standard, measured(standard, change(draw(0, 2000, CHANNELS)))) is None


def test_epsilon_cannot_part_the_modes():
    """Whatever it is, both modes add the same one: with the statistics of the data there is no gap to share out."""
    x = draw(3, 4000, CHANNELS, mean=1, sd=0.05)
    for epsilon in (1e-7, 1e-3, 1.0):
        one = layer(mean=float(x.mean()), variance=float(x.var()), epsilon=epsilon)
        how = effect(one, measured(one, x))
        assert how.size < 0.05
        assert not how.significant


def test_batch_too_small():
    one = layer()
    four = measured(one, *[draw(seed, 4, CHANNELS) for seed in range(50)], batched=True)
    hit = found(one, four)["BN405", "warning"]
    # Normal numbers: a variance of four has a relative standard deviation of sqrt(2/3).
    assert hit.evidence["noise"] == pytest.approx(np.sqrt(2 / 3), rel=0.15)
    assert hit.evidence["batch_size_needed"] == pytest.approx(4 * (2 / 3) / 0.0625, rel=0.3)
    large = measured(one, *[draw(seed, 64, CHANNELS) for seed in range(50)], batched=True)
    assert not found(one, large)
    single = measured(one, *[draw(seed, 1, CHANNELS) for seed in range(50)], batched=True)
    assert ("BN405", "warning") in found(one, single)
    assert not found(one, measured(one, np.concatenate([draw(seed, 4, CHANNELS) for seed in range(50)])))


def test_dead_on_data_wants_an_activation_that_cuts_off():
    one = layer()
    x = draw(6, 100, CHANNELS)
    x[:, 3] = 0.25
    y = x - 10 * (np.arange(CHANNELS) == 7)
    seen = measured(one, x, y=y)

    def graph(operator):
        norm = Operation(name="bn", kind="batch_norm", operator="BatchNormalization", inputs=("x",), outputs=("y",))
        after = Operation(name="a", kind="activation", operator=operator, inputs=("y",), outputs=("z",))
        return Graph(operations=(norm, after), inputs=("x",), outputs=("z",))

    assert found(one, seen)["BN404", "note"].channels == (3,)
    assert found(one, seen, graph("ReLU"))["BN404", "note"].channels == (3, 7)
    assert found(one, seen, graph("Sigmoid"))["BN404", "note"].channels == (3,)


def padded(seed, share, value=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 1, (60, 20, CHANNELS)).astype(np.float32)
    for sample in x:
        sample[20 - rng.integers(0, max(1, int(40 * share))) :] = value
    return x


def test_large_batches_are_measured_by_the_kernels(monkeypatch):
    if not cpu.available():
        pytest.skip("Numba is not installed")
    calls = []
    kernel = cpu.moments
    monkeypatch.setattr(cpu, "moments", lambda *given, **named: calls.append(given[0].shape) or kernel(*given, **named))
    x = draw(12, 4000, CHANNELS, mean=1e3)
    seen = measured(layer(), x)
    assert (4000, CHANNELS) in calls
    wide = x.astype(np.float64)
    np.testing.assert_allclose(seen.mean, wide.mean(0), rtol=1e-14)
    np.testing.assert_allclose(seen.variance, wide.var(0), rtol=1e-12)


def test_padding_in_the_statistics():
    x = padded(0, 0.5)
    one = layer(mean=float(x.mean()), variance=float(x.var()))
    assert ("BN406", "warning") in found(one, measured(one, x))
    without = layer(mean=2.0, variance=1.0)
    assert ("BN406", "warning") not in found(without, measured(without, x))  # the statistics are of the data alone
    background = draw(9, 60, 20, CHANNELS, mean=2)
    background[:, 12:] = 0.0  # every sequence ends in it
    image = layer(mean=float(background.mean()), variance=float(background.var()))
    assert ("BN406", "warning") not in found(image, measured(image, background))


def test_input_scale_needs_the_gap_to_go_away():
    one = layer(mean=0.5, variance=0.1, epsilon=1e-5)
    seen = measured(one, draw(8, 500, CHANNELS, mean=127, sd=80))
    assert found(one, seen, helps={"x / 255": 0.02, "x / 127.5": 0.8})["BN403", "error"].evidence["change"] == "x / 255"
    assert ("BN403", "error") not in found(one, seen, helps={"x / 255": 0.6, "x / 127.5": 0.8})


def test_an_initial_value_left_in_is_no_input_that_is_off():
    rng = np.random.default_rng(11)
    x = (rng.normal(1, 1, (500, CHANNELS)) * rng.uniform(0.2, 3, CHANNELS) + rng.normal(0, 2, CHANNELS)).astype("f4")
    share = 0.99**12
    one = layer(
        moving_mean=((1 - share) * x.mean(0)).astype("f4"),
        moving_variance=(share + (1 - share) * x.var(0)).astype("f4"),
    )
    seen = measured(one, x)
    assert shares(one, seen)["initial_value"] > 0.9
    both = found(one, seen, helps={"standardised": 0.1})
    assert ("BN403", "error") not in both
    assert ("BN401", "error") in both


def test_changes_of_an_input():
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    first = np.moveaxis(image, -1, 1)
    for change in CHANGES:
        assert changed(image, change).dtype == np.float32
        np.testing.assert_allclose(
            np.moveaxis(changed(first, change), 1, -1), changed(image, change), rtol=1e-5, atol=1e-5
        )
    np.testing.assert_array_equal(changed(image, "channels reversed"), image[..., ::-1])
    assert changed(image[..., :2], "channels reversed") is None
    np.testing.assert_allclose(changed(image, "standardised").std((0, 1, 2)), 1, rtol=1e-5)
