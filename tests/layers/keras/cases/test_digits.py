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
    assert gaps[0] > 0.1
    assert gaps[1] < 1e-4  # float32: three layers deep, 1/(1 - .99^5) = 20 times the rounding of the averages
