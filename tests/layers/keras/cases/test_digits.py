"""A real training: the same loss curve with Keras' layer and with ours; and what debiasing buys in the first steps."""

import numpy as np
from digits import batches, compiled, data, network
from tools import Ours, Theirs, array, with_training

pytestmark = with_training


def curve(model, steps):
    compiled(model)
    return np.array([float(np.ravel(model.train_on_batch(*batch))[0]) for batch in batches(*data(), steps)])


def test_the_same_loss_curve():
    theirs, ours = network(Theirs), network(Ours)
    ours.set_weights(theirs.get_weights())
    expected, got = curve(theirs, 30), curve(ours, 30)
    assert expected[-5:].mean() < 0.7 * expected[:5].mean()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_debiased_statistics_close_the_gap_of_the_first_steps():
    moving, debiased = network(Theirs), network(Ours, statistics="debiased")
    for mine, other in zip(debiased.trainable_weights, moving.trainable_weights, strict=True):
        mine.assign(array(other))
    first, second = curve(moving, 5), curve(debiased, 5)
    np.testing.assert_allclose(second, first, atol=1e-4)  # training itself is the same
    images = data()[0][:256]
    gaps = [np.abs(array(m(images)) - array(m(images, training=True))).mean() for m in (moving, debiased)]
    assert gaps[1] < 0.5 * gaps[0]
