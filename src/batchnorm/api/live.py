"""Live objects as models; a framework is found through ``sys.modules``, never imported to find out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from batchnorm.core.protocols import Capture, Model
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, Refused

from .layer_bench import LayerBench, as_one_array, commit

__all__ = ["from_live", "load_weights"]

# Framework, as it is known in sys.modules -> the module of batchnorm.models that reads its live objects.
READERS = {"onnx": "onnx_live", "torch": "torch_live", "flax.nnx": "nnx_live"}


def from_live(value: Any) -> Model | None:
    """The object as a model; None where it is of no known kind. Nothing of it is changed.

    Raises
    ------
    ArgumentError
        A layer that has no weights yet.
    """
    if "batchnorm.layers.numpy" in sys.modules:
        from batchnorm.layers.numpy import BatchNormalization

        if isinstance(value, BatchNormalization):
            return LayerModel(value.name, (_record(value),), value)
    if "keras" in sys.modules:
        from batchnorm.engines.keras import is_live
        from batchnorm.models.keras_live import from_live as from_keras

        if is_live(value):
            return from_keras(value)
    for framework, reader in READERS.items():
        if framework in sys.modules:
            module: Any = import_module(f"batchnorm.models.{reader}")
            if module.is_live(value):
                return module.from_live(value)
    return None


def load_weights(value: Any, path: str) -> None:
    """Load a file of weights into a live Keras model or PyTorch module.

    Raises
    ------
    ArgumentError
        An object of another kind; or the file does not hold what it needs.
    ModelFileError
        The file cannot be read.
    """
    if "torch" in sys.modules:
        from batchnorm.models import torch_live

        if torch_live.is_live(value):
            torch_live.load_weights(value, path)
            return
    raise ArgumentError(
        f"--weights: cannot load a file into an object of type {type(value).__name__}; it takes a torch.nn.Module. "
        "Load the weights in your own function, and name that as package.module:name."
    )


@dataclass(frozen=True, slots=True, eq=False)
class LayerModel:
    """One layer on NumPy arrays as a model."""

    path: str
    layers: tuple[LayerRecord, ...]
    layer: Any
    format: str = "numpy"
    other_layers: tuple[str, ...] = ()
    untouched: Mapping[str, str] = field(default_factory=dict[str, str])
    graph: None = None

    def bench(self) -> LayerBench:
        """What measures the layer."""
        return LayerBench(self.layer, self.layers[0])

    def commit(self, statistics: Mapping[str, tuple[Any, Any]], method: str | None = None) -> None:
        """Write new statistics into the layer."""
        commit(self.layer, statistics, method)

    def with_statistics(self, statistics: Mapping[str, tuple[Any, Any]], method: str | None = None) -> LayerModel:
        """Refused, as the layer has no file format."""
        raise Refused(
            f"{self.path}: a layer on NumPy arrays has no file format to write. Leave out -o (out=), and it is changed "
            "in place; its get_weights() can be saved."
        )

    def run(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Capture]:
        """Output in inference mode; the layer's own input and output if it is named."""
        given = as_one_array(x)
        y = self.layer.predict(given)  # a call would replace what the layer's own backward needs
        return y, {name: [(given, y)] for name in capture if name == self.path}


def _record(layer: Any) -> LayerRecord:
    mean, variance = layer.inference_statistics()
    averaged = layer.statistics == "moving"
    record = LayerRecord(
        name=layer.name,
        kind=type(layer).__name__,
        channels=int(np.size(mean)),
        channel_shape=np.shape(mean),
        axis=layer.axis,
        dtype=np.asarray(mean).dtype.name,
        epsilon=layer.epsilon,
        epsilon_source="file",
        averaging="cumulative" if layer.statistics == "cumulative" else "exponential",
        decay=layer.momentum if averaged else None,
        momentum=layer.momentum,
        ddof=layer.ddof,
        mode="by-call" if layer.trainable else "frozen",
        gamma=layer.gamma,
        beta=layer.beta,
        moving_mean=np.asarray(mean),
        moving_variance=np.asarray(variance),
        renorm=layer.renorm,
    )
    # Debiased and cumulative statistics hold nothing of the initial value, so the number of updates explains nothing.
    return record.with_updates(layer.updates, "num_batches_tracked") if averaged else record
