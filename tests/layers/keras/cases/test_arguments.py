"""Bad input: errors that name the layer, the argument and the value, at construction where that is possible."""

import keras
import numpy as np
import pytest
from tools import BACKEND, Ours, Theirs

from batchnorm.errors import ArgumentError

X = np.ones((2, 4, 3), "float32")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"epsilon": 0}, "epsilon must be positive and finite; got 0"),
        ({"epsilon": -1e-3}, "epsilon must be positive and finite; got -0.001"),
        ({"momentum": 1.01}, "momentum must lie between 0 and 1.*got 1.01"),
        ({"momentum": -0.1}, "momentum must lie between 0 and 1.*got -0.1"),
        ({"renorm": True, "renorm_momentum": 2}, "renorm_momentum must lie between 0 and 1.*got 2"),
        ({"renorm": True, "renorm_clipping": {"random_key": 1.0}}, "renorm_clipping takes.*got .'random_key'."),
        ({"renorm": True, "renorm_clipping": {"rmax": 0.0, "rmin": 1.0}}, "rmin <= rmax; got rmin=1.0 and rmax=0.0"),
        ({"renorm": True, "renorm_clipping": {"dmax": -1.0}}, "must be at least 0; got -1.0"),
        ({"renorm": True, "renorm_clipping": {"rmax": float("nan")}}, r"renorm_clipping\['rmax'\] must be.*got nan"),
        ({"renorm": True, "renorm_clipping": 3.0}, "renorm_clipping must be a mapping such as .*; got 3.0"),
        ({"axis": ()}, r"axis must name each channel axis once; got \(\)"),
        ({"axis": [1, 1]}, r"axis must name each channel axis once.*got \[1, 1\]"),
        ({"axis": 1.5}, "axis must be an integer or a sequence of integers; got 1.5"),
        ({"statistics": "ema"}, "statistics must be one of 'moving', 'debiased', 'cumulative'; got 'ema'"),
        (
            {"statistics": "debiased", "moving_mean_initializer": "ones"},
            "must be 'zeros'.*got Ones and Ones. Leave them at their defaults",
        ),
        ({"ddof": 2}, "ddof must be one of 0, 1; got 2"),
        ({"virtual_batch_size": 0}, "virtual_batch_size must be an integer of at least 1; got 0"),
        ({"virtual_batch_size": 4, "axis": 0}, "virtual_batch_size splits axis 0, which holds the channels"),
    ],
)
def test_at_construction(kwargs, message):
    with pytest.raises(ArgumentError, match=f"BatchNormalization 'bn': .*{message}"):
        Ours(name="bn", **kwargs)
    if kwargs in ({"epsilon": 0}, {"epsilon": -1e-3}, {"momentum": 1.01}):
        Theirs(**kwargs)  # in silence


def test_synchronized():
    if BACKEND == "numpy":
        with pytest.raises(ArgumentError, match="synchronized must be False on the numpy backend; got True"):
            Ours(name="bn", synchronized=True)
    else:
        with pytest.raises(ArgumentError, match="virtual_batch_size splits a batch and synchronized joins"):
            Ours(synchronized=True, virtual_batch_size=2)


@pytest.mark.parametrize(
    ("name", "value"), [("epsilon", 0), ("momentum", 1.5), ("renorm_momentum", -1), ("virtual_batch_size", 0)]
)
def test_set_later(name, value):
    layer = Ours(name="bn")
    with pytest.raises(ArgumentError, match=f"'bn': {name} must .*got {value}"):
        setattr(layer, name, value)


def test_limits_of_renorm_set_later_count(rng):
    x, limits = rng.normal(5, 3, (8, 2)).astype("float32"), {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0}
    layers = [Ours(renorm=True, name="bn"), Theirs(renorm=True)]
    for layer in layers:
        layer(x)
        layer.renorm_clipping = limits
    ours, theirs = (keras.ops.convert_to_numpy(layer(x, training=True)) for layer in layers)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)  # a few float32 roundings of numbers below 5
    assert layers[0].get_config()["renorm_clipping"] == limits
    with pytest.raises(ArgumentError, match=r"'bn': renorm_clipping\['rmax'\] must be at least 0.*got -1.0"):
        layers[0].renorm_clipping = {"rmax": -1.0}


@pytest.mark.parametrize(
    ("name", "value"), [("statistics", "debiased"), ("ddof", 1), ("guard", False), ("renorm", True)]
)
def test_chosen_at_construction(name, value):
    with pytest.raises(ArgumentError, match=f"'bn': {name} is chosen at construction, .* {value!r}"):
        setattr(Ours(name="bn"), name, value)


@pytest.mark.parametrize("axis", [3, -4, (0, 5)])
def test_axis_outside_the_input(axis):
    layer = Ours(axis=axis, name="bn")
    with pytest.raises(ArgumentError, match=r"axis must be between -3 and 2 for an input of shape \(2, 4, 3\)"):
        layer.build(X.shape)
    with pytest.raises(ArgumentError, match="axis must be between"):
        layer.compute_output_shape(X.shape)


def test_axis_named_twice_or_of_unknown_length():
    with pytest.raises(ArgumentError, match="axis must name each channel axis once"):
        Ours(axis=(-1, 2)).build(X.shape)
    with pytest.raises(ArgumentError, match="BatchNormalization 'bn': the length of the channel axis must be known"):
        Ours(name="bn").build((2, None))


def test_another_rank_or_channel_count():
    layer = Ours(name="bn")
    layer(X)
    with pytest.raises(ValueError, match=r"layer .bn.*expected ndim=3, found ndim=2"):
        layer(X[0])
    with pytest.raises(ValueError, match=r"layer .bn.*expected axis 2 of input shape to have value 3"):
        layer(X[:, :, :2])


@pytest.mark.parametrize("shape", [(4,), (4, 2), (2, 4, 2), (3, 4, 1), (1, 2, 4, 3)])
def test_mask_that_does_not_broadcast(shape):
    with pytest.raises(ArgumentError, match=r"mask must have the shape \(2, 4\).*got \("):
        Ours(name="bn")(X, training=True, mask=np.ones(shape, bool))


def test_integers_are_taken_as_keras_takes_them():
    x = np.array([[1, 2], [3, 5]])
    ours, theirs = Ours()(x, training=True), Theirs()(x, training=True)
    np.testing.assert_allclose(np.array(ours.tolist() if BACKEND == "torch" else ours), [[-1, -1], [1, 1]], atol=2e-3)
    assert str(ours.dtype) == str(theirs.dtype)


def test_convert_and_freeze_want_a_layer():
    from batchnorm.keras import convert, freeze

    with pytest.raises(ArgumentError, match="convert: model must be a Keras model or layer; got dict"):
        convert({})
    with pytest.raises(ArgumentError, match="freeze: model must be a Keras model or layer; got list"):
        freeze([])
