"""Batch normalization in inference, once in every engine, each with the engine's own operation.

One module a framework, one function an engine: it takes a `NormCall` and returns the output in the type of ``x``. None
is imported before it is asked for; those of a framework run in a process of their own (`batchnorm.engines.workers`).
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

__all__ = ["BACKENDS", "ENGINES", "Engine", "NormCall", "backend_of_ops", "installed"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class NormCall:
    """One batch normalization to compute.

    ``x``, float32 or float64 and of rank 2 or more, has its channels on ``axis``, a single one; the other arrays have
    its type and the shape ``(channels,)``; gamma or beta is None where absent.
    """

    x: Array
    gamma: Array | None
    beta: Array | None
    mean: Array
    variance: Array
    epsilon: float
    axis: int


@dataclass(frozen=True, slots=True)
class Engine:
    """How an engine is reached.

    Attributes
    ----------
    name : str
        As the command line spells it.
    process : str or None
        The process that computes it, one a framework; None is the process of the caller.
    packages : tuple of str
        The modules that must be importable; the version reported is that of the first.
    extra : str
        The extra of this package that brings them; empty where nothing is needed.
    place : str
        ``module:function``, the module one of this folder.
    """

    name: str
    process: str | None
    packages: tuple[str, ...]
    extra: str
    place: str


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("reference", None, ("numpy",), "", "numpy:reference"),
        Engine("numpy", None, ("numpy",), "", "numpy:normalize"),
        Engine("keras-tensorflow", "tensorflow", ("keras", "tensorflow"), "tensorflow", "keras:layer"),
        Engine("keras-jax", "jax", ("keras", "jax"), "jax", "keras:layer"),
        Engine("keras-torch", "torch", ("keras", "torch"), "torch", "keras:layer"),
        Engine("keras-ops", "tensorflow", ("keras",), "keras", "keras:operation"),
        Engine("tf.nn", "tensorflow", ("tensorflow",), "tensorflow", "tensorflow:normalize"),
        Engine("torch", "torch", ("torch",), "torch", "torch:normalize"),
        Engine("jax", "jax", ("jax",), "jax", "jax:normalize"),
        Engine("flax", "jax", ("flax", "jax"), "jax", "flax:normalize"),
        Engine("onnxruntime", "onnxruntime", ("onnxruntime", "onnx"), "onnx", "onnxruntime:normalize"),
    )
}
BACKENDS = ("tensorflow", "jax", "torch")


def installed(engine: Engine) -> str | None:
    """None where everything is there; otherwise the first package that is missing. Nothing is imported."""
    missing = [name for name in engine.packages if importlib.util.find_spec(name) is None]
    if engine.name == "keras-ops" and not missing and backend_of_ops() is None:
        missing = ["tensorflow"]
    return missing[0] if missing else None


def backend_of_ops() -> str | None:
    """The backend whose ``keras.ops`` is asked: KERAS_BACKEND, else the first one installed."""
    wanted = os.environ.get("KERAS_BACKEND")
    candidates = (wanted, *BACKENDS) if wanted in BACKENDS else BACKENDS
    return next((name for name in candidates if importlib.util.find_spec(name) is not None), None)
