"""torch.compile of the same operations; what is written into a given buffer is fused into the generated loop."""

from __future__ import annotations

import torch

from speed.data import EPSILON

from . import Prepared
from .torch_eager import aten, physical, tensors, versions

__all__ = ["prepare", "versions"]


def prepare(case, data):
    """One compiled function a case."""
    torch._dynamo.reset()
    t = tensors(case, data)
    training = case.operation != "inference"

    def forward(x, residual, gamma, beta, mean, variance):
        moving = (None, None) if training else (mean, variance)
        y, *save = aten.native_batch_norm(x, gamma, beta, *moving, training, 0.1, EPSILON)
        if case.fused == "add+relu":
            y = y + residual
        return (y if case.fused == "plain" else torch.relu(y)), save

    def backward(x, grad, y, gamma, mean, inverse):
        if case.fused != "plain":
            grad = aten.threshold_backward(grad, y, 0)
        given = (grad, x, gamma, None, None, mean, inverse, True, EPSILON, [True, True, True])
        dx, dgamma, dbeta = aten.native_batch_norm_backward(*given)
        return dx, (dgamma, dbeta, grad) if case.fused == "add+relu" else (dgamma, dbeta)

    given = (t.x, t.residual, t.gamma, t.beta, t.mean, t.variance)
    if case.operation == "backward":
        with torch.no_grad():
            y, save = forward(*given)
        function, given = backward, (t.x, t.grad, y, t.gamma, *save)
    else:
        function = forward
    out = torch.empty_like(t.x)

    def written(*tensors):
        result, rest = function(*tensors[:-1])
        return tensors[-1].copy_(result), rest

    compiled = torch.compile(written if case.buffers == "out" else function)
    given = (*given, out) if case.buffers == "out" else given

    def call():
        with torch.no_grad():
            return compiled(*given)[0]

    return Prepared(call, lambda: physical(case, call()))
