"""What Keras does not give alike on every backend: a custom gradient of several outputs, and collectives.

Each module has the same names. ``train(how, x, gamma, beta, fixed) -> Outputs`` is `apply.forward` with the
gradient of `apply.backward`. ``collectives() -> (gather, total)`` are those of `apply.How`, or two times None where
there is a single replica. ``compiled(step)`` is a training step as one dispatch, ``once(batch)`` what of a batch is
counted where a checkpoint computes the layer again. ``infer(x, mean, variance, gamma, beta, axes, epsilon, narrow)``,
where there is one, normalises with given statistics, or gives None where `equations.normalized` is to do it.
``XP`` is the namespace of the arithmetic, ``CHOOSE`` the condition of `equations.moments`. ``value`` and ``constant``,
where they are there, read a variable otherwise than `keras.ops` does.
``few()``, where there is one, says whether what is being traced will be run operation by operation, so that fewer are
faster also where they read small arrays more often. ``COUNTED_IN_STATE`` says whether a count that changes inside a
compiled step must be among the layer's variables. Only the module of the backend that Keras runs on, `running`, is ever
imported.
"""

from __future__ import annotations

import importlib
from typing import Any

import keras
from keras import ops

__all__ = ["BACKEND", "constant", "few", "infer", "running", "value"]

BACKEND: str = keras.backend.backend()
_NAME = BACKEND if BACKEND in ("tensorflow", "jax", "torch") else "others"
# Once, here: an import inside a call is what torch.compile cannot trace.
running: Any = importlib.import_module(f"{__name__}.{_NAME}")
infer: Any = getattr(running, "infer", None)
few: Any = getattr(running, "few", bool)


def _value(variable: Any) -> Any:
    """The array of a variable: one read."""
    return ops.convert_to_tensor(variable)


def _constant(variable: Any) -> Any:
    """The array of a variable, without a gradient."""
    return ops.stop_gradient(ops.convert_to_tensor(variable))


value: Any = getattr(running, "value", _value)
constant: Any = getattr(running, "constant", _constant)
