"""A live ``flax.nnx.Module`` as a ModelFile; Flax is found in the process, never imported, and nothing is changed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord
from batchnorm.engines.flax import run_module
from batchnorm.engines.nnx_bench import NnxBench, commit

from .keras_records import numbered
from .modelfile import ModelFile, Pairs

__all__ = ["from_live", "is_live"]

STACKED_NOTE = "{!r} holds the statistics of several layers in one array, and is left out"


def is_live(value: Any) -> bool:
    """Whether an object is an NNX module."""
    module: Any = getattr(sys.modules.get("flax.nnx"), "Module", None)
    return module is not None and isinstance(value, module)


def from_live(model: Any) -> ModelFile:
    """Read a live NNX module, or a single layer.

    Returns
    -------
    ModelFile
        With copies of its arrays, under the paths of its attributes joined by ``/``. Flax keeps no number of updates.
    """
    nnx: Any = sys.modules["flax.nnx"]
    records: list[LayerRecord] = []
    paths: list[tuple[Any, ...]] = []
    modules: list[Any] = []
    others: list[str] = []
    notes: list[str] = []
    for path, module in sorted(nnx.iter_modules(model), key=lambda each: tuple(map(_natural, each[0]))):
        name = "/".join(map(str, path))
        if not isinstance(module, nnx.BatchNorm):
            others += [name] if name else []
        elif (axis := _axis(module)) is None:
            notes.append(STACKED_NOTE.format(name))
        else:
            records.append(_record(name or type(module).__name__, module, axis))
            paths.append(path)
            modules.append(module)
    layers = numbered(records)
    known = {record.name: path for record, path in zip(layers, paths, strict=True)}
    named = {record.name: module for record, module in zip(layers, modules, strict=True)}
    return ModelFile(
        path=type(model).__name__,
        format="flax",
        layers=layers,
        other_layers=tuple(others),
        notes=tuple(notes),
        runner=partial(run_module, model, layers=known),
        bench=partial(NnxBench, model, layers, named),
        commit=partial(_commit, named),
    )


def _commit(layers: Mapping[str, Any], statistics: Pairs, method: str | None = None) -> None:
    """Without a mark: Flax counts no updates, and an attribute more would make another graph of the module."""
    commit(layers, statistics)


def _natural(key: Any) -> tuple[int, int, str]:
    return (0, key, "") if isinstance(key, int) else (1, 0, str(key))


def _axis(module: Any) -> int | tuple[int, ...] | None:
    """The kept axis or axes; None where nnx.vmap has stacked several layers."""
    axis: Any = module.axis
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if len(np.shape(_array(module.mean))) != len(axes):
        return None
    return axes[0] if len(axes) == 1 else axes


def _record(name: str, module: Any, axis: int | tuple[int, ...]) -> LayerRecord:
    statistics: str = getattr(module, "statistics", "moving")
    if hasattr(module, "inference_statistics"):  # this package's: the debiased values, where those are asked for
        mean, variance = (np.array(each) for each in module.inference_statistics())
    else:
        mean, variance = _array(module.mean), _array(module.var)
    return LayerRecord(
        name=name,
        kind=type(module).__name__,
        channels=int(mean.size),
        channel_shape=mean.shape,
        axis=axis,
        dtype=mean.dtype.name,
        epsilon=float(module.epsilon),
        epsilon_source="file",
        averaging="cumulative" if statistics == "cumulative" else "exponential",
        decay=float(module.momentum) if statistics == "moving" else None,
        momentum=float(module.momentum),
        ddof=int(getattr(module, "ddof", 0)),
        mode="frozen" if getattr(module, "frozen", False) is True else "by-call",
        gamma=None if module.scale is None else _array(module.scale),
        beta=None if module.bias is None else _array(module.bias),
        moving_mean=mean,
        moving_variance=variance,
    )


def _array(variable: Any) -> NDArray[Any]:
    return np.array(variable[...])
