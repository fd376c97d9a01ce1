"""--expect: whatever was computed is recognised as what it is."""

import itertools

import numpy as np
import pytest

from batchnorm.analysis.expected import COMMON_EPSILONS, FITS
from batchnorm.analysis.explain import Request, explain_layer

from .cases import record

X = np.array([0.31, 0.35, 0.42, 0.36])
SOURCES = {
    "the moving mean and variance": "moving",
    "the batch's own mean and variance": "batch",
    "the moving mean and variance without their initial value": "debiased",
}
# The variances are small, so that the common epsilons give different outputs.
LAYER = record(
    channels=1,
    gamma=np.float64([1.7]),
    beta=np.float64([-0.6]),
    moving_mean=np.float64([0.2]),
    moving_variance=np.float64([0.40]),
    decay=0.9,
    momentum=0.9,
    dtype="float64",
).with_updates(10, "option")


def statistics(source, ddof):
    remaining = 0.9**10
    mean, variance = {
        "moving": (0.2, 0.40),
        "batch": (X.mean(), X.var(ddof=ddof)),
        "debiased": (0.2 / (1 - remaining), (0.40 - remaining) / (1 - remaining)),
    }[source]
    return mean, variance


def combinations():
    for words, source in SOURCES.items():
        for ddof, gamma, beta, epsilon in itertools.product((0, 1), (1.7, None), (-0.6, None), COMMON_EPSILONS):
            if not ddof or source == "batch":
                yield words, source, ddof, gamma, beta, epsilon


@pytest.mark.parametrize(("words", "source", "ddof", "gamma", "beta", "epsilon"), list(combinations()))
def test_every_reading_is_recognised(words, source, ddof, gamma, beta, epsilon):
    mean, variance = statistics(source, ddof)
    y = (gamma or 1) * (X - mean) / np.sqrt(variance + epsilon) + (beta or 0)
    found = explain_layer(LAYER, Request(x=X, expect=y))
    fitting = [reading for reading in found.expected if reading.fits]
    assert fitting, "it is named"
    size = np.abs(y).max()
    for reading in fitting:
        assert np.abs(np.array(reading.y) - y).max() <= FITS * size
    exact = [reading.reading for reading in fitting if np.allclose(reading.y, y, rtol=0, atol=1e-9 * size)]
    if not exact:  # a simpler reading that nobody could tell from it stands for it
        assert any(np.abs(np.array(reading.y) - y).max() <= 1e-3 * size for reading in fitting)
        return
    (name,) = exact
    assert name.startswith(words)
    assert ("without gamma" in name) is (gamma is None)
    assert ("beta" in name.replace(words, "")) is (beta is None)
    assert ("count - 1" in name) is bool(ddof)
    assert (f"epsilon {epsilon:g}" in name) is (epsilon != 1e-3)
    assert "No reading" not in found.because[0]


def test_distinct_readings_are_told_apart():
    """Not only recognised by a stand-in: of 112 combinations most have a name of their own."""
    named = 0
    for _, source, ddof, gamma, beta, epsilon in combinations():
        mean, variance = statistics(source, ddof)
        y = (gamma or 1) * (X - mean) / np.sqrt(variance + epsilon) + (beta or 0)
        found = explain_layer(LAYER, Request(x=X, expect=y))
        named += any(r.fits and np.allclose(r.y, y, rtol=0, atol=1e-9 * np.abs(y).max()) for r in found.expected)
    assert named >= 40


@pytest.mark.parametrize("off", [1.011, 1.5, -1.0])
def test_what_nothing_gives_is_said_so(off):
    y = off * 1.7 * (X - 0.2) / np.sqrt(0.401) - 0.6 * off
    found = explain_layer(LAYER, Request(x=X, expect=y + 3 * (off > 1.2) + 7 * (off < 0)))
    if off == 1.011:
        moving = next(r for r in found.expected if r.reading == "the moving mean and variance")
        assert not moving.fits, "1.1 % off is more than 1 %"
    else:
        assert not any(reading.fits for reading in found.expected)
        assert found.because[0].startswith("No reading gives the expected values within 1 %")


def test_expected_values_follow_their_index():
    """Channels are shown worst first; what was expected of each is still its own."""
    layer = record(moving_variance=np.float32([1.2, 1e-6, 2.5, 0.9]))
    x = np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]])
    y = layer.gamma * (x - layer.moving_mean) / np.sqrt(layer.moving_variance + np.float32(1e-3)) + layer.beta
    found = explain_layer(layer, Request(x=x, expect=y))
    assert found.explained[0].channel == 1
    assert next(r for r in found.expected if r.fits).reading == "the moving mean and variance"
