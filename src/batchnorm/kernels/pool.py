"""Large output buffers that are used again: fresh memory costs more than the arithmetic.

Linux gives a process zeroed pages one by one as they are first touched: filling 103 MB takes 25 ms where the memory is
new and 2 ms where it is not. Arrays from `BIG` bytes on are therefore cut from anonymous maps with huge pages
(``madvise``), and a map whose array is no longer used anywhere is kept for the next array of about its size.

At most `LIMIT` bytes are kept unused (``BATCHNORM_POOL_BYTES``); the one unused longest is given back first.
``BATCHNORM_POOL=0`` turns the pool off: every array is then NumPy's own. `clear` gives all unused memory back.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BIG", "allocate", "clear", "kept"]

BIG = 32 * 1024 * 1024
"""Bytes from which an array comes from the pool: what the C library maps and unmaps at every use."""
HUGE_PAGE = 2 * 1024 * 1024
PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
ENABLED = os.environ.get("BATCHNORM_POOL", "1") != "0"
LIMIT = int(os.environ.get("BATCHNORM_POOL_BYTES", str(1024 * 1024 * 1024)))

_unused: list[mmap.mmap] = []
# Reentrant: a garbage collection inside the pool may bring an array back to it.
_lock = threading.RLock()


def allocate(shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array of undefined content in C order, as ``np.empty`` gives it; from the pool if it is big."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < BIG or not ENABLED:
        return np.empty(shape, dtype)
    memory = _take(-(-nbytes // HUGE_PAGE) * HUGE_PAGE + HUGE_PAGE)
    whole = np.frombuffer(memory, np.uint8)
    # Every view of the array keeps `whole` alive, and with its end the memory comes back.
    weakref.finalize(whole, _give_back, memory).atexit = False
    start = -whole.ctypes.data % HUGE_PAGE
    return whole[start : start + nbytes].view(dtype).reshape(shape)


def kept() -> int:
    """Bytes kept unused at the moment."""
    with _lock:
        return sum(map(len, _unused))


def clear() -> None:
    """Give all unused memory back to the system."""
    with _lock:
        _unused.clear()


def _take(nbytes: int) -> mmap.mmap:
    with _lock:
        fitting = [one for one in _unused if nbytes <= len(one) <= nbytes + nbytes // 4]
        if fitting:
            best = min(fitting, key=len)
            _unused[:] = [one for one in _unused if one is not best]
            return best
    # Private: a shared map takes no huge pages, and a child after a fork would write into its parent's arrays.
    memory = mmap.mmap(-1, nbytes, flags=PRIVATE) if PRIVATE else mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _give_back(memory: mmap.mmap) -> None:
    with _lock:
        _unused.append(memory)
        while kept() > LIMIT:
            _unused.pop(0)


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
