"""Live PyTorch modules as a bench: hooks see each call, statistics are written into the buffers and put back."""

# PyTorch's own types are partly unknown to a type checker, and it is not imported before it is needed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.accumulator import Accumulator
from batchnorm.core.ops import Moments
from batchnorm.core.plan import Plan, plan
from batchnorm.core.record import LayerRecord
from batchnorm.errors import require
from batchnorm.kernels import cpu
from batchnorm.kernels.on_arrays import HUGE

from . import torch as live
from .calls import Call, Visit, of_channels
from .eager import Eager
from .torch_state import array_of, memory_of, same_numbers

__all__ = ["ModuleBench", "Plain", "TensorCall", "commit", "frozen_by_hand", "save"]

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
        with contextlib.ExitStack() as stack:
            for record in self.records:
                stack.enter_context(self._seen(record, visit))
            return live.called(self._model, positional, named)

    @contextlib.contextmanager
    def _seen(self, record: LayerRecord, visit: Visit) -> Generator[None]:
        module = self._modules[record.name]
        if is_plain(self._torch, module):
            with _replaced(module, self._computed(record, module, visit)):
                yield
            return

        def before(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            given = (*arguments, *(value for key, value in named.items() if key != "mask"))
            mask = named.get("mask", arguments[1] if len(arguments) > 1 else None)
            visit(TensorCall(self._torch, record, given[0], mask))

        handle = module.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _computed(self, record: LayerRecord, module: Any, visit: Visit) -> Callable[..., Any]:
        """A layer's ``forward`` that may be left out, as PyTorch's does nothing but normalise."""
        original = module.forward

        def forward(input: Any) -> Any:  # PyTorch's name
            call = TensorCall(self._torch, record, input, plain=Plain(module.weight, module.bias, module.eps))
            visit(call)
            return original(input) if call.output is None else call.output

        return forward

    def _kept(self, layer: str) -> Any:
        return [getattr(self._modules[layer], name).clone() for name in BUFFERS]

    def _put_back(self, layer: str, kept: Any) -> None:
        for name, before in zip(BUFFERS, kept, strict=True):
            getattr(self._modules[layer], name).copy_(before)

    def _array(self, output: Any) -> Any:
        return array_of(output) if isinstance(output, self._torch.Tensor) else output


class Plain(NamedTuple):
    """What a layer that does nothing but normalise does it with."""

    gamma: Any
    beta: Any
    epsilon: float


class TensorCall(Call):
    """A call of a layer on a tensor; ``plain`` where it does nothing but normalise."""

    def __init__(self, torch: Any, record: LayerRecord, x: Any, mask: Any = None, plain: Plain | None = None) -> None:
        super().__init__(record, x, mask if getattr(mask, "dtype", None) == torch.bool else None)
        self._torch = torch
        self._plain = plain
        self.threads = torch.get_num_threads()

    def in_training(self) -> Accumulator:
        """See `Call`: PyTorch's own layers are computed by the kernels, output and moments in one pass."""
        plain = self._plain if self._data is None else None  # the kernels' one pass normalises with all that it gets
        found = None if plain is None else normalized(self._torch, self.x, plain)
        if found is None:
            return self.moments()
        self.output, batch = found
        return of_channels(self.record, batch)

    def _namespace(self) -> Any:
        return self._torch

    def _widened(self) -> Any:
        x = self.x.detach()
        return x if x.dtype == self._torch.float64 else x.to(self._torch.float32)

    def _tensor(self, array: NDArray[Any]) -> Any:
        return self._torch.from_numpy(np.array(array)).to(self.x.device)

    def _array(self, tensor: Any) -> NDArray[Any]:
        return array_of(tensor)

    def _memory(self) -> NDArray[Any] | None:
        return memory_of(self.x)

    def _moments_of(self, wide: Any, how: Plan, count: Any, mask: Any) -> Accumulator:
        """In parts that stay in cache, which the equations read several times."""
        rows = max(1, IN_CACHE * wide.shape[0] // wide.numel())
        if mask is not None or 0 in how.kept or wide.device.type != "cpu" or rows >= wide.shape[0]:
            return super()._moments_of(wide, how, count, mask)
        parts = [(part, plan(tuple(part.shape), self.record.axis)) for part in wide.split(rows)]
        return functools.reduce(
            Accumulator.merge, (super(TensorCall, self)._moments_of(part, its, its.count, None) for part, its in parts)
        )


def is_plain(torch: Any, module: Any) -> bool:
    """Whether a layer is one of PyTorch's own, whose ``forward`` nobody has made another."""
    own = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
    return type(module) in own and "forward" not in vars(module)


def normalized(torch: Any, x: Any, plain: Plain) -> tuple[Any, Moments] | None:
    """Output and moments of one of PyTorch's layers in training mode, from one call of the kernels.

    None where they do not take it: no Numba, another device, type or shape than they know, a mode of dispatch that
    wants to see what is done.
    """
    held = memory_of(x)
    if held is None or not cpu.supports(held.dtype.name) or held.ndim < 2 or not held.size:
        return None
    if torch.overrides._get_current_function_mode() is not None or torch._C._len_torch_dispatch_stack():
        return None
    out = torch.empty_like(x)
    source, target = cpu.view_of(held), cpu.view_of(memory_of(out))  # type: ignore[arg-type]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = {
        name: array_of(each.to(wide))
        for name, each in (("gamma", plain.gamma), ("beta", plain.beta))
        if each is not None
    }
    if not cpu.fits(source, target, axis=1) or len({held.shape[1], *(each.size for each in given.values())}) > 1:
        return None
    mean, variance = np.empty((2, held.shape[1]))
    views: dict[str, Any] = {name: cpu.view_of(each) for name, each in given.items()}
    places = cpu.view_of(mean), cpu.view_of(variance)
    threads = torch.get_num_threads()
    count = cpu.forward(source, target, *places, axis=1, epsilon=plain.epsilon, most=threads, **views)
    return (out, Moments(count, mean, variance)) if np.all(np.less(variance, HUGE)) else None


@contextlib.contextmanager
def _replaced(module: Any, forward: Callable[..., Any]) -> Generator[None]:
    """For the time of a run; PyTorch's own ``__setattr__`` is for parameters."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


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
        # Through Python's own file, whose errors say what they are: a full disk is none of the model's.
        path.write_bytes(require("safetensors.torch", "torch", "Writing .safetensors files").save(state))
    else:
        torch.save(state, path)


def _write(torch: Any, module: Any, mean: Any, variance: Any) -> None:
    for name, values in zip(BUFFERS, (mean, variance), strict=True):
        buffer = getattr(module, name)
        buffer.copy_(torch.from_numpy(np.array(values, np.float64)).reshape(buffer.shape))
