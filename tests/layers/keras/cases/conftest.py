import keras
import numpy as np
import pytest

# Said by the frameworks about themselves, at import or while they compile.
FOREIGN = [
    "ignore::DeprecationWarning:tensorflow.*",
    "ignore::DeprecationWarning:keras.*",
    "ignore::DeprecationWarning:jax.*",
    "ignore::DeprecationWarning:torch.*",
    "ignore::FutureWarning:torch.*",
    "ignore::UserWarning:torch.*",
    "ignore:.*np.object.*:FutureWarning",
    "ignore:unclosed.*:ResourceWarning",
    # Keras on NumPy runs layers on uninitialised memory to learn their shapes, and warns of what comes out.
    "ignore:Layer .* looks like it has unbuilt state:UserWarning",
    "ignore:.*encountered in.*:RuntimeWarning:keras.*",
]


def pytest_configure(config):
    if keras.backend.backend() == "tensorflow":  # before TensorFlow looks at its devices
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    for line in FOREIGN:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
