"""The situations people ask about, as explanations; the golden texts in golden/ are what they must read like."""

from __future__ import annotations

import numpy as np

import batchnorm as bn
from batchnorm.core.record import LayerRecord

QUESTION = ([0.80644524], None, [0.05885344], [0.91000736], 1e-3)


def f32(*values):
    return np.float32(values)


def record(**changes):
    """A healthy layer of four channels, as a Keras file would give it, with changes."""
    base = {
        "name": "bn",
        "kind": "BatchNormalization",
        "channels": 4,
        "axis": -1,
        "dtype": "float32",
        "epsilon": 1e-3,
        "epsilon_source": "file",
        "averaging": "exponential",
        "decay": 0.99,
        "momentum": 0.99,
        "ddof": 0,
        "mode": "by-call",
        "gamma": f32(1.1, 0.9, 1.0, -0.5),
        "beta": f32(0.1, -0.2, 0.0, 0.3),
        "moving_mean": f32(0.5, -1.0, 2.0, 0.0),
        "moving_variance": f32(1.2, 0.8, 2.5, 0.9),
    }
    return LayerRecord(**(base | changes))


class Fake:
    """A model that holds the given records."""

    def __init__(self, *records):
        self.path, self.format, self.layers, self.other_layers = "model.keras", "keras", records, ("conv",)

    def run(self, x, capture=()):
        raise NotImplementedError


def question():
    return bn.explain("examples/question.keras", x=[1, 5], expect=[-1, 1])


def question_arrays():
    return bn.explain_arrays([1, 5], *map(_f32, QUESTION[:-1]), 1e-3, decay=0.99, updates=10, expect=[4, 5])


def _f32(values):
    return None if values is None else np.float32(values)


def untrained():
    layer = record(channels=1, gamma=f32(1), beta=f32(0), moving_mean=f32(0), moving_variance=f32(1)).with_updates(
        0, "optimizer iterations"
    )
    return bn.explain(Fake(layer), x=[1])


def absent_parameters():
    return bn.explain(Fake(record(gamma=None, beta=None).with_updates(5000, "optimizer iterations")), x=[1, 2, 3, 4])


def epsilon_dominated():
    layer = record(moving_variance=f32(1.2, 2e-6, 5e-4, 0.9)).with_updates(5000, "optimizer iterations")
    return bn.explain(Fake(layer))


def other_data():
    rng = np.random.default_rng(0)
    x = 255 * rng.random((32, 4))
    return bn.explain(Fake(record().with_updates(5000, "optimizer iterations")), x=x, limit=2)


def counter_contradicts():
    return bn.explain(
        Fake(
            record(channels=1, gamma=f32(1), beta=f32(0), moving_mean=f32(0.5), moving_variance=f32(0.2)).with_updates(
                10, "optimizer iterations"
            )
        ),
        x=[1, 5],
    )


def epsilon_unknown():
    return bn.explain(Fake(record(epsilon=None, epsilon_source="unknown", moving_variance=f32(1.2, 2e-4, 0.7, 0.9))))


def damaged():
    return bn.explain(Fake(record(moving_variance=f32(1.2, np.nan, -0.7, 0.9))), x=[[1, 2, 3, 4]])


def training_mode():
    return bn.explain(
        Fake(
            record(channels=1, gamma=f32(2), beta=f32(1), moving_mean=f32(0.5), moving_variance=f32(1.5)).with_updates(
                900, "optimizer iterations"
            )
        ),
        x=[1, 5],
        mode="training",
    )


def frozen():
    return bn.explain(Fake(record(mode="frozen")), x=[1, 2, 3, 4], channel=1)


def real_model():
    return bn.explain("examples/digits.keras")


CASES = (
    question,
    question_arrays,
    untrained,
    absent_parameters,
    epsilon_dominated,
    other_data,
    counter_contradicts,
    epsilon_unknown,
    damaged,
    training_mode,
    frozen,
    real_model,
)
