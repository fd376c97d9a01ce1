"""Everything of PyTorch that running a model may change, noted before and put back after."""

# PyTorch's own types are partly unknown to a type checker, and it is not imported before it is needed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import random
from collections.abc import Generator, Iterable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import require

__all__ = ["array_of", "memory_of", "same_numbers", "same_random_state", "tensor_of"]

PURPOSE = "Running a PyTorch model"


@contextlib.contextmanager
def same_random_state() -> Generator[None]:
    """The generators of PyTorch (each device that is in use), NumPy and Python are as before, also after an error."""
    torch: Any = require("torch", "torch", PURPOSE)
    used = torch.cuda.is_initialized()
    devices: list[Any] = torch.cuda.get_rng_state_all() if used else []
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - the model's own use
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if used:
            torch.cuda.set_rng_state_all(devices)


@contextlib.contextmanager
def same_numbers(tensors: Iterable[Any]) -> Generator[None]:
    """Tensors hold the same bits as before, also after an error: copies are written back where they differ."""
    torch: Any = require("torch", "torch", PURPOSE)
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                if not _same_bits(torch, tensor, before):
                    tensor.copy_(before)


def array_of(tensor: Any) -> NDArray[Any]:
    """A copy of a tensor, on whatever device."""
    torch: Any = require("torch", "torch", PURPOSE)
    held = tensor.detach().cpu().contiguous()
    if held.dtype == torch.bfloat16:
        return np.array(held.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.array(held.numpy())


def memory_of(tensor: Any) -> NDArray[Any] | None:
    """A tensor's numbers where they lie, shared; None where they are no plain memory of this processor's."""
    torch: Any = require("torch", "torch", PURPOSE)
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
        return None
    if tensor.layout is not torch.strided or not tensor.is_floating_point() or tensor.is_neg():
        return None
    held = tensor.detach()
    if held.dtype is torch.bfloat16:
        return held.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return held.numpy() if held.dtype in (torch.float32, torch.float64, torch.float16) else None


def tensor_of(array: NDArray[Any], device: Any = "cpu") -> Any:
    """A tensor with a copy of an array's numbers and type."""
    torch: Any = require("torch", "torch", PURPOSE)
    copied = np.array(array)
    if copied.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(copied).to(device)


def _same_bits(torch: Any, first: Any, second: Any) -> bool:
    if torch.equal(first, second):
        return True
    # NaN is not equal to itself: where there are any, the bits tell.
    return bool(array_of(first).tobytes() == array_of(second).tobytes())
