"""A live ``torch.nn.Module`` as a ModelFile; PyTorch is found in the process, never imported; nothing is changed."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from batchnorm.core.calibration import Bench
from batchnorm.core.graph import LazyGraph
from batchnorm.core.record import Averaging, LayerRecord, Mode
from batchnorm.engines.torch import run_module
from batchnorm.engines.torch_bench import ModuleBench, commit, frozen_by_hand, save
from batchnorm.engines.torch_files import dtype_of, is_plain, load_into
from batchnorm.engines.torch_state import array_of
from batchnorm.errors import ArgumentError

from .keras_records import numbered
from .marker import committed, digest, mark_live, marked_live
from .modelfile import ModelFile
from .registry import named_arrays, open_model
from .safetensors import mark as mark_safetensors
from .state_dict import MOST_UPDATES
from .torch_file import mark as mark_checkpoint
from .torch_graph import graph_of

__all__ = ["from_live", "is_live", "load_weights"]

PREFIX_NAMES = 64
BY_HAND = "frozen: in eval() inside a model in train()"


def is_live(value: Any) -> bool:
    """Whether an object is a PyTorch module."""
    module: Any = getattr(getattr(sys.modules.get("torch"), "nn", None), "Module", None)
    return module is not None and isinstance(value, module)


def from_live(model: Any) -> ModelFile:
    """Read a live module, or a single layer.

    Parameters
    ----------
    model : torch.nn.Module
        Of any mode, on any device; its statistics, flags and hooks stay as they are.

    Returns
    -------
    ModelFile
        With copies of its arrays. Names are the module paths, as in its state dict. Found are PyTorch's own batch
        normalizations and what is derived from them (SyncBatchNorm, this package's), and layers of the same names
        elsewhere: a FrozenBatchNorm has running statistics, an ``eps``, and no updates.

    Raises
    ------
    ArgumentError
        A layer has no weights yet.
    """
    norms = list(_norms(model))
    held = {id(module) for _, module in norms}
    others = tuple(name for name, module in model.named_modules() if name and id(module) not in held)
    layers = numbered(_record(name or type(module).__name__, module) for name, module in norms)
    known = {record.name: module for record, (_, module) in zip(layers, norms, strict=True)}
    names = {id(module): name for name, module in known.items()}
    return ModelFile(
        path=type(model).__name__,
        format="torch",
        layers=layers,
        other_layers=others,
        runner=partial(run_module, model, layers=known),
        lazy_graph=LazyGraph(partial(graph_of, model, names)),
        bench=partial(_bench, model, layers, known),
        commit=partial(committed, commit, _record, known),
        writer=partial(save, model, known),
        marker=_mark,
        untouched=dict.fromkeys(frozen_by_hand(model, known), BY_HAND),
    )


def _bench(model: Any, records: Sequence[LayerRecord], modules: Mapping[str, Any]) -> Bench:
    held = [record for record in records if record.moving_mean is not None and record.moving_variance is not None]
    return ModuleBench(model, held, modules)


def _mark(place: pathlib.Path, text: str) -> None:
    (mark_safetensors if place.suffix == ".safetensors" else mark_checkpoint)(place, text)


def load_weights(model: Any, path: str) -> None:
    """Load a checkpoint or ``.safetensors`` file into a live module, whatever prefix its names have.

    Raises
    ------
    ModelFileError
        The file cannot be read.
    ArgumentError
        It does not hold what the module needs.
    """
    wanted = {str(name) for name in model.state_dict()}
    best: dict[str, Any] = {}
    for tensors in named_arrays(path):
        for prefix in _prefixes(tensors, wanted):
            found = {name: tensors[prefix + name] for name in wanted if prefix + name in tensors}
            best = found if len(found) > len(best) else best
    if wanted and not best:
        raise ArgumentError(f"--weights: {path} holds no array of the module's names, such as {min(wanted)!r}")
    load_into(model, {name: tensor.read() for name, tensor in best.items()})
    marks = {digest(record): record.recalibrated for record in open_model(path).layers if record.recalibrated}
    for name, module in _norms(model) if marks else ():
        record = _record(name, module)
        method = None if record.moving_mean is None else marks.get(digest(record))
        if method is not None:
            mark_live(record, module, method)


def _prefixes(names: Any, wanted: set[str]) -> dict[str, None]:
    """What may stand before the module's names in a file: nothing, ``module.``, ``ema.`` and so on."""
    some = sorted(wanted, key=len, reverse=True)[:PREFIX_NAMES]
    return dict.fromkeys(["", *(name[: -len(end)] for name in names for end in some if name.endswith(f".{end}"))])


def _norms(model: Any) -> Iterator[tuple[str, Any]]:
    """Every batch normalization once, however often it is used."""
    torch: Any = sys.modules["torch"]
    base: Any = torch.nn.modules.batchnorm._NormBase
    for name, module in model.named_modules():
        if isinstance(module, base):
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                yield name, module
            continue  # an InstanceNorm
        buffers = {key for key, _ in module.named_buffers(recurse=False)}
        if {"running_mean", "running_var"} <= buffers and isinstance(getattr(module, "eps", None), float):
            yield name, module


def _record(name: str, module: Any) -> LayerRecord:
    arrays = {
        "gamma": module.weight,
        "beta": module.bias,
        "moving_mean": module.running_mean,
        "moving_variance": module.running_var,
    }
    for role, each in arrays.items():
        if each is not None and not is_plain(each):
            raise ArgumentError(f"layer {name!r} has no {role} in memory yet. Call it, or its model, once on data")
    given = [each for each in (module.running_var, module.weight) if each is not None]
    momentum: float | None = getattr(module, "momentum", None)
    averaging, decay = _averaging(module, momentum)
    values: dict[str, Any] = {role: None if each is None else array_of(each) for role, each in arrays.items()}
    record = LayerRecord(
        name=name,
        kind=type(module).__name__,
        channels=int(given[0].shape[0]) if given else int(module.num_features),
        axis=1,
        dtype=dtype_of(given[0]) if given else "float32",
        epsilon=float(module.eps),
        epsilon_source="file",
        averaging=averaging,
        decay=decay,
        momentum=momentum,
        ddof=None if module.running_mean is None else 1,
        mode=_mode(module),
        **values,
    )
    return marked_live(_counted(record, getattr(module, "num_batches_tracked", None)), module)


def _averaging(module: Any, momentum: float | None) -> tuple[Averaging, float | None]:
    if not hasattr(module, "momentum"):
        return "unknown", None
    if momentum is None:
        return "cumulative", None
    # This package's debiased statistics hold nothing of the initial value: no decay tells how much is left.
    is_debiased = getattr(module, "statistics", "moving") == "debiased"
    return "exponential", None if is_debiased else round(1 - momentum, 12)


def _mode(module: Any) -> Mode:
    if module.running_mean is None or module.running_var is None:
        return "batch-statistics"
    never_updates = not hasattr(module, "momentum") and "frozen" in type(module).__name__.lower()
    return "frozen" if never_updates or getattr(module, "frozen", False) is True else "by-call"


def _counted(record: LayerRecord, counter: Any) -> LayerRecord:
    if counter is None or record.moving_mean is None or not is_plain(counter):
        return record
    count = int(counter)
    if not 0 <= count < MOST_UPDATES:
        return record.replace(updates_doubt=f"num_batches_tracked is {count}, which no training makes")
    return record.with_updates(count, "num_batches_tracked")
