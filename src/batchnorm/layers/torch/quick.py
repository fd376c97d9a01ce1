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
from .memory import FLOATS, OWN, PLAIN, follows, in_eager_mode, keys, plain, wide_type
from .recompute import inside_backward
from .run import ACTIVATIONS, FLOATS_HERE, Run, start
from .state import Buffers

__all__ = ["Known", "call"]

MOST = 32
"""Kinds of calls that a layer remembers."""
_settings = itemgetter("training", "eps", "momentum", "frozen", "activation", "virtual_batch_size", "track_running_stats")
_tensors = ("weight", "bias"), ("running_mean", "running_var", "num_batches_tracked", "skipped_updates", "remaining")


class Known(dict[Any, Any]):
    """What a layer remembers of its calls. Copied and pickled without it: addresses belong to a process."""

    def __reduce__(self) -> Any:
        """Nothing of it."""
        return Known, ()


@dataclass(slots=True, eq=False)
class _Ready:
    """A call of one kind, on these tensors; ``written`` are those that a call writes to."""

    run: Run
    tensors: tuple[Tensor | None, ...]
    places: tuple[tuple[int, int], ...]
    written: tuple[Tensor, ...]

    def holds(self, parameters: dict[str, Any], buffers: dict[str, Any]) -> bool:
        """Whether the layer still has these tensors, and they lie where they did."""
        gamma, beta, mean, variance, tracked, skipped, remaining = self.tensors
        get = buffers.get
        return (
            parameters.get("weight", self) is gamma
            and parameters.get("bias", self) is beta
            and get("running_mean", self) is mean
            and get("running_var", self) is variance
            and get("num_batches_tracked", self) is tracked
            and get("skipped_updates", self) is skipped
            and get("remaining", self) is remaining
            and _places(self.tensors) == self.places
        )


def _places(tensors: tuple[Tensor | None, ...]) -> tuple[tuple[int, int], ...]:
    return tuple([(each.data_ptr(), each.numel()) for each in tensors if each is not None])


def call(layer: Any, x: Tensor, residual: Tensor | None) -> Tensor:
    """``layer._normalize(x, None, residual)``."""
    if torch.compiler.is_compiling() or type(x) not in OWN or not fast.ENABLED:
        return layer._normalize(x, None, residual)
    if keys(x) not in PLAIN or not in_eager_mode():
        return layer._normalize(x, None, residual)
    own = layer.__dict__
    strides, again = x.stride(), inside_backward()
    kind = (_settings(own), x.shape, strides, x.dtype, residual is None, again, torch.get_num_threads())
    known = own.get("_known")
    ready = None if known is None else known.get(kind)
    if ready is None:
        return _first(layer, x, residual, kind)
    if ready is False:
        return layer._normalize(x, None, residual)
    parameters, buffers = own["_parameters"], own["_buffers"]
    if not ready.holds(parameters, buffers):
        del known[kind]
        return _first(layer, x, residual, kind)
    if residual is not None and not (
        plain(residual)
        and residual.dtype is x.dtype
        and residual.shape == x.shape
        and residual.stride() == strides
    ):
        return layer._normalize(x, None, residual)
    gamma, beta = ready.tensors[:2]
    y, _ = start(x, gamma, beta, residual, ready.run)
    if ready.written:
        increment_version(ready.written)
    return y


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
    if layer._group is not None or layer.activation not in ACTIVATIONS or x.numel() == 0:
        return None
    parameters, buffers = layer._parameters, layer._buffers
    if (size is not None and x.shape[0] > size) or not {*_tensors[0]} <= parameters.keys():
        return None
    tensors = *map(parameters.get, _tensors[0]), *map(buffers.get, _tensors[1])
    gamma, beta, mean, variance, tracked, skipped, remaining = tensors
    if x.dtype not in FLOATS or not all(_exact(each, x) for each in (gamma, beta)):
        return None
    training, how = layer.training and not layer.frozen, How(layer.eps, layer.activation)
    run, written = None, ()
    if not training and mean is not None and variance is not None:
        if mean.dtype in FLOATS_HERE and all(_exact(each, x, mean.dtype) for each in (mean, variance)):
            run = run_for(x, how, adds, None, None, (mean, variance))
    elif not (training and layer.track_running_stats and mean is not None) or inside_backward():
        run = run_for(x, how, adds, None, None)
    else:
        moving = follows(Buffers(mean, variance, tracked, skipped, remaining), layer.momentum)
        if moving is not None and bool(moving.tracked) == (tracked is not None):
            run, written = run_for(x, how, adds, moving, 1 - layer.momentum), moving.written
    if run is None:
        return None
    run.exact = True
    return _Ready(run, tensors, _places(tensors), written if run.plan.count > 1 else ())


def _exact(values: Tensor | None, x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether one number a channel lies as the kernels read it."""
    if values is None:
        return True
    wanted = dtype or wide_type(x.dtype)
    return plain(values) and values.dtype is wanted and values.is_contiguous() and values.numel() == x.shape[1]
