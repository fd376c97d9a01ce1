"""batchnorm.torch as its users call it: the functional and its gradient, new tensors at every call."""

from __future__ import annotations

import torch

import batchnorm
import batchnorm.torch as bt
from batchnorm.layers.torch.functional import How, infer, train
from speed.data import EPSILON

from . import Prepared, need
from .torch_eager import physical, tensors

ACTIVATION = {"plain": None, "relu": "relu", "add+relu": "relu"}


def versions() -> dict[str, str]:
    """Ours and torch's."""
    return {"batchnorm": batchnorm.__version__, "torch": torch.__version__, "door": bt.__name__}


def prepare(case, data):
    """Forward and inference without a graph; backward of a graph that is kept."""
    need(case.buffers == "allocated", "returns new tensors")
    t = tensors(case, data)
    residual = t.residual if case.fused == "add+relu" else None
    activation = ACTIVATION[case.fused]
    if case.operation == "inference":
        call = _quiet(lambda: infer(t.x, t.mean, t.variance, t.gamma, t.beta, EPSILON, residual, activation))
    elif case.operation == "forward":
        call = _quiet(lambda: train(t.x, t.gamma, t.beta, How(EPSILON, activation), residual=residual))
    else:
        inputs = [t.x.detach().requires_grad_(), *(p.requires_grad_() for p in (t.gamma, t.beta))]
        inputs += [residual.detach().requires_grad_()] if residual is not None else []
        y = train(*inputs[:3], How(EPSILON, activation), residual=inputs[3] if residual is not None else None)

        def call():
            return torch.autograd.grad(y, inputs, t.grad, retain_graph=True)[0]

    return Prepared(call, lambda: physical(case, call()))


def _quiet(function):
    def call():
        with torch.no_grad():
            return function()

    return call
