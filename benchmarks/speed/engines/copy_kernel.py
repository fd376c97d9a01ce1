"""A copy written as batchnorm's kernels are, so that the roof has their threads and their instructions."""

from __future__ import annotations

import numpy as np

from batchnorm.kernels import launch
from batchnorm.kernels.intrinsics import get_int, lanes, load, store, store_past, streams
from batchnorm.kernels.pool import BIG, allocate

from . import Prepared

SERIAL = 128 * 1024


def _copy(part, parts, block, spec):
    x, y, total = get_int(block, 0), get_int(block, 1), get_int(block, 2)
    step = 4 * lanes(spec)
    begin, end = total // step * part // parts * step, total // step * (part + 1) // parts * step
    for i in range(begin, end, step):
        for k in range(4):
            if streams(spec):
                store_past(spec, y, i + k * lanes(spec), load(spec, x, i + k * lanes(spec)))
            else:
                store(spec, y, i + k * lanes(spec), load(spec, x, i + k * lanes(spec)))


launch.KERNELS["copy"] = _copy


def prepare(x: np.ndarray, past: bool) -> Prepared:
    """Copy the bytes of ``x``, all but the last few."""
    words = x.reshape(-1).view(np.uint8)[: x.nbytes // 4 * 4].view(np.float32)
    # The output begins at a page: a copy past the caches needs whole lines.
    y = allocate((max(2 * BIG, words.nbytes),), np.dtype(np.uint8))[: words.nbytes].view(np.float32)
    y[...] = 0
    block = np.array([words.ctypes.data, y.ctypes.data, words.size] + [0] * 5, np.int64)
    function = launch.compiled("copy", "float32", "identity", False, False, past)
    parts, where, keep = 1 if x.nbytes < SERIAL else launch.threads(), block.ctypes.data, (words, y, block)
    return Prepared(lambda: launch.run(function, parts, where) or keep, None)
