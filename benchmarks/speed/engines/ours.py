"""batchnorm's compiled kernels through their door, on NumPy arrays; outputs given, or from the pool."""

from __future__ import annotations

import numpy as np

from speed.data import EPSILON

from . import Prepared, need

ACTIVATION = {"plain": "identity", "relu": "relu", "add+relu": "relu"}


def versions() -> dict[str, str]:
    """Ours, and Numba's."""
    import numba

    import batchnorm
    from batchnorm.kernels import launch

    return {"batchnorm": batchnorm.__version__, "numba": numba.__version__, "threading layer": launch.LAYER}


def prepare(case, data):
    """`forward`, `inference` or `backward` of `batchnorm.kernels.cpu`."""
    try:
        from batchnorm.kernels import cpu
        from batchnorm.kernels.pool import allocate
    except ImportError:
        need(False, "no compiled kernels in this checkout")
    view = cpu.view_of
    x, grad, residual, gamma, beta = data[:5]
    channels = case.channels
    mean, variance = (data[5], data[6]) if case.operation == "inference" else (np.zeros(channels), np.ones(channels))
    mean, variance = mean.astype(np.float64), variance.astype(np.float64)
    given = {"axis": case.axis, "epsilon": EPSILON, "gamma": view(gamma), "beta": view(beta)}
    given["activation"] = ACTIVATION[case.fused]
    adds = case.fused == "add+relu"
    if adds:
        given["residual"] = view(residual)
    out = np.empty_like(x)
    keep = [out]

    def output():
        if case.buffers == "out":
            return out
        keep[0] = None
        keep[0] = allocate(x.shape, x.dtype)
        return keep[0]

    views = view(x), view(mean), view(variance)
    if case.operation != "backward":
        run = {"forward": cpu.forward, "inference": cpu.inference}[case.operation]
        held = (mean, variance, gamma, beta, residual)
        return Prepared(lambda: (run(views[0], view(output()), *views[1:], **given), held), lambda: keep[0])
    need(hasattr(cpu, "backward"), "no backward kernel yet")
    cpu.forward(views[0], view(out), *views[1:], **given)
    extra = np.empty_like(x)
    dgamma, dbeta = np.empty(channels), np.empty(channels)
    if adds:
        given["residual_out"] = view(extra)
    held = (mean, variance, gamma, beta, residual, extra, dgamma, dbeta)
    sums = view(dgamma), view(dbeta)
    return Prepared(
        lambda: (cpu.backward(view(grad), views[0], view(output()), *views[1:], *sums, **given), held), lambda: keep[0]
    )
