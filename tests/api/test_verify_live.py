"""verify and diff on live objects of Flax and ONNX; those of Keras and PyTorch have tests of their own."""

import pytest

FLAX = """
import jax.numpy as jnp
import numpy as np
from flax import nnx

import batchnorm as bn

class Net(nnx.Module):
    def __init__(self, epsilon):
        rngs = nnx.Rngs(0)
        self.dense, self.norm = nnx.Linear(4, 6, rngs=rngs), nnx.BatchNorm(6, epsilon=epsilon, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.dense(x)))

x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
a, same, b = Net(1e-5), Net(1e-5), Net(1e-2)
for model in (a, same, b):
    model.train()
    model(jnp.asarray(x))
with bn.testing.assert_unchanged(a, same, b):
    found = bn.verify(a, data=x, engines=["numpy"])
    assert found.agrees and found.model_run.status == "agrees", str(found)
    assert bn.verify(a, same, data=x).agrees
    first = bn.verify(a, b, data=x).comparison.first_diverging
    assert (first.a, first.cause, first.constants) == ("norm", "constant", ("epsilon",)), first
    assert [one.what for one in bn.diff(a, b).pairs[0].differences] == ["epsilon"]
"""
ONNX = """
import numpy as np
import onnx

import batchnorm as bn

model = onnx.load("examples/digits.onnx")
other = onnx.load("examples/digits.onnx")
changed = next(node for node in other.graph.node if node.name == "block_bn1")
changed.attribute.append(onnx.helper.make_attribute("epsilon", 0.1))
x = np.random.default_rng(0).normal(size=(9, 1, 8, 8)).astype("float32")
before = model.SerializeToString(), other.SerializeToString()
found = bn.verify(model, data=x, engines=["numpy"])
assert found.agrees and found.model_run.status == "agrees", str(found)
assert bn.verify(model, model, data=x).agrees
first = bn.verify(model, other, data=x).comparison.first_diverging
assert (first.a, first.cause, first.constants) == ("block_bn1", "constant", ("epsilon",)), first
assert (model.SerializeToString(), other.SerializeToString()) == before
"""


@pytest.mark.parametrize(
    ("modules", "code"), [(("flax",), FLAX), (("onnx", "onnxruntime"), ONNX)], ids=["flax", "onnx"]
)
def test_a_live_object(modules, code, in_subprocess):
    for module in modules:
        pytest.importorskip(module)
    in_subprocess(code)
