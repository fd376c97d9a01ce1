"""Batch normalizations among named arrays: what a state dict tells, whichever file it lies in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord

from .hints import epsilon_hint
from .keras_records import numbered
from .modelfile import quoted

__all__ = ["COUNTER", "MOST_UPDATES", "Found", "Tensor", "natural", "norms_among", "statistics_names"]

FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "uint64", "uint32", "int16", "uint16", "int8", "uint8")
COUNTER = "num_batches_tracked"
MOST_UPDATES = 2**53
MOST_BROKEN = 5
NO_SETTINGS = "The file holds weights and no settings: epsilon and momentum are unknown"
NO_COUNTER = (
    "{} of {} batch normalizations have no num_batches_tracked: a FrozenBatchNorm, another framework's, or saved "
    "before PyTorch 0.4.1; whether they are frozen cannot be told"
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array of a file, not read yet: what its header says, and how to read it."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Convention:
    """How a framework names the arrays of a layer, and what follows from that it was this one.

    The first name of ``gamma`` and ``beta`` that is there is taken.
    """

    mean: str
    variance: str
    gamma: tuple[str, ...]
    beta: tuple[str, ...]
    axis: int
    ddof: int | None
    kind: str
    needs_parameters: bool = False


TORCH = Convention("running_mean", "running_var", ("weight", "gamma"), ("bias", "beta"), 1, 1, "BatchNorm")
MLX = Convention("running_mean", "running_var", ("weight",), ("bias",), -1, 0, "BatchNorm")
CONVENTIONS = (
    TORCH,
    Convention("moving_mean", "moving_variance", ("gamma",), ("beta",), -1, None, "BatchNormalization"),
    # mean and var alone may be the statistics of a data set, or of anything else.
    Convention("mean", "var", ("scale",), ("bias",), -1, 0, "BatchNorm", needs_parameters=True),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What the named arrays hold."""

    layers: tuple[LayerRecord, ...]
    other_layers: tuple[str, ...]
    notes: tuple[str, ...]


def norms_among(tensors: Mapping[str, Tensor], *, mlx: bool = False) -> Found:
    """Every batch normalization among named arrays; only its own arrays are read.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Names as the file writes them, ``"module.layer1.0.bn1.running_mean"``.
    mlx : bool
        Written by MLX, which names arrays as PyTorch does and keeps the last axis.

    Returns
    -------
    Found
        Names are the prefixes as the file writes them, in the order of the names given. What looks like a batch
        normalization and cannot be one (half of the statistics, vectors of different lengths) is told in ``notes``.
    """
    groups = _grouped(tensors)
    records: list[LayerRecord] = []
    others: list[str] = []
    broken: list[str] = []
    uncounted = 0
    for prefix, roles in groups.items():
        convention = next((c for c in CONVENTIONS if c.mean in roles or c.variance in roles), None)
        convention = MLX if mlx and convention is TORCH else convention
        fault = None if convention is None else _fault(convention, roles)
        if convention is None or (fault and convention.needs_parameters):
            others.append(prefix or "the model itself")
        elif fault:
            broken.append(f"{quoted(prefix)} is half a batch normalization and left out: {fault}")
        else:
            records.append(_record(prefix, convention, roles))
            uncounted += convention is TORCH and COUNTER not in roles
    layers = numbered(records)
    notes = [*_limited(broken), *_notes(layers, uncounted, tensors)]
    return Found(layers, tuple(others), tuple(notes))


