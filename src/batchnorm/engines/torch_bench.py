"""Live PyTorch modules as a bench: hooks see each call, statistics are written into the buffers and put back."""

# PyTorch's own types are partly unknown to a type checker, and it is not imported before it is needed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from batchnorm.core import equations
from batchnorm.core.accumulator import Accumulator
from batchnorm.core.plan import mask_shape, plan
from batchnorm.core.record import LayerRecord
from batchnorm.errors import Refused, require

from . import torch as live
from .eager import Call, Eager, Visit
from .torch_state import array_of, same_numbers

__all__ = ["ModuleBench", "TensorCall", "commit", "frozen_by_hand", "save", "tensor_moments"]

BUFFERS = ("running_mean", "running_var")
IN_CACHE = 1 << 17
"""Elements whose differences and squares stay in the processor's cache: half a megabyte in float32. So taken apart, 8
MB of activations cost 5.2 ms; as a whole 8.1, and `torch.var_mean` takes 10.4 (one thread)."""


class ModuleBench(Eager):
    """A module whose layers are ``modules[name]``; buffers, flags and random state are as before after the session."""

    def __init__(self, model: Any, records: Sequence[LayerRecord], modules: Mapping[str, Any]) -> None:
        super().__init__(records)
        self._model = getattr(model, "_orig_mod", model)  # compiled, hooks would not be called
        self._modules = dict(modules)
        self._torch: Any = require("torch", "torch", live.PURPOSE)

    @contextlib.contextmanager
    def session(self) -> Generator[None]:
        """See `Bench`."""
        with live.unchanged(self._model), self._torch.no_grad():
            for module in self._model.modules():
                module.training = False  # not eval(), which a class may have made its own
            yield

    def write(self, layer: str, mean: Any, variance: Any) -> None:
        """See `Bench`."""
        _write(self._torch, self._modules[layer], mean, variance)

    def _run(self, batch: Any, visit: Visit) -> Any:
        positional, named = live.arguments(self._torch, self._model, batch)
        handles = [self._hooked(record, visit) for record in self.records]
        try:
            return live.called(self._model, positional, named)
        finally:
            for handle in handles:
                handle.remove()

    def _hooked(self, record: LayerRecord, visit: Visit) -> Any:
        def before(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            given = (*arguments, *(value for key, value in named.items() if key != "mask"))
            mask = named.get("mask", arguments[1] if len(arguments) > 1 else None)
            visit(TensorCall(self._torch, record, given[0], mask))

        return self._modules[record.name].register_forward_pre_hook(before, with_kwargs=True)

    def _kept(self, layer: str) -> Any:
        return [getattr(self._modules[layer], name).clone() for name in BUFFERS]

    def _put_back(self, layer: str, kept: Any) -> None:
        for name, before in zip(BUFFERS, kept, strict=True):
            getattr(self._modules[layer], name).copy_(before)

    def _arrays(self, outputs: Any) -> Any:
        return live.arrays(self._torch, outputs)


class TensorCall(Call):
    """A call of a layer on a tensor."""

    def __init__(self, torch: Any, record: LayerRecord, x: Any, mask: Any = None) -> None:
        self.name = record.name
        self._torch = torch
        self._record = record
        self._x = x
        is_mask = mask is not None and getattr(mask, "dtype", None) == torch.bool
        self._mask = mask if is_mask else None

    def moments(self) -> Accumulator:
        """See `Call`."""
        return tensor_moments(self._torch, self._x, self._record, self._mask)

    def total(self) -> float:
        """See `Call`."""
        return float(self._x.double().sum())


def tensor_moments(torch: Any, x: Any, record: LayerRecord, mask: Any = None) -> Accumulator:
    """Moments of a tensor, computed where it lies, in float32 or its own wider type, and merged in float64."""
    x = x.detach()
    how = plan(tuple(x.shape), record.axis, f"recalibrate: {record.name}")
    if how.count == 0 or 0 in how.channel_shape:
        return Accumulator(0, np.zeros(record.channels), np.zeros(record.channels))
    if mask is not None:
        aligned, full = mask_shape(tuple(mask.shape), tuple(x.shape), how.kept, f"recalibrate: {record.name}")
        return _part(torch, x, record, mask.reshape(aligned).expand(full))
    rows = max(1, IN_CACHE * x.shape[0] // x.numel())
    if 0 in how.kept or x.device.type != "cpu" or rows >= x.shape[0]:
        return _part(torch, x, record)
    found = [_part(torch, part, record) for part in x.split(rows)]
    return functools.reduce(Accumulator.merge, found)


def _part(torch: Any, x: Any, record: LayerRecord, mask: Any = None) -> Accumulator:
    how = plan(tuple(x.shape), record.axis)
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    count: Any = how.count if mask is None else int(mask.sum())
    found = equations.moments(torch, wide, how.reduced, max(count, 1), mask)
    parts = array_of(torch.stack([found.high, found.low, found.variance])).astype(np.float64)
    _require_finite(record, parts)
    return Accumulator.from_parts(count, *parts)


def _require_finite(record: LayerRecord, parts: Any) -> None:
    if not np.all(np.isfinite(parts)):
        raise Refused(
            f"recalibrate: the input of {record.name} is not finite on this data, so that its statistics would not be "
            "either. Look for weights or statistics that are not finite before it: batchnorm check names them."
        )


def frozen_by_hand(model: Any, modules: Mapping[str, Any]) -> set[str]:
    """Layers that were put in ``eval()`` inside a model in ``train()``: the usual way to freeze them in PyTorch."""
    if not getattr(model, "training", False):
        return set()
    return {name for name, module in modules.items() if module is not model and not module.training}


def commit(modules: Mapping[str, Any], statistics: Mapping[str, tuple[Any, Any]]) -> None:
    """Write new statistics into live modules; where that fails half-way, the old ones come back.

    Of this package's debiased layers nothing of the initial value is left then, and ``remaining`` becomes 0.
    """
    torch: Any = require("torch", "torch", live.PURPOSE)
    chosen = {name: modules[name] for name in statistics}
    buffers = [getattr(module, name, None) for module in chosen.values() for name in (*BUFFERS, "remaining")]
    kept = [(buffer, buffer.clone()) for buffer in buffers if buffer is not None]
    with torch.no_grad():
        try:
            for name, pair in statistics.items():
                _write(torch, chosen[name], *pair)
                remaining = getattr(chosen[name], "remaining", None)
                if remaining is not None:
                    remaining.zero_()
        except BaseException:
            for buffer, before in kept:
                buffer.copy_(before)
            raise


def save(model: Any, modules: Mapping[str, Any], path: pathlib.Path, statistics: Mapping[str, tuple[Any, Any]]) -> None:
    """Write the state dict of a live module with new statistics; the module stays as it is."""
    torch: Any = require("torch", "torch", live.PURPOSE)
    with same_numbers(model.buffers()):
        commit(modules, statistics)
        state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        require("safetensors.torch", "torch", "Writing .safetensors files").save_file(state, path)
    else:
        torch.save(state, path)


def _write(torch: Any, module: Any, mean: Any, variance: Any) -> None:
    for name, values in zip(BUFFERS, (mean, variance), strict=True):
        buffer = getattr(module, name)
        buffer.copy_(torch.from_numpy(np.array(values, np.float64)).reshape(buffer.shape))
