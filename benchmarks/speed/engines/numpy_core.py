"""The core's operations on NumPy arrays, without compiled kernels. They return new arrays; there is no other way."""

from __future__ import annotations

import numpy as np

from batchnorm.core import ops
from speed.data import EPSILON

from . import Prepared, need


def versions() -> dict[str, str]:
    """NumPy's."""
    return {"numpy": np.__version__}


def prepare(case, data):
    """`core.ops`, and NumPy for what is fused."""
    need(case.buffers == "allocated", "returns new arrays")
    x, grad, residual, gamma, beta, mean, variance = data
    options = {"epsilon": EPSILON, "axis": case.axis}

    def activated(y):
        if case.fused == "add+relu":
            y += residual
        return y if case.fused == "plain" else np.maximum(y, 0, out=y)

    if case.operation == "inference":
        return _kept(lambda: activated(ops.normalize(x, mean, variance, gamma, beta, **options)))
    if case.operation == "forward":
        return _kept(lambda: activated(ops.batch_norm(x, gamma, beta, **options)[0]))
    y = activated(ops.batch_norm(x, gamma, beta, **options)[0])
    upstream = (lambda: grad) if case.fused == "plain" else (lambda: np.where(y > 0, grad, np.zeros_like(grad)))
    return _kept(lambda: ops.batch_norm_grad(upstream(), x, gamma, **options).x)


def _kept(call):
    return Prepared(call, call)
