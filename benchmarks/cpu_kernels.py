"""The compiled kernels beside the roof, a streaming copy of the same bytes, in interleaved rounds of one process.

    python benchmarks/cpu_kernels.py [--rounds 30] [--threads 2] [--layout first|last] [--dtype float32] [--torch]

Prints, per shape, the median over the rounds of the time over the roof's in the same round: 1.00 is the roof, which
reads the input once and writes the output once (the better of a plain and a non-temporal copy). ``--torch`` adds
PyTorch's own kernels, into memory that is there already, in the same rounds.

Every call is made twice and the second is timed: what one leaves in the caches would be another's advantage.
"""

from __future__ import annotations

import argparse
import statistics
import time

import ml_dtypes  # noqa: F401 - makes "bfloat16" a name NumPy knows
import numpy as np
from speed.engines import copy_kernel

from batchnorm.kernels import cpu
from batchnorm.kernels.pool import BIG, allocate

SHAPES = [
    (32, 64, 112, 112),
    (32, 256, 56, 56),
    (32, 1024, 14, 14),
    (8, 64, 56, 56),
    (1, 64, 56, 56),
]


def aligned(shape, dtype):
    """As the pool's arrays, at any size: the copy past the caches needs whole lines."""
    big = allocate((max(2 * BIG, int(np.prod(shape)) * dtype.itemsize),), np.dtype(np.uint8))
    return big[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)


def timed(call):
    """Seconds of the second of two calls."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def calls(shape, layout, dtype="float32"):
    """What is timed, by name."""
    axis = 1 if layout == "first" else len(shape) - 1
    if layout == "last":
        shape = (shape[0], *shape[2:], shape[1])
    rng = np.random.default_rng(0)
    x, y, grad, dx, r = (aligned(shape, np.dtype(dtype)) for _ in range(5))
    for one in (x, grad, r):
        one.reshape(-1)[:] = np.resize(rng.standard_normal(1 << 18).astype(dtype), one.size)
    for one in (y, dx):
        one[...] = 0
    channels = shape[axis]
    wide = "float64" if dtype == "float64" else "float32"
    gamma, beta = (rng.standard_normal(channels).astype(wide) for _ in range(2))
    mean, variance = np.empty(channels), np.empty(channels)
    copies = [copy_kernel.prepare(x, past).call for past in (False, True)]
    views = [cpu.view_of(one) for one in (x, y, mean, variance)]
    given = {"axis": axis, "epsilon": 1e-3, "gamma": cpu.view_of(gamma), "beta": cpu.view_of(beta)}
    sums = np.empty((2, channels))
    back = [cpu.view_of(one) for one in (grad, x, dx, mean, variance, *sums)]
    keep = (x, y, grad, dx, r, gamma, beta, mean, variance)
    return keep, {
        "copy": copies[0],
        "forward": lambda: cpu.forward(*views, **given),
        "forward relu": lambda: cpu.forward(*views, **given, activation="relu"),
        "forward add relu": lambda: cpu.forward(*views, **given, residual=cpu.view_of(r), activation="relu"),
        "inference": lambda: cpu.inference(*views, **given),
        "backward": lambda: cpu.backward(*back, **given),
        "backward relu": lambda: cpu.backward(*back, **given, activation="relu"),
        "copy past caches": copies[1],
    }


def torch_calls(keep, layout):
    """PyTorch's kernels on the same memory."""
    import torch

    torch.set_num_threads(cpu.threads())

    def tensor(array):
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    x, y, grad, dx, _, gamma, beta = (tensor(one) for one in keep[:7])
    if layout == "last":
        x, y, grad, dx = (one.movedim(-1, 1) for one in (x, y, grad, dx))
    channels = x.shape[1]
    mean, inverse, moving_mean, moving_variance = torch.zeros(4, channels).unbind()
    moving_variance += 1
    dgamma, dbeta = torch.empty(2, channels).unbind()
    forward = torch.ops.aten.native_batch_norm.out
    backward = torch.ops.aten.native_batch_norm_backward.out
    places = {"out0": dx, "out1": dgamma, "out2": dbeta}
    saved = {"out": y, "save_mean": mean, "save_invstd": inverse}
    return {
        "torch forward": lambda: forward(x, gamma, beta, moving_mean, moving_variance, True, 0.1, 1e-3, **saved),
        "torch inference": lambda: forward(x, gamma, beta, moving_mean, moving_variance, False, 0.1, 1e-3, **saved),
        "torch eager": lambda: torch.nn.functional.batch_norm(x, moving_mean, moving_variance, gamma, beta, True),
        "torch backward": lambda: backward(
            grad, x, gamma, moving_mean, moving_variance, mean, inverse, True, 1e-3, [True] * 3, **places
        ),
    }


def main():
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=cpu.threads())
    parser.add_argument("--layout", choices=("first", "last"), default="first")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--shapes", type=int, nargs="*", default=range(len(SHAPES)))
    arguments = parser.parse_args()
    cpu.set_threads(arguments.threads)
    for shape in [SHAPES[i] for i in arguments.shapes]:
        keep, named = calls(shape, arguments.layout, arguments.dtype)
        if arguments.torch:
            named |= torch_calls(keep, arguments.layout)
        times = {name: [] for name in named}
        for number in range(arguments.rounds + 2):
            for name, call in named.items():
                taken = timed(call)
                if number >= 2:
                    times[name].append(taken)
        roof = [min(pair) for pair in zip(times["copy"], times["copy past caches"], strict=True)]
        print(shape, f"roof {min(roof) * 1e3:.3f} ms at best, {statistics.median(roof) * 1e3:.3f} median")
        for name, taken in times.items():
            ratio = statistics.median(t / r for t, r in zip(taken, roof, strict=True))
            best = min(taken) / min(roof)
            print(f"  {name:18} {ratio:6.2f} (median) {best:6.2f} (best over best) {min(taken) * 1e3:9.3f} ms at best")
        del keep


if __name__ == "__main__":
    main()
