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

import sys
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
from .run import ACTIVATIONS, FLOATS_HERE, SPARE, Room, places_of, room, start
from .state import Buffers

__all__ = ["Known", "call"]

MOST = 32
"""Kinds of calls that a layer remembers."""
ALONE = 3 if getattr(sys, "_is_gil_enabled", lambda: True)() else 0
"""References to a `Room` that is in nobody's hands: its owner's, one variable's, and that of the function that asks.
Two threads that look at once both see one more. Without the interpreter's lock there is no such number."""
_references = sys.getrefcount
_settings = itemgetter(
    "training", "eps", "momentum", "frozen", "activation", "virtual_batch_size", "track_running_stats"
)
_task = torch._C._current_graph_task_id  # pyright: ignore[reportAttributeAccessIssue]
_threads = torch.get_num_threads
_changed = getattr(
    torch._C, "_increment_version", increment_version
)  # which asks first whether it was given one tensor
_tensors = ("weight", "bias"), ("running_mean", "running_var", "skipped_updates", "num_batches_tracked", "remaining")


class Known(dict[Any, Any]):
    """What a layer remembers of its calls. Copied and pickled without it: addresses belong to a process."""

    def __reduce__(self) -> Any:
        """Nothing of it."""
        return Known, ()


NOTHING = Known()


@dataclass(slots=True, eq=False)
class _Ready:
    """A call of one kind, on these tensors.

    ``tensors`` are gamma, beta, mean, variance, skipped, tracked, remaining; ``lie`` is where each of those that the
    kernel reads or writes begins, and its length; ``fixed`` are the given mean and variance, as long as no gradient is
    wanted of them. ``places`` are the addresses for the kernel; ``written`` are the tensors that a call writes to and
    autograd keeps a version of. ``room`` is memory for one call at a time: a second one before the graph of the first
    is gone gets its own; None where that would be much to keep.
    """

    run: Any
    room: Room | None
    tensors: tuple[Any, ...]
    lie: tuple[tuple[Tensor, int, int], ...]
    fixed: tuple[Tensor, ...]
    places: Any
    written: tuple[Tensor, ...]


def call(layer: Any, x: Tensor, residual: Tensor | None) -> Tensor:
    """``layer._normalize(x, None, residual)``."""
    if type(x) not in OWN or not (in_eager_mode() and fast.ENABLED and lies_there(x)):
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
    if not _holds(ready, own["_parameters"], own["_buffers"]):
        known.pop(kind, None)
        return _first(layer, x, residual, kind)
    tensors = ready.tensors
    memory = ready.room
    if memory is None or _references(memory) > ALONE:
        memory = room(ready.run.plan.words)
    y = start(x, tensors[0], tensors[1], residual, ready.run, memory, ready.places)
    if ready.written:
        _changed(ready.written)
    return y


def _holds(ready: _Ready, parameters: Any, buffers: Any) -> bool:
    """Whether the layer still has the tensors that were checked, and they still lie as they did."""
    gamma, beta, mean, variance, skipped, tracked, remaining = ready.tensors
    try:
        if not (
            parameters["weight"] is gamma
            and parameters["bias"] is beta
            and buffers["running_mean"] is mean
            and buffers["running_var"] is variance
            and buffers["skipped_updates"] is skipped
            and buffers["num_batches_tracked"] is tracked
            and buffers["remaining"] is remaining
        ):
            return False
    except KeyError:
        return False
    for tensor, address, length in ready.lie:  # the same tensor can be given other memory: ``weight.data = ...``
        if tensor.data_ptr() != address or tensor.nbytes != length or not tensor.is_contiguous():
            return False
    return not (ready.fixed and any(each.requires_grad for each in ready.fixed))


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
    tensors: Any = (*map(parameters.get, _tensors[0]), *map(buffers.get, _tensors[1]))
    gamma, beta, mean, variance, skipped, tracked, remaining = tensors
    if not plain(x) or not all(_exact(each, x) for each in (gamma, beta)):
        return None
    training, how = layer.training and not layer.frozen, How(layer.eps, layer.activation)
    run, written, used, fixed = None, (), (), ()
    if not training and mean is not None and variance is not None:
        free = not (mean.requires_grad or variance.requires_grad)  # else they are for operations that autograd follows
        if free and mean.dtype in FLOATS_HERE and all(_exact(each, x, mean.dtype) for each in (mean, variance)):
            run, used, fixed = run_for(x, how, adds, None, None, mean.dtype), (mean, variance), (mean, variance)
    elif mean is None or variance is None or not (training and layer.track_running_stats) or inside_backward():
        run = run_for(x, how, adds, None, None)
    else:
        moving = follows(Buffers(mean, variance, tracked, skipped, remaining), layer.momentum)
        if moving is not None and bool(moving.tracked) == (tracked is not None):
            run, written = run_for(x, how, adds, moving, 1 - layer.momentum), moving.written
            used = mean, variance, skipped, tracked
    if run is None:
        return None
    run.exact = True
    lie = tuple((each, each.data_ptr(), each.nbytes) for each in (gamma, beta, *used) if each is not None)
    statistics: Any = (*(0 if each is None else each.data_ptr() for each in used), 0, 0, 0, 0)[:4]
    places = places_of(gamma, beta, statistics)
    words = run.plan.words
    own = room(words) if words <= SPARE else None
    return _Ready(run, own, tensors, lie, fixed, places, written)


def _exact(values: Tensor | None, x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether one number a channel lies as the kernels read it."""
    if values is None:
        return True
    wanted = dtype or wide_type(x.dtype)
    return plain(values) and values.dtype is wanted and values.is_contiguous() and values.numel() == x.shape[1]
