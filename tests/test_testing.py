"""assert_unchanged sees every kind of change, in every framework, and nothing where nothing changed."""

import random

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.testing import assert_unchanged

CHANGES = {
    "numpy": (
        "import numpy as np, batchnorm as bn\n"
        "model = bn.BatchNormalization()\n"
        "model.build((None, 3))\n"
        "x = np.random.default_rng(0).normal(size=(4, 3))\n",
        ("model(x, training=True)", "model.gamma[0] = 2", "model.trainable = False", "model.updates = 7"),
        ("model.predict(x)", "bn.explain(model, x=x)", "bn.verify(model, data=x, engines=['numpy'])",
         "bn.diff(model, model)"),
    ),
    "keras": (
        "import numpy as np, keras, batchnorm as bn\n"
        "model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name='bn')])\n"
        "x = np.random.default_rng(0).normal(size=(4, 3)).astype('float32')\n",
        ("model(x, training=True)", "model.layers[0].gamma.assign([2, 1, 1])", "model.trainable = False",
         "object.__setattr__(model.layers[0], 'call', None)", "keras.random.normal((1,))", "np.random.random()"),
        ("model(x, training=False)", "bn.explain(model, data=x)", "bn.verify(model, data=x, engines=['numpy'])",
         "bn.verify(model, model, data=x)", "bn.diff(model, model)"),
    ),
    "torch": (
        "import numpy as np, torch, batchnorm as bn\n"
        "model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))\n"
        "x = torch.ones(4, 3)\n"
        "model.eval()\n",
        ("model.train()", "model[1].weight.data[0] = 2", "model[1].running_mean += 1", "torch.rand(1)",
         "model[0].register_forward_hook(lambda *a: None)", "model(x).sum().backward()",
         "model[0].weight.requires_grad_(False)", "model[1].momentum = None", "model.half()"),
        ("model(x)",),
    ),
    "flax": (
        "import jax.numpy as jnp, batchnorm as bn\n"
        "from flax import nnx\n"
        "model = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))\n"
        "x = jnp.ones((4, 3))\n",
        ("model(x)", "model.eval()"),
        ("model.layers[0](x, use_running_average=True)",),
    ),
}  # fmt: skip
SCRIPT = """
from batchnorm.testing import assert_unchanged
{setup}
for code in {kept!r}:
    with assert_unchanged(model):
        exec(code)
    try:
        with assert_unchanged(model):
            exec(code)
            raise KeyError("inside")
    except KeyError:
        pass
seen = []
for code in {changes!r}:
    try:
        with assert_unchanged(model):
            exec(code)
    except AssertionError as error:
        seen.append(str(error))
    else:
        raise SystemExit("not noticed: " + code)
print(len(seen))
"""


@pytest.mark.parametrize("framework", CHANGES)
def test_changes_are_seen_and_looking_changes_nothing(framework, in_subprocess):
    pytest.importorskip(framework)
    setup, changes, kept = CHANGES[framework]
    printed = in_subprocess(
        SCRIPT.format(setup=setup, changes=changes, kept=kept), environment={"KERAS_BACKEND": "torch"}
    )
    assert printed.strip() == str(len(changes))


def test_the_message_names_what_changed():
    layer = bn.BatchNormalization()
    layer.build((None, 2))
    with pytest.raises(AssertionError, match="gamma"), assert_unchanged(layer):
        layer.gamma = layer.gamma + 1


def test_a_change_before_an_error_is_reported_with_the_error_as_context():
    layer = bn.BatchNormalization()
    layer.build((None, 2))

    def fail():
        with assert_unchanged(layer):
            layer.gamma = layer.gamma + 1
            raise KeyError("inside")

    with pytest.raises(AssertionError) as caught:
        fail()
    assert isinstance(caught.value.__context__, KeyError)


@pytest.mark.parametrize("draw", [random.random, np.random.random])
def test_random_state(draw):
    with pytest.raises(AssertionError, match="random state"), assert_unchanged():
        draw()


def test_files(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"one")
    with assert_unchanged(file, tmp_path):
        pass
    with pytest.raises(AssertionError, match=r"model\.bin"), assert_unchanged(file):
        file.write_bytes(b"two")
    with pytest.raises(AssertionError, match="other"), assert_unchanged(tmp_path):
        (tmp_path / "other").write_bytes(b"")


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(bn.ArgumentError, match="int"), assert_unchanged(3):
        pass
    with pytest.raises(bn.ArgumentError, match="no file"), assert_unchanged(tmp_path / "none"):
        pass


def test_engines_that_are_imported_meanwhile_leave_the_random_state_alone(in_subprocess):
    """TensorFlow's import draws from Python's and NumPy's generators: seen failing without `require`'s care."""
    pytest.importorskip("tensorflow")
    in_subprocess(
        "import sys, numpy as np, batchnorm as bn\n"
        "from batchnorm.testing import assert_unchanged\n"
        "with assert_unchanged('examples/digits.keras'):\n"
        "    bn.verify('examples/digits.keras', data=np.zeros((2, 8, 8, 1), 'float32'), engines=['numpy'])\n"
        "assert 'tensorflow' in sys.modules\n",
        environment={"KERAS_BACKEND": "tensorflow"},
    )


def test_a_framework_imported_meanwhile_is_no_change(in_subprocess):
    pytest.importorskip("torch")
    in_subprocess(
        "from batchnorm.testing import assert_unchanged\nwith assert_unchanged():\n    import torch; torch.rand(1)\n"
    )
