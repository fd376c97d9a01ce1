"""Tensors as memory: which ones compiled kernels may read and write by address, as views, and where outputs go."""

# torch leaves many parameters of its own functions untyped, and what is asked here has no public name.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
from __future__ import annotations

import functools
import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchnorm.kernels import cpu, pool
from batchnorm.kernels.cpu import View

__all__ = ["ENABLED", "empty", "in_eager_mode", "plain", "view", "walks", "wide_type"]

Strides = tuple[int, ...]


def _examples() -> list[Tensor]:
    with torch.inference_mode():
        unrecorded = torch.empty(0)
    return [unrecorded, torch.empty(0, requires_grad=False)]


ENABLED = cpu.available() and os.environ.get("BATCHNORM_KERNELS", "1") != "0"
NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int64: "int64",
}
FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
PLAIN = frozenset(torch._C._dispatch_keys(each).raw_repr() for each in _examples())
"""What torch attaches to a tensor that is nothing but memory; signs, batches, subclasses and devices have more."""
OWN = (Tensor, torch.nn.Parameter)
SAME_SIZE = {4: np.dtype(np.float32), 8: np.dtype(np.float64), 2: np.dtype(np.int16)}


def in_eager_mode() -> bool:
    """Whether operations run as they are called, and nobody follows them but autograd's backward mode.

    torch.func, forward mode, tracing, compiling and dispatch modes see torch's operations, and not what a kernel does.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None  # pyright: ignore[reportUnnecessaryComparison]
        or torch._C._len_torch_dispatch_stack()
    )


def plain(tensor: Tensor | None) -> bool:
    """Whether the tensor is what lies at its address: on the CPU, of no subclass, without lazy signs. None is."""
    return tensor is None or (
        type(tensor) in OWN and torch._C._dispatch_keys(tensor).raw_repr() in PLAIN and tensor.dtype in FLOATS
    )


def view(tensor: Tensor) -> View:
    """The tensor for the kernels; it must live until they are done."""
    return View(tensor.data_ptr(), tensor.shape, tensor.stride(), NAMES[tensor.dtype])


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type of the arithmetic, and of the kernels' gamma and beta."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@functools.lru_cache(maxsize=1024)
def walks(shape: tuple[int, ...], strides: tuple[int, ...], *, axis: int = 1, mask: bool = False) -> Strides | None:
    """Strides of an output for such an input, or None where the kernels cannot walk the two as they lie."""
    out = torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()
    x, y = (View(0, shape, each, "float32") for each in (strides, out))
    return out if cpu.fits(x, y, axis=axis, mask=mask) else None


def empty(shape: tuple[int, ...], strides: Strides, dtype: torch.dtype) -> Tensor:
    """A tensor of undefined content; from the pool if it is big."""
    numel = math.prod(shape)
    if numel * dtype.itemsize < pool.BIG:
        return torch.empty_strided(shape, strides, dtype=dtype)
    memory: Any = torch.from_numpy(pool.allocate((numel,), SAME_SIZE[dtype.itemsize]))
    # Not as a view of another tensor: autograd would not let it be changed in place.
    return torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), 0, shape, strides)
