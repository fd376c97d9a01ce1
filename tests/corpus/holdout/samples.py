"""The data of the second part: coloured shapes, waves and wines, made from a seed; none of it the digits."""

import numpy as np
from sklearn.datasets import load_wine


def shapes():
    """Images of 10x10 with three channels in 0..1: a disc, a cross or stripes on a coloured ground; and which."""
    rng = np.random.default_rng(11)
    rows, columns = np.mgrid[:10, :10]
    images, labels = [], []
    for number in range(360):
        kind, (r, c) = number % 3, rng.uniform(3, 6, 2)
        mask = [
            (rows - r) ** 2 + (columns - c) ** 2 < 7,
            (abs(rows - r) < 1) | (abs(columns - c) < 1),
            (rows + columns + number) % 4 < 2,
        ][kind]
        ground = rng.uniform((0.5, 0.3, 0.05), (0.8, 0.5, 0.25))
        images.append(ground + mask[..., None] * rng.uniform(0.1, 0.3, 3) + rng.normal(0, 0.02, (10, 10, 3)))
        labels.append(kind)
    return np.clip(images, 0, 1).astype("float32"), np.array(labels)


def waves():
    """Sequences of 16 steps with three channels, of three frequencies; and which."""
    rng = np.random.default_rng(12)
    labels = np.arange(360) % 3
    phase, t = rng.uniform(0, 6, (360, 1, 3)), np.arange(16)[:, None]
    x = np.sin(t * (0.4 + 0.5 * labels[:, None, None]) + phase) * (1, 2, 0.5) + rng.normal(0, 0.2, (360, 16, 3))
    return x.astype("float32"), labels


def wines():
    """Thirteen measurements of wines as they are, from .1 to 1700; and which of three."""
    x, labels = load_wine(return_X_y=True)
    return x.astype("float32"), labels


def known():
    """Everything a model is checked on, by the name that the manifest gives it."""
    x, _ = shapes()
    w, _ = waves()
    raw, _ = wines()
    scaled = (raw - raw.mean(0)) / raw.std(0)
    lengths = np.random.default_rng(3).integers(4, 13, len(w))
    padded = (w + 1.5) * (np.arange(16) < lengths[:, None])[..., None]
    chw, cf = np.ascontiguousarray(x.transpose(0, 3, 1, 2)), np.ascontiguousarray(w.transpose(0, 2, 1))
    return {
        "shapes": x,
        "shapes_chw": chw,
        "waves": w,
        "waves_cf": cf,
        "wine": scaled.astype("float32"),
        "wine_raw": raw,
        "padded": padded.astype("float32"),
        "padded_cf": np.ascontiguousarray(padded.transpose(0, 2, 1)).astype("float32"),
        "pairs": {"photo": x, "sketch": np.roll(x, 1, 0)},
        "unlike_pairs": {"photo": x, "sketch": (1 - x).mean(-1, keepdims=True).repeat(3, -1) * 4},
        "noise": np.random.default_rng(5).normal(size=(360, 8)).astype("float32"),
    }
