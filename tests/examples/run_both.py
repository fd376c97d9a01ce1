"""Both example scripts on the Keras backend of this process, and whether their numbers are right."""

import runpy
import sys
from pathlib import Path

import numpy as np

U = 2.0**-24
examples, backend = Path(sys.argv[1]), sys.argv[2]

asked = runpy.run_path(str(examples / "question.py"))
(layer,) = asked["found"].layers
(channel,) = layer.explained
shown = np.array([value.y for value in channel.values])
assert channel.beta is None
assert layer.record.updates == 10
assert 0.7 < channel.gamma < 1.1
# float32: 4u of what the arithmetic adds up, as the package promises of every engine.
size = channel.scale * (np.array([1, 5]) + abs(channel.moving_mean)) + np.abs(shown)
assert np.all(np.abs(shown - asked["data_out"].ravel()) <= 4 * U * size), (shown, asked["data_out"])
assert any(
    reading.fits and reading.reading == "the batch's own mean and variance without gamma" for reading in layer.expected
)

verified = runpy.run_path(str(examples / "verification.py"))
outputs, names = verified["outputs"], list(verified["outputs"])
assert ("tf.nn.batch_normalization" in names) is (backend == "tensorflow")
assert len(names) == (6 if backend == "tensorflow" else 5)
numpy64 = outputs["NumPy"]
scale = verified["gamma"][0] / np.sqrt(float(verified["variance"][0]) + verified["epsilon"])
size = scale * (np.array([1, 5]) + abs(verified["mean"][0])) + abs(verified["beta"][0]) + np.abs(numpy64)
for name, y in outputs.items():
    assert np.all(np.abs(y - numpy64) <= 4 * U * size), (name, y, numpy64)
assert verified["largest"] <= 8 * U * size.max()
# What the accepted answer printed, from the same seed on Keras 2: after 100 steps the engines agree to 2e-6.
np.testing.assert_allclose(outputs["the model"], [0.71096909, 2.09494853], atol=2e-6)

import keras  # noqa: E402

assert keras.backend.backend() == backend
