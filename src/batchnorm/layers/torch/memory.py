"""Tensors as memory: which ones compiled kernels may read and write by address, as views, and where outputs go."""

# torch leaves many parameters of its own functions untyped, and what is asked here has no public name.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchnorm.kernels import cpu, pool
from batchnorm.kernels.cpu import View

__all__ = [
    "ENABLED",
    "FLOATS",
    "NAMES",
    "OWN",
    "Followed",
    "empty",
    "follows",
    "in_eager_mode",
    "lies_as",
    "lies_there",
    "plain",
    "view",
    "walks",
    "wide_type",
]

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
WIDE = (torch.float32, torch.float64)
STRIDED = torch.strided
_compiling = torch.compiler.is_compiling
_transformed = torch._C._are_functorch_transforms_active
_traced = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack


def _is_memory(tensor: Tensor) -> bool:
    return type(tensor) in OWN and torch._C._dispatch_keys(tensor).raw_repr() in PLAIN


def in_eager_mode() -> bool:
    """Whether operations run as they are called, and nobody follows them but autograd's backward mode.

    torch.func, forward mode, tracing, compiling and dispatch modes see torch's operations, and not what a kernel does.
    """
    return not (
        _compiling()
        or _transformed()
        or forward_ad._current_level >= 0
        or _traced() is not None  # pyright: ignore[reportUnnecessaryComparison]
        or _modes()
    )


def lies_there(tensor: Tensor) -> bool:
    """Whether a tensor of torch's own type lies on the CPU as its strides say: `plain` at a fifth of the time.

    What has no address is left over from a transform of torch.func, or stands for zeros.
    """
    try:
        return tensor.is_cpu and tensor.layout is STRIDED and not tensor.is_neg() and tensor.data_ptr() != 0
    except RuntimeError:
        return False


def plain(tensor: Tensor | None) -> bool:
    """Whether the tensor is what lies at its address: on the CPU, of no subclass, without lazy signs. None is."""
    return tensor is None or (_is_memory(tensor) and tensor.dtype in FLOATS)


def lies_as(saved: Tensor, strides: tuple[int, ...], grad: Tensor) -> bool:
    """Whether what was saved lies as it did: hooks on saved tensors may bring it back in another type or order."""
    alike = type(saved) in OWN and saved.dtype is grad.dtype and saved.nbytes == grad.nbytes
    return alike and saved.stride() == strides and lies_there(saved)


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


def empty(x: Tensor, strides: Strides) -> Tensor:
    """A tensor of undefined content like ``x``, with the ``strides`` of `walks`; from the pool if it is big."""
    if x.nbytes < pool.BIG:
        return torch.empty_like(x)
    memory: Any = torch.from_numpy(pool.allocate((x.numel(),), SAME_SIZE[x.itemsize]))
    # Not as a view of another tensor: autograd would not let it be changed in place.
    return torch.empty(0, dtype=x.dtype, device="cpu").set_(memory.untyped_storage(), 0, x.shape, strides)


class Followed(NamedTuple):
    """Moving statistics for a kernel that updates them.

    ``addresses`` are of mean, variance, skipped updates and counted batches; ``written`` are the tensors there that
    autograd keeps a version of: it is told as if they had been written to by ``copy_()``.
    """

    addresses: tuple[int, int, int, int]
    dtype: torch.dtype
    guard: bool
    written: tuple[Tensor, ...]

    @property
    def tracked(self) -> int:
        """Where batches are counted; 0 if the kernel does not."""
        return self.addresses[3]


def follows(buffers: Any, momentum: float | None) -> Followed | None:
    """The buffers (`state.Buffers`) for a kernel: a moving average in memory of its own. None where it is not that."""
    mean, variance, tracked, skipped, remaining = buffers
    if momentum is None or remaining is not None or mean.dtype not in WIDE or mean.dtype != variance.dtype:
        return None
    if not (plain(mean) and plain(variance) and mean.is_contiguous() and variance.is_contiguous()):
        return None
    if tracked is not None and not (tracked.dtype is torch.int64 and _is_memory(tracked)):
        tracked = None
    if skipped is not None and not (skipped.dtype is torch.int64 and _is_memory(skipped) and skipped.is_contiguous()):
        return None
    written = tuple(each for each in (mean, variance, skipped, tracked) if each is not None and not each.is_inference())
    addresses = tuple(0 if each is None else each.data_ptr() for each in (mean, variance, skipped, tracked))
    return Followed(addresses, mean.dtype, skipped is not None, written)  # type: ignore[arg-type]
