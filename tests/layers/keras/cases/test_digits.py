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


def test_debiased_statistics_are_the_batchs_from_the_first_update():
    # The same images five times and no step of the weights: the batch's statistics are the population's, and training
    # and inference mode agree as soon as nothing of the initial 0 and 1 is left.
    images = data()[0][:256]
    gaps = []
    for kind, options in ((Theirs, {}), (Ours, {"statistics": "debiased"})):
        model = network(kind, **options)
        for _ in range(5):
            trained = array(model(images, training=True))
        gaps.append(np.abs(array(model(images)) - trained).max() / np.abs(trained).max())
    # Each update rounds a variance near 1 by at most 2u, and 1/(1 - .99^5) magnifies it as the 1 is taken out; over a
    # variance of at least epsilon that is half as much in a layer's scale, in each of three layers.
    unit, epsilon, updates, layers = 2.0**-24, 1e-3, 5, 3
    bound = layers * 0.5 * updates * 2 * unit / (1 - 0.99**updates) / epsilon
    assert gaps[1] < bound < 0.1 < gaps[0]
