"""Padded sequences, a network over them that every framework can hold, and its statistics in float64 by hand."""

import numpy as np

SAMPLES, POSITIONS, FEATURES, WIDTH = 40, 12, 5, 6
EPSILON = 1e-3
EXACT = 1e-5
"""Standard deviations: activations of a few in float32, two layers deep, are off by units of 6e-8 of themselves."""
LENGTHS = np.random.default_rng(0).integers(0, POSITIONS + 1, SAMPLES)
LENGTHS[:4] = 0  # at batch size 4, a batch that is padding through and through
MASK = np.arange(POSITIONS) < LENGTHS[:, None]


def sequences():
    """Numbers that drift from sample to sample, and padding far from them that no eye could tell."""
    rng = np.random.default_rng(1)
    x = rng.normal(2, 1, (SAMPLES, POSITIONS, FEATURES)) + np.linspace(-1, 1, SAMPLES)[:, None, None]
    return np.where(MASK[..., None], x, 9 + rng.normal(0, 1, x.shape)).astype("f4")


def weights():
    """Name -> array: two dense layers over each position, the second of which takes what the first gives."""
    rng = np.random.default_rng(2)
    shapes = {"kernel1": (FEATURES, WIDTH), "bias1": (WIDTH,), "kernel2": (WIDTH, WIDTH), "bias2": (WIDTH,)}
    return {name: rng.normal(0, 0.5, shape).astype("f4") for name, shape in shapes.items()}


def by_hand(method, size, counts=MASK, ddof=0):
    """Layer -> (count, mean, variance with divisor count) of what the layers ``bn1`` and ``bn2`` get, padding left out.

    In one pass each batch is normalised with its own unpadded moments; a batch without any is normalised with the
    initial 0 and 1. ``counts`` is the mask; True everywhere counts all. Layer by layer, ``bn1`` then holds its variance
    with divisor count - ``ddof``.
    """
    held = {name: array.astype(np.float64) for name, array in weights().items()}
    x = sequences().astype(np.float64)
    first = x @ held["kernel1"] + held["bias1"]
    count, mean, variance = of(first[counts])
    stored = mean, variance * count / (count - ddof)
    parts = []
    for start in range(0, len(x), size):
        part, keep = first[start : start + size], counts[start : start + size]
        own = of(part[keep])[1:] if keep.any() else (np.zeros(WIDTH), np.ones(WIDTH))
        used = own if method == "one-pass" else stored
        parts.append(np.maximum((part - used[0]) / np.sqrt(used[1] + EPSILON), 0) @ held["kernel2"] + held["bias2"])
    return {"bn1": (count, mean, variance), "bn2": of(np.concatenate(parts)[counts])}


def of(table):
    """Count, mean and variance of the rows."""
    return len(table), table.mean(0), table.var(0)


def assert_by_hand(found, method, size, *, ddof=0, counts=MASK):
    """A recalibration gave the statistics by hand."""
    layers = {layer.name: layer for layer in found.layers}
    for name, (count, mean, variance) in by_hand(method, size, counts, ddof).items():
        each = layers[name]
        assert each.count == count, name
        sd = np.sqrt(variance)
        assert np.max(np.abs(each.after.mean - mean) / sd) < EXACT, (name, method)
        stored = each.after.variance * (count - ddof) / count
        assert np.max(np.abs(np.sqrt(stored) / sd - 1)) < EXACT, (name, method)
