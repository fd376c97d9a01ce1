"""onnxruntime: the BatchNormalization operator in inference, channels first, with its outputs bound or returned."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from speed.data import EPSILON

from . import Prepared, need


def versions() -> dict[str, str]:
    """Of onnxruntime."""
    return {"onnxruntime": ort.__version__}


def prepare(case, data):
    """A model of one operator, and what is fused to it."""
    need(case.operation == "inference", "inference only")
    need(case.layout == "first" or len(case.shape) == 2, "channels first only")
    need(case.dtype == "float32", "float32 only on the CPU")
    feeds = {"x": data.x, "r": data.residual}
    feeds |= dict(zip(("gamma", "beta", "mean", "variance"), data[3:], strict=True))
    if case.fused != "add+relu":
        del feeds["r"]
    session = _session(case, list(feeds))
    if case.buffers == "allocated":
        return Prepared(lambda: session.run(["y"], feeds)[0], lambda: session.run(["y"], feeds)[0])
    out = np.empty_like(data.x)
    bound = session.io_binding()
    for name, value in feeds.items():
        bound.bind_cpu_input(name, value)
    bound.bind_output("y", "cpu", 0, np.float32, list(out.shape), out.ctypes.data)
    return Prepared(lambda: session.run_with_iobinding(bound), lambda: out)


def _session(case, names):
    last = {"plain": "y", "relu": "z", "add+relu": "z"}[case.fused]
    nodes = [
        helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "variance"], [last], epsilon=EPSILON)
    ]
    if case.fused == "add+relu":
        nodes.append(helper.make_node("Add", ["z", "r"], ["s"]))
    if case.fused != "plain":
        nodes.append(helper.make_node("Relu", ["s" if case.fused == "add+relu" else "z"], ["y"]))
    shapes = {name: case.shape if name in ("x", "r") else (case.channels,) for name in names}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, case.shape)]
    model = helper.make_model(
        helper.make_graph(nodes, "norm", inputs, outputs), opset_imports=[helper.make_opsetid("", 15)], ir_version=10
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("BENCHMARK_THREADS", "2"))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
