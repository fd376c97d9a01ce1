"""Compiling kernels, once, and running them on one thread or on all of them.

A kernel is a C function of a part, the number of parts and a `block`; it is compiled when first asked for, kept on disk
by Numba (``NUMBA_CACHE_DIR`` moves it), and called by its address from one small parallel loop, so that a variant costs
one compilation and not two.

Numba's OpenMP layer is preferred: it starts a parallel loop in 1.2 microseconds, the portable one in 99, and that one
also ends the process if two Python threads use it at once, so calls are then made one at a time. After a fork the child
runs on one thread: OpenMP's threads stay with the parent.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN202
from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
import types as types_of_python
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import cfunc, njit, prange, types

from . import backward_first, backward_last, few_rows, forward_first, forward_last, walk_first, walk_last
from . import block as at
from .address import address_of
from .caching import CACHE
from .intrinsics import Spec, call, get_int, put_int

__all__ = [
    "layer",
    "leaf",
    "parallel",
    "run",
    "serial",
    "set_threads",
    "steps",
    "threads",
    "together",
    "versioned",
    "walk",
    "whole",
]

LEAVES: dict[str, Any] = {
    "forward first add": forward_first.add,
    "forward first apply": forward_first.apply,
    "forward first both": forward_first.both,
    "forward last add": forward_last.add,
    "forward last apply": forward_last.apply,
    "backward first add": backward_first.add,
    "backward first apply": backward_first.apply,
    "backward first both": backward_first.both,
    "backward last add": backward_last.add,
    "backward last apply": backward_last.apply,
}
WALKS: dict[str, Any] = {"first": walk_first.walk, "last": walk_last.walk}
WHOLE: dict[str, Any] = {
    "training": few_rows.training,
    "inference": few_rows.inference,
    "backward": few_rows.backward,
}


def _source() -> int:
    # Numba notices a change of the file a kernel stands in, not of the files it calls.
    files = sorted(Path(__file__).parent.glob("*.py"))
    return functools.reduce(lambda crc, file: zlib.crc32(file.read_bytes(), crc), files, 0)


def _choose_layer() -> str:
    if "NUMBA_THREADING_LAYER" in os.environ or numba.config.THREADING_LAYER != "default":
        return str(numba.config.THREADING_LAYER)
    with contextlib.suppress(ImportError):
        importlib.import_module("numba.np.ufunc.omppool")
        numba.config.THREADING_LAYER = "omp"
    return str(numba.config.THREADING_LAYER)


SOURCE = _source()
LAYER = _choose_layer()
_one_at_a_time = (
    contextlib.nullcontext() if LAYER in ("omp", "tbb", "threadsafe", "forksafe", "safe") else threading.Lock()
)


def versioned(function: Any) -> Any:
    """A function whose compiled code is kept for these very sources: Numba looks at the file it stands in alone."""
    function.__qualname__ += f"_{SOURCE:08x}"
    return function


@njit(cache=CACHE, nogil=True)
@versioned
def serial(function, block, steps, count):  # noqa: ANN201
    """Run the phases on this thread; for compiled code."""
    for i in range(count):
        _alone(function, block, get_int(steps, 2 * i))
        if _repeats(block):
            for k in range(count):
                phase = get_int(steps, 2 * k)
                if phase == at.SUMMING or phase == at.SETTLING:
                    _alone(function, block, phase)


@njit(cache=CACHE, nogil=True)
@versioned
def parallel(function, block, steps, count):  # noqa: ANN201
    """Run the phases on as many threads as each says; for compiled code."""
    for i in range(count):
        _together(function, block, get_int(steps, 2 * i), get_int(steps, 2 * i + 1))
        if _repeats(block):
            for k in range(count):
                phase = get_int(steps, 2 * k)
                if phase == at.SUMMING or phase == at.SETTLING:
                    _together(function, block, phase, get_int(steps, 2 * k + 1))


@njit(nogil=True)
def _repeats(block):
    return get_int(block, at.PHASE) == at.SETTLING and get_int(block, at.AGAIN) != 0


@njit(nogil=True)
def _alone(function, block, phase):
    put_int(block, at.PHASE, phase)
    call(function, 0, 1, block)


@njit(cache=CACHE, nogil=True, parallel=True)
@versioned
def _together(function, block, phase, parts):
    put_int(block, at.PHASE, phase)
    if parts == 1:
        call(function, 0, 1, block)
    else:
        for part in prange(parts):
            call(function, part, parts, block)


@functools.cache
def leaf(name: str, dtype: str, activation: str, residual: bool, mask: bool, stream: bool) -> int:
    """The address of what is done to the elements, compiled for a `Spec`."""
    spec = Spec(dtype, activation, residual, mask, stream, SOURCE)
    return _compiled(_apart(LEAVES[name], spec.name), types.void(*[types.int64] * 7, spec))


@functools.cache
def walk(kind: str) -> int:
    """The address of what visits the elements: of kind "first" or "last"."""
    version = Spec("float32", "identity", False, False, False, SOURCE)  # walks are the same for all of them
    return _compiled(WALKS[kind], types.void(*[types.int64] * 3, version))


@functools.cache
def whole(operation: str, dtype: str, activation: str, residual: bool) -> int:
    """The address of what does all of an operation on few rows; called as a walk is."""
    spec = Spec(dtype, activation, residual, False, False, SOURCE)
    return _compiled(_apart(WHOLE[operation], spec.name), types.void(*[types.int64] * 3, spec))


def _apart(function: Any, variant: str) -> Any:
    """The function under a name of its own, and so with an index of its own in the cache on disk.

    Two processes that each add a variant to one index number their files alike, and one then runs the other's code.
    """
    copied = types_of_python.FunctionType(function.__code__, function.__globals__, function.__name__)
    copied.__qualname__ = f"{function.__qualname__}_{zlib.crc32(variant.encode()):08x}"
    return copied


def _compiled(function: Any, signature: Any) -> int:
    built = cfunc(signature, cache=CACHE, error_model="numpy")(function)
    KEPT.append(built)
    return int(built.address)


KEPT: list[Any] = []
"""Compiled kernels: their code lives as long as they do."""
_most = int(numba.config.NUMBA_NUM_THREADS)
_threads = _most
_used = False


def threads() -> int:
    """Threads that a large call is divided among."""
    return _threads


def set_threads(count: int) -> int:
    """Use so many threads from now on, at most as many as Numba was started with; returns the number before."""
    global _threads
    before, _threads = _threads, max(1, min(count, _most))
    return before


def layer() -> str:
    """Numba's threading layer."""
    return LAYER


