"""The shortest way of a layer's call into the kernels: what has been checked once is looked up.

A small layer's arithmetic takes a microsecond or three, and so does each look at a tensor. The first call of a kind
goes the long way, through every check; if it suits the kernels, a `_Ready` is kept for the next one. It is found by the
layer's settings and the input's shape, strides and type, and holds as long as the layer's parameters and buffers are
the same tensors at the same addresses.
"""

# torch leaves many parameters of its own functions untyped, and what is asked here has no public name.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportPrivateUsage=false
from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import fast
from .fast import run_for
from .function import How
from .memory import OWN, follows, in_eager_mode, lies_there, plain, wide_type
from .recompute import inside_backward
from .run import ACTIVATIONS, FLOATS_HERE, start
from .state import Buffers

__all__ = ["Known", "call"]

MOST = 32
"""Kinds of calls that a layer remembers."""
UNUSED, READ, UPDATED = range(3)
"""What becomes of the running statistics in a call."""
_settings = itemgetter(
    "training", "eps", "momentum", "frozen", "activation", "virtual_batch_size", "track_running_stats"
)
_compiling = torch.compiler.is_compiling
_task = torch._C._current_graph_task_id  # pyright: ignore[reportAttributeAccessIssue]
_threads = torch.get_num_threads
_tensors = ("weight", "bias"), ("running_mean", "running_var", "num_batches_tracked", "skipped_updates", "remaining")


class Known(dict[Any, Any]):
    """What a layer remembers of its calls. Copied and pickled without it: addresses belong to a process."""

    def __reduce__(self) -> Any:
        """Nothing of it."""
        return Known, ()


NOTHING = Known()


@dataclass(slots=True, eq=False)
class _Ready:
    """A call of one kind, on these tensors.

    ``lie`` is where each of those that the kernel reads or writes begins, and its length; ``use`` is what becomes of
    mean and variance, and ``statistics`` their addresses for it; ``written`` are the tensors that a call writes to and
    autograd keeps a version of.
    """

    run: Any
    gamma: Any
    beta: Any
    mean: Any
    variance: Any
    tracked: Any
    skipped: Any
    remaining: Any
    lie: tuple[tuple[Tensor, int, int], ...]
    use: int
    statistics: tuple[int, int, int, int]
    written: tuple[Tensor, ...]


def call(layer: Any, x: Tensor, residual: Tensor | None) -> Tensor:
    """``layer._normalize(x, None, residual)``."""
    if _compiling() or type(x) not in OWN or not (fast.ENABLED and lies_there(x) and in_eager_mode()):
        return layer._normalize(x, None, residual)
    own = layer.__dict__
    strides = x.stride()
    kind = (_settings(own), x.shape, strides, x.dtype, residual is None, _task() == -1, _threads())
    known = own.get("_known") or NOTHING
    ready = known.get(kind)
    if ready is None:
        return _first(layer, x, residual, kind)
    if residual is not None and not _beside(residual, x, strides):
        return layer._normalize(x, None, residual)
    if ready is False:
        return layer._normalize(x, None, residual)
    if not _holds(ready, own["_parameters"].get, own["_buffers"].get):
        known.pop(kind, None)
        return _first(layer, x, residual, kind)
    y, _ = start(x, ready.gamma, ready.beta, residual, ready.run, ready.statistics)
    if ready.written:
        increment_version(ready.written)
    return y


def _holds(ready: _Ready, parameter: Any, buffer: Any) -> bool:
    """Whether the layer still has the tensors that were checked, and they still lie as they did."""
    mean, variance = ready.mean, ready.variance
    if not (
        parameter("weight", ready) is ready.gamma
        and parameter("bias", ready) is ready.beta
        and buffer("running_mean", ready) is mean
        and buffer("running_var", ready) is variance
        and buffer("num_batches_tracked", ready) is ready.tracked
        and buffer("skipped_updates", ready) is ready.skipped
        and buffer("remaining", ready) is ready.remaining
    ):
        return False
    for tensor, address, nbytes in ready.lie:  # the same tensor can be given other memory: ``weight.data = ...``
        if tensor.data_ptr() != address or tensor.nbytes != nbytes or not tensor.is_contiguous():
            return False
    return ready.use != READ or not (mean.requires_grad or variance.requires_grad)


def _beside(residual: Any, x: Tensor, strides: Any) -> bool:
    alike = plain(residual) and residual.dtype is x.dtype
    return alike and residual.shape == x.shape and residual.stride() == strides


def _first(layer: Any, x: Tensor, residual: Tensor | None, kind: Any) -> Tensor:
    y = layer._normalize(x, None, residual)
    known = layer.__dict__.setdefault("_known", Known())
    if len(known) >= MOST:
        known.clear()
    known[kind] = _ready(layer, x, residual is not None) or False
    return y


def _ready(layer: Any, x: Tensor, adds: bool) -> _Ready | None:
    """What a call like this one, which has passed all checks, needs next time; None where it is to go the long way."""
    size = layer.virtual_batch_size
    if layer.joins or layer.activation not in ACTIVATIONS or x.numel() == 0:
        return None
    parameters, buffers = layer._parameters, layer._buffers
    if (size is not None and x.shape[0] > size) or not {*_tensors[0]} <= parameters.keys():
        return None
    tensors: list[Any] = [*map(parameters.get, _tensors[0]), *map(buffers.get, _tensors[1])]
    gamma, beta, mean, variance, tracked, skipped, remaining = tensors
    if not plain(x) or not all(_exact(each, x) for each in (gamma, beta)):
        return None
    training, how = layer.training and not layer.frozen, How(layer.eps, layer.activation)
    run, written, use = None, (), UNUSED
    if not training and mean is not None and variance is not None:
        fixed = not (mean.requires_grad or variance.requires_grad)  # else they are for operations that autograd follows
        if fixed and mean.dtype in FLOATS_HERE and all(_exact(each, x, mean.dtype) for each in (mean, variance)):
            run, use = run_for(x, how, adds, None, None, mean.dtype), READ
    elif mean is None or variance is None or not (training and layer.track_running_stats) or inside_backward():
        run = run_for(x, how, adds, None, None)
    else:
        moving = follows(Buffers(mean, variance, tracked, skipped, remaining), layer.momentum)
        if moving is not None and bool(moving.tracked) == (tracked is not None):
            run, written, use = run_for(x, how, adds, moving, 1 - layer.momentum), moving.written, UPDATED
    if run is None:
        return None
    run.exact = True
    read = (gamma, beta), (gamma, beta, mean, variance), (gamma, beta, mean, variance, tracked, skipped)
    lie = tuple((each, each.data_ptr(), each.nbytes) for each in read[use] if each is not None)
    places = {UNUSED: (), READ: (mean, variance), UPDATED: (mean, variance, skipped, tracked)}[use]
    statistics: Any = (*(0 if each is None else each.data_ptr() for each in places), 0, 0, 0, 0)[:4]
    return _Ready(run, gamma, beta, mean, variance, tracked, skipped, remaining, lie, use, statistics, written)


def _exact(values: Tensor | None, x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether one number a channel lies as the kernels read it."""
    if values is None:
        return True
    wanted = dtype or wide_type(x.dtype)
    return plain(values) and values.dtype is wanted and values.is_contiguous() and values.numel() == x.shape[1]
