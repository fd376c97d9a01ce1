"""Batch normalization of ONNX Runtime: the operator BatchNormalization of opset 15, on the CPU."""

# Without complete types of its own:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportMissingImports=false, reportUnknownArgumentType=false
from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from . import Array, NormCall
from .layout import second, second_back

__all__ = ["normalize"]

OPSET, IR_VERSION = 15, 8
INPUTS = ("x", "scale", "bias", "mean", "variance")
TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


def normalize(call: NormCall) -> Array:
    """One node in inference mode, the channels moved to axis 1; an absent gamma or beta is ones or zeros."""
    x = second(call)
    session = _session(x.dtype.name, x.ndim, call.epsilon)
    scale = np.ones_like(call.mean) if call.gamma is None else call.gamma
    bias = np.zeros_like(call.mean) if call.beta is None else call.beta
    # The attribute is a float32: what rounding takes from epsilon goes into the variance (nothing, in float32).
    variance = (call.variance + (call.epsilon - float(np.float32(call.epsilon)))).astype(x.dtype)
    fed = dict(zip(INPUTS, (x, scale, bias, call.mean, variance), strict=True))
    return second_back(session.run(None, fed)[0], call)


@functools.lru_cache(maxsize=64)
def _session(dtype: str, rank: int, epsilon: float) -> Any:
    kind = TYPES[dtype]
    shapes = {name: [None] * (rank if name == "x" else 1) for name in INPUTS}
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", list(INPUTS), ["y"], epsilon=epsilon)],
        "norm",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", kind, shapes["x"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
