"""A real training, once with Flax' layer and once with ours: the same loss curve to 1e-4."""

import functools

import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("sklearn")
pytest.importorskip("optax")

from flax import nnx

from batchnorm.flax import BatchNorm

from .scripts.flax_digits import train


@pytest.mark.slow
def test_the_loss_curve_is_that_of_flax():
    ours, theirs = (train(norm, 60)[0] for norm in (BatchNorm, nnx.BatchNorm))
    assert theirs[-1] < 0.3 * theirs[0]  # it learns
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_debiased_statistics_serve_from_the_first_steps():
    steps = (1, 5, 20)
    moving, debiased = (
        train(functools.partial(BatchNorm, statistics=kind), 20, at=steps)[1] for kind in ("moving", "debiased")
    )
    assert debiased[20] > moving[20] + 0.2
