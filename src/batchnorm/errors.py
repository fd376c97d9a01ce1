"""The exceptions a caller may want to tell apart.

::

    BatchnormError
    ├── ArgumentError   (also ValueError)    an argument or option that cannot be used as given
    ├── ModelFileError  (also ValueError)    a file or folder that cannot be read as a model
    ├── NoBatchNorm     (also LookupError)   a readable model without a batch normalization
    ├── UnknownLayer    (also LookupError)   a layer or channel the model does not have
    ├── Refused         (also RuntimeError)  an operation that would give a wrong result
    └── MissingExtra    (also ImportError)   an optional dependency that is not installed

The command turns each of them into one line on stderr and exit status 2. Anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import importlib
import random
import sys
from types import ModuleType

import numpy as np

__all__ = [
    "ArgumentError",
    "BatchnormError",
    "MissingExtra",
    "ModelFileError",
    "NoBatchNorm",
    "Refused",
    "UnknownLayer",
    "require",
]


class BatchnormError(Exception):
    """Base of every exception this package raises on purpose."""


class ArgumentError(BatchnormError, ValueError):
    """An argument or option has a value that cannot be used; the message names it, the value and the way out."""


class ModelFileError(BatchnormError, ValueError):
    """A file or folder cannot be read as a model: missing, damaged, encrypted, or of no known format."""


class NoBatchNorm(BatchnormError, LookupError):
    """The model was read and holds no batch normalization."""


class UnknownLayer(BatchnormError, LookupError):
    """No layer, or no channel, of that name or number; the message lists the nearest ones."""


class Refused(BatchnormError, RuntimeError):
    """What was asked for would give a wrong result on this model; the message says why."""


class MissingExtra(BatchnormError, ImportError):
    """An optional dependency is needed and not installed; the message is the line that installs it."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say what installs it.

    The random state of Python and NumPy stays as it was: TensorFlow's import draws from both.

    Parameters
    ----------
    module : str
        The module to import, ``"onnx"``.
    extra : str
        The extra of this package that brings it, ``"onnx"``.
    purpose : str
        What it is needed for, as the start of a sentence: ``"Reading .onnx files"``.

    Raises
    ------
    MissingExtra
        The module is not installed. An installed module that fails inside its own import keeps its own error.
    """
    if sys.modules.get(module) is not None:
        return importlib.import_module(module)  # no import draws numbers here; waits for one under way elsewhere
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is what could change
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        top = module.partition(".")[0]
        raise MissingExtra(
            f"{purpose} needs {top}, which is not installed. Install it with: pip install 'batchnorm[{extra}]'"
        ) from None
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
