"""Keras' own files: ten steps at momentum .99, checked, recalibrated, checked again, and opened by Keras.

``python run_marked_keras.py FOLDER`` with KERAS_BACKEND set.
"""

import sys
from pathlib import Path

import numpy as np

import batchnorm as bn

rng = np.random.default_rng(0)
x = rng.normal(4, 0.3, (256, 6)).astype("float32")
y = (x[:, :1] > 4).astype("float32")


def codes(model):
    return [finding.rule.code for finding in bn.check(model).findings]


def shares(model):
    """What list shows of the initial value: the record, and the cell of the table."""
    listing = bn.load(model).layers
    return [(each.updates, each.initial_weight, each.recalibrated) for each in listing]


def keras_model():
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input((6,)), keras.layers.BatchNormalization(name="bn"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile("sgd", "mse")
    model.fit(x, y, batch_size=25, epochs=1, steps_per_epoch=10, verbose=0)
    return model


def with_keras(folder):
    import keras

    model = keras_model()
    for suffix in ("keras", "h5"):
        before, after = folder / f"before.{suffix}", folder / f"after.{suffix}"
        if suffix == "keras":
            model.save(before)
        else:
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.save(before)
        assert "BN107" in codes(before), suffix
        bn.recalibrate(before, x, out=after)
        assert "BN107" not in codes(after), suffix
        assert shares(after) == [(None, None, "one-pass")], shares(after)
        again = keras.saving.load_model(after, compile=False)
        stored = bn.load(after).layers[0]
        assert np.array_equal(np.array(again.get_layer("bn").moving_mean), stored.moving_mean)
        bn.recalibrate(before, debias=True, out=folder / f"debiased.{suffix}")
        assert shares(folder / f"debiased.{suffix}") == [(None, None, "debias")]
        assert "BN107" not in codes(folder / f"debiased.{suffix}")
        # Marked twice, the second method stands alone.
        twice = folder / f"twice.{suffix}"
        bn.recalibrate(after, x, method="sequential", out=twice)
        assert shares(twice) == [(None, None, "sequential")]
    assert "BN107" in codes(model)
    bn.recalibrate(model, x, out=folder / "live.keras")
    assert shares(folder / "live.keras") == [(None, None, "one-pass")]
    assert "BN107" in codes(model), "the live model was left as it was"
    bn.recalibrate(model, x)
    assert "BN107" not in codes(model)
    assert shares(model) == [(None, None, "one-pass")]
    model.fit(x, y, batch_size=25, epochs=1, steps_per_epoch=1, verbose=0)
    assert shares(model)[0][2] is None, "statistics that were trained on are no longer those that were marked"


if __name__ == "__main__":
    with_keras(Path(sys.argv[1]))
