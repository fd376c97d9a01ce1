"""What Keras does not give alike on every backend: a custom gradient of several outputs, and collectives.

Each module has the same names. ``train(how, x, gamma, beta, fixed) -> Outputs`` is `apply.forward` with the
gradient of `apply.backward`. ``collectives() -> (gather, total)`` are those of `apply.How`, or two times None where
there is a single replica. ``updated(update, rule, state, batch)`` calls an update of `core.training`.
``infer(x, mean, variance, gamma, beta, axes, epsilon, narrow)``, where there is one, normalises with given statistics,
or gives None where `equations.normalized` is to do it.
``COUNTED_IN_STATE`` says whether a count that changes inside a compiled step must be among the layer's variables. Only
the module of the backend that Keras runs on, `running`, is ever imported.
"""

from __future__ import annotations

import importlib
from typing import Any

import keras

__all__ = ["BACKEND", "infer", "running"]

BACKEND: str = keras.backend.backend()
_NAME = BACKEND if BACKEND in ("tensorflow", "jax", "torch") else "others"
# Once, here: an import inside a call is what torch.compile cannot trace.
running: Any = importlib.import_module(f"{__name__}.{_NAME}")
infer: Any = getattr(running, "infer", None)