def natural(name: str) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """A key that sorts ``layer1.2`` before ``layer1.10``, and ``bn`` before ``bn2``."""
    return tuple(
        tuple((0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts)
        for parts in (re.split(r"(\d{1,18})", segment) for segment in re.split(r"[./]", name))
    )


def statistics_names(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Layer -> the names of its moving mean and variance, as the file writes them; see `norms_among`."""
    found: dict[str, tuple[str, str]] = {}
    for prefix, roles in _grouped({name: name for name in names}).items():
        for convention in CONVENTIONS:
            if convention.mean in roles and convention.variance in roles and prefix not in found:
                found[prefix] = (roles[convention.mean], roles[convention.variance])
    return found


def _grouped(tensors: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Prefix -> role -> array. Flax keeps statistics and parameters in two trees of the same paths."""
    groups: dict[str, dict[str, T]] = {}
    for name, tensor in tensors.items():
        plain = re.sub(r"(:0|[./]value)$", "", name)
        cut = max(plain.rfind("."), plain.rfind("/"))
        prefix, role = plain[: max(cut, 0)], plain[cut + 1 :]
        tree = re.match(r"(batch_stats|params)[./]", prefix)
        if tree and (role in ("mean", "var") or tree[1] == "params"):
            prefix = prefix[tree.end() :]
        groups.setdefault(prefix, {})[role] = tensor
    return groups


def _fault(convention: Convention, roles: Mapping[str, Tensor]) -> str | None:
    """Why these arrays are no batch normalization; None where they are."""
    statistics = (convention.mean, convention.variance)
    missing = [role for role in statistics if role not in roles]
    if missing:
        return f"there is a {next(role for role in statistics if role in roles)} and no {missing[0]}"
    named = {role: roles[role] for role in (*statistics, *convention.gamma, *convention.beta) if role in roles}
    if convention.needs_parameters and len(named) == len(statistics):
        return "neither scale nor bias"
    shapes = {tensor.shape for tensor in named.values()}
    shape = named[convention.mean].shape
    if len(shapes) > 1 or len(shape) != 1 or shape[0] < 1 or any(t.dtype not in FLOATS for t in named.values()):
        held = ", ".join(f"{role} {list(t.shape)} {t.dtype}" for role, t in named.items())
        return f"vectors of one length are wanted, and it holds {held}"
    return None


def _record(prefix: str, convention: Convention, roles: Mapping[str, Tensor]) -> LayerRecord:
    def first(names: Iterable[str]) -> NDArray[Any] | None:
        return next((roles[name].read() for name in names if name in roles), None)

    mean = roles[convention.mean]
    counted = COUNTER in roles
    record = LayerRecord(
        name=prefix,
        kind=convention.kind,
        channels=mean.shape[0],
        axis=convention.axis,
        dtype=mean.dtype,
        epsilon=None,
        epsilon_source="unknown",
        averaging="unknown" if convention is TORCH else "exponential",  # momentum=None is PyTorch's only
        ddof=convention.ddof,
        mode="by-call" if counted else None,
        gamma=first(convention.gamma),
        beta=first(convention.beta),
        moving_mean=mean.read(),
        moving_variance=roles[convention.variance].read(),
    )
    return _counted(record, roles[COUNTER]) if counted else record


def _counted(record: LayerRecord, counter: Tensor) -> LayerRecord:
    if counter.shape not in ((), (1,)) or counter.dtype not in INTEGERS:
        return record.replace(updates_doubt=f"num_batches_tracked is {counter.dtype} {list(counter.shape)}, no count")
    count = int(counter.read().reshape(()))
    if not 0 <= count < MOST_UPDATES:
        return record.replace(updates_doubt=f"num_batches_tracked is {count}, which no training makes")
    return record.with_updates(count, "num_batches_tracked")


def _limited(sentences: list[str]) -> list[str]:
    left = len(sentences) - MOST_BROKEN
    return sentences if left <= 0 else [*sentences[:MOST_BROKEN], f"... and {left} more of that kind"]


def _notes(layers: tuple[LayerRecord, ...], uncounted: int, names: Iterable[str]) -> Iterable[str]:
    if not layers:
        return
    yield NO_SETTINGS
    hint = epsilon_hint(names)
    if hint is not None:
        yield hint
    if uncounted:
        yield NO_COUNTER.format(uncounted, len(layers))
    types = Counter(record.dtype for record in layers)
    if len(types) > 1:
        yield "The statistics are stored in " + " and ".join(f"{dtype} ({n} layers)" for dtype, n in types.items())
