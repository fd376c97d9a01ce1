"""Memory of a verification does not grow with the number of inputs: peaks of processes of their own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

LAYERS, CHANNELS, SIDE, BATCH = 50, 4, 8, 50
MEASURE = """
import json, resource, sys
import batchnorm as bn
from batchnorm.api import inputs
found = bn.verify(sys.argv[1], data=inputs.model_batches(sys.argv[2]), engines=["numpy", "onnxruntime"], batch_size=50)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
assert found.agrees, str(found)
print(json.dumps([peak, len(found.layers), found.model_run.layers[0].count]))
"""


def deep(path):
    """A model of 50 batch normalizations, each behind a convolution and before a ReLU."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, constants, at = [], [], "x"
    for n in range(LAYERS):
        kernel = rng.normal(0, 0.5, (CHANNELS, CHANNELS, 1, 1))
        arrays = [rng.uniform(0.5, 1.5, CHANNELS), rng.normal(size=CHANNELS), rng.normal(size=CHANNELS),
                  rng.uniform(0.5, 2, CHANNELS)]  # fmt: skip
        names = [f"{role}{n}" for role in ("kernel", "gamma", "beta", "mean", "variance")]
        held = zip(names, [kernel, *arrays], strict=True)
        constants += [numpy_helper.from_array(values.astype(np.float32), name) for name, values in held]
        nodes += [
            helper.make_node("Conv", [at, names[0]], [f"c{n}"]),
            helper.make_node("BatchNormalization", [f"c{n}", *names[1:]], [f"b{n}"], name=f"bn{n}"),
            helper.make_node("Relu", [f"b{n}"], [f"r{n}"]),
        ]
        at = f"r{n}"
    shape = ["batch", CHANNELS, SIDE, SIDE]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", at))
    graph = helper.make_graph(nodes, "deep", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), path)


@pytest.mark.slow
def test_fifty_layers_on_a_thousand_inputs(tmp_path):
    for module in ("onnx", "onnxruntime"):
        pytest.importorskip(module)
    deep(tmp_path / "deep.onnx")
    peaks = {}
    for count in (250, 1000):
        x = np.random.default_rng(1).normal(size=(count, CHANNELS, SIDE, SIDE)).astype(np.float32)
        np.save(tmp_path / f"{count}.npy", x)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, "deep.onnx", f"{count}.npy"], cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        peaks[count], layers, seen = json.loads(done.stdout)
        assert (layers, seen) == (LAYERS, x.size)
    print(f"peak with 250 inputs {peaks[250] / 2**20:.1f} MiB, with 1000 {peaks[1000] / 2**20:.1f} MiB")
    # What 750 more inputs bring to 50 layers is 2 * 50 * 750 kB = 77 MB in float32: a tenth of it would show.
    kept = 2 * LAYERS * 750 * CHANNELS * SIDE * SIDE * 4
    assert peaks[1000] - peaks[250] < kept / 10