def start() -> None:
    """Start Numba's threads, before code that runs on them is loaded from the cache on disk.

    Numba does so itself where it compiles a parallel loop and where it loads one; not for a caller compiled in a
    process that had loaded the loop: its code would jump to the address 0.
    """
    global _used
    if not _used:
        _used = True
        numba.get_num_threads()


def together() -> AbstractContextManager[Any]:
    """To be held while a parallel loop runs: the portable layer takes one Python thread at a time."""
    start()
    return _one_at_a_time


def run(function: int, phases: tuple[tuple[int, int], ...], block: np.ndarray) -> None:
    """Run the phases of a kernel, each on so many threads; returns when the last is done."""
    run_at(function, phases, address_of(block))


def run_at(function: int, phases: tuple[tuple[int, int], ...], block: int) -> None:
    """As `run`, with the address of the block."""
    address, count, alone, _ = steps(phases)
    if alone or _threads == 1:  # after a fork, OpenMP must not be asked
        serial(function, block, address, count)
        return
    with together():
        parallel(function, block, address, count)


@functools.cache
def steps(phases: tuple[tuple[int, int], ...]) -> tuple[int, int, bool, np.ndarray]:
    """Address and number of the phases, for one compiled call that runs them all, and whether on one thread."""
    table = np.array(phases, np.int64)
    return table.ctypes.data, len(phases), all(parts == 1 for _, parts in phases), table


def _after_fork() -> None:
    global _most, _one_at_a_time
    if not isinstance(_one_at_a_time, contextlib.nullcontext):
        _one_at_a_time = threading.Lock()  # another thread may have held it
    if _used:
        _most = 1
        set_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
