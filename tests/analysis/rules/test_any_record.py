"""Whatever a file holds, the rules neither fail nor warn, and what they say is a sentence with a way out."""

import itertools
import warnings

import numpy as np
import pytest

from batchnorm.analysis.rules import Subject, apply
from batchnorm.analysis.rules.measured import Measurements, Stream
from tests.analysis.cases import record

ODD = (0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, 3e38, 1e-8, 5.0)
ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


def odd_records():
    rng = np.random.default_rng(0)
    modes = [None, "by-call", "inference", "training", "frozen", "batch-statistics"]
    for number in range(80):
        arrays = {role: rng.choice(np.float32(ODD), 4) for role in ROLES}
        for role in ROLES:
            if rng.random() < 0.2:
                arrays[role] = None
            elif rng.random() < 0.3:
                arrays[role] = np.full(4, rng.choice(np.float32(ODD)), np.float32)
        epsilon = rng.choice([None, 0.0, -1.0, 1e-3, 0.5, 1e-30])
        decay = rng.choice([None, 0.0, 0.01, 0.99, 1.0])
        mode = rng.choice(modes)
        settings = {"epsilon": epsilon, "epsilon_source": "unknown" if epsilon is None else "file", "mode": mode}
        settings |= {"decay": decay, "momentum": decay, "dtype": str(rng.choice(["float32", "float16"]))}
        updates = rng.choice([None, 0, 3, 1000])
        yield record(name=f"layer{number}", **settings, **arrays).with_updates(updates, "num_batches_tracked")


def test_odd_records_alone_and_together():
    records = tuple(odd_records())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every = [apply(Subject(records=(one,))) for one in records]
        every.append(apply(Subject(records=records, others=(("b", records[::-1]),))))
    for finding in itertools.chain(*every):
        assert finding.hit.message.endswith((".", "...")), finding.hit.message
        assert finding.hit.remedy.strip().endswith("."), finding.hit.remedy
        assert finding.hit.layer or finding.hit.layers
        assert max(finding.hit.channels, default=0) < 4


@pytest.mark.parametrize("shape", [(20, 4), (20, 5, 4), (20, 3, 3, 4), (1, 4), (2, 4)])
@pytest.mark.parametrize("kind", ["constant", "huge", "normal", "tiny"])
def test_odd_records_on_data(shape, kind):
    rng = np.random.default_rng(1)
    x = {"constant": np.full(shape, 2.0), "huge": rng.normal(0, 1e30, shape), "tiny": rng.normal(0, 1e-30, shape)}.get(
        kind, rng.normal(3, 2, shape)
    )
    x = x.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one in odd_records():
            stream = Stream(one, batched=True)
            for _ in range(5):
                stream.add([(x, x)], len(x))
            data = Measurements(5 * len(x), {one.name: stream.result()}, {"x / 255": 0.1})
            apply(Subject(records=(one,), data=data))
