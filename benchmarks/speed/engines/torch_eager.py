"""torch's own kernels, eager: with ``out=`` buffers, or as `torch.nn.functional` returns new tensors."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import torch

from speed.data import EPSILON

from . import Prepared

torch.set_num_threads(int(os.environ.get("BENCHMARK_THREADS", "2")))
aten = torch.ops.aten


class Tensors(NamedTuple):
    """The data as torch sees it, channels on axis 1 whatever lies where."""

    x: Any
    grad: Any
    residual: Any
    gamma: Any
    beta: Any
    mean: Any
    variance: Any


def versions() -> dict[str, str]:
    """Of torch."""
    return {"torch": torch.__version__}


def tensors(case, data) -> Tensors:
    """Views of the arrays."""
    moved = (lambda t: t) if case.layout == "first" else (lambda t: t.movedim(-1, 1))
    return Tensors(*(moved(_tensor(each)) for each in data[:3]), *map(_tensor, data[3:]))


def _tensor(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def physical(case, tensor) -> np.ndarray:
    """The array of a result, with the axes as they lie in memory for this case."""
    tensor = tensor.detach() if case.layout == "first" else tensor.detach().movedim(1, -1)
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def prepare(case, data):
    """The operation with and without buffers."""
    t = tensors(case, data)
    with torch.no_grad():
        call = (_with_out if case.buffers == "out" else _allocating)(case, t)

    def quiet():
        with torch.no_grad():
            return call()

    return Prepared(quiet, lambda: physical(case, quiet()))


def _with_out(case, t):
    y, work = torch.empty_like(t.x), torch.empty_like(t.x)
    save = {"save_mean": torch.empty_like(t.gamma), "save_invstd": torch.empty_like(t.gamma)}
    training = case.operation != "inference"
    moving = (None, None) if training else (t.mean, t.variance)

    def forward():
        aten.native_batch_norm.out(t.x, t.gamma, t.beta, *moving, training, 0.1, EPSILON, out=y, **save)
        if case.fused == "add+relu":
            torch.add(y, t.residual, out=y)
        return y if case.fused == "plain" else aten.relu_(y)

    if case.operation != "backward":
        return forward
    forward()
    sums = {"out1": torch.empty_like(t.gamma), "out2": torch.empty_like(t.gamma)}
    dx = torch.empty_like(t.x)

    def backward():
        grad = t.grad
        if case.fused != "plain":
            grad = aten.threshold_backward.grad_input(t.grad, y, 0, grad_input=work)
        given = (grad, t.x, t.gamma, None, None, *save.values(), True, EPSILON, [True, True, True])
        aten.native_batch_norm_backward.out(*given, out0=dx, **sums)
        return dx

    return backward


def _allocating(case, t):
    training = case.operation != "inference"
    moving = (None, None) if training else (t.mean, t.variance)

    def forward():
        y, *save = aten.native_batch_norm(t.x, t.gamma, t.beta, *moving, training, 0.1, EPSILON)
        if case.fused == "add+relu":
            y = y + t.residual
        return (y if case.fused == "plain" else torch.relu(y)), save

    if case.operation != "backward":
        return lambda: forward()[0]
    y, save = forward()

    def backward():
        grad = t.grad if case.fused == "plain" else aten.threshold_backward(t.grad, y, 0)
        given = (grad, t.x, t.gamma, None, None, *save, True, EPSILON, [True, True, True])
        return aten.native_batch_norm_backward(*given)[0]

    return backward
