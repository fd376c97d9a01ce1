"""Folding: plan, edit, prove, and only then write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from batchnorm.analysis.fold_plan import Plan, Refusal, planned
from batchnorm.analysis.folding import bound, tolerance
from batchnorm.core.dtypes import unit_roundoff
from batchnorm.core.graph import Graph, Operation
from batchnorm.core.protocols import Model
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, NoBatchNorm
from batchnorm.models.change import Change

from .epsilons import Epsilon
from .fold_targets import Target, TorchTarget, place_for, target_of
from .folded import Folding
from .loading import check_epsilon, chosen, hashed, notes_of
from .proving import Copy, CopyFailedError, Nudged, Proof, batches, first_that_runs, like, proved

__all__ = ["fold"]

FAILED = (
    "The proof failed, and nothing was written: the largest difference is {:.3g} of the largest output, {:.3g} is "
    "allowed. {}"
)
BROKEN = (
    "Nothing was written: the folded model cannot be run ({}). Something in it uses what folding takes out; leave that "
    "layer out with --skip."
)
NOT_FINITE = "The proof failed, and nothing was written: outputs are not finite."
TELLS_NOTHING = (
    "Nothing was written: on every input that was tried the outputs are all 0, or too small beside the rounding of the "
    "last activation. Give real inputs with --data."
)
CANCELS = (
    "The layer whose rounding weighs most is {}: its mean lies {:.3g} standard deviations from 0. Leave it out with "
    "--skip."
)
FAR = 100.0
AMPLIFIES = (
    "The model amplifies rounding: it moves by {:.3g} of its largest output by itself where its input moves in the "
    "last digit."
)
NOTHING = "Nothing was folded, and nothing was written."
GUESSED = (
    "The shape of the input was guessed, {}. On (N, L, C) a Linear works on the last axis and a BatchNorm1d on the "
    "second, and the folded module would be another; give data of the shape that you use, to have it proved on that."
)
OPTIMIZER = "The folded model is for inference: it is not compiled, and holds no optimizer."


def fold(
    model: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    data: Any = None,
    seed: int = 0,
    skip: Sequence[str] = (),
    force: bool = False,
    epsilon: Epsilon | None = None,
) -> Folding:
    """Fold batch normalizations into the convolutions and dense layers beside them, and prove that nothing changes.

    After ``K x + b``: ``(scale K) x + (scale b + shift)``; before it: ``(K scale) x + (b + K shift)``, with
    ``scale = gamma/sqrt(variance + epsilon)`` and ``shift = beta - mean*scale``, in float64, rounded once.

    Parameters
    ----------
    model : path or object
        A ``.onnx``, ``.keras``, ``.h5`` or ``.pt2`` file, or a live ``keras.Model``, ``torch.nn.Module`` or
        ``onnx.ModelProto``, which stays as it is.
    out : path, optional
        Where the folded copy is written; required for files.
    data : array, dict of arrays, or iterable of batches, optional
        Inputs of the model that the proof is run on, beside random ones. A live ``torch.nn.Module`` whose input shape
        cannot be told needs them.
    seed : int
        Of the random inputs.
    skip : sequence of str
        Layers, by their names or unambiguous tails, that are left as they are.
    force : bool
        Replace an existing ``out``.
    epsilon : float, "hint" or path, optional
        The epsilon, where the file holds none; see `load`.

    Returns
    -------
    Folding
        What was folded and what was not, each with its reason, and the proof: of each output the largest difference as
        a share of its largest value, at most 1e-5 in float32. Where it fails nothing is written, and ``result`` is
        None. A live model's copy is ``result``, in inference mode.

    Raises
    ------
    ArgumentError
        Another format; no ``out`` for a file; inputs that the model cannot take.
    NoBatchNorm
        There is nothing that could be folded.

    Notes
    -----
    ``torch.nn.utils.fusion`` and ``torch.fx.experimental.optimization.fuse`` fold without proof, and are silently wrong
    for transposed convolutions, ``Linear`` on sequences and shared convolutions (docs/FOLDING.md).
    """
    check_epsilon(epsilon)
    target = target_of(model, epsilon, out)
    read = target.model
    if not read.layers:
        raise NoBatchNorm(f"{read.path}: there is no batch normalization in this model.")
    about: dict[str, Any] = {"model": hashed(model, read), "notes": notes_of(read, epsilon)}
    left = [chosen(read.layers, name, "fold").name for name in skip]
    try:
        with place_for(target, out, force) as place:
            found = _proved(target, place, left, data, seed)
            if not found.holds:
                raise _NotWrittenError(found)
    except _NotWrittenError as none:
        return _finished(none.found, about, target, None)
    return _finished(found, about, target, out)


@dataclass(frozen=True, slots=True)
class _Found:
    plan: Plan
    proof: Proof | None
    why: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.proof is not None and self.proof.holds


class _NotWrittenError(Exception):
    """Leaves the block that would give the file its name."""

    def __init__(self, found: _Found) -> None:
        super().__init__()
        self.found = found


def _finished(found: _Found, about: dict[str, Any], target: Target, out: Any) -> Folding:
    notes = [*about["notes"], *([] if found.why is None else [found.why]), *found.notes]
    if found.holds and target.model.format in ("keras", "hdf5"):
        notes.append(OPTIMIZER)
    return Folding(
        model=about["model"],
        folded=found.plan.folds,
        refused=found.plan.refused,
        proof=found.proof,
        output=None if out is None else str(out),
        notes=tuple(notes),
        result=target.result if found.holds else None,
    )


def _proved(target: Target, place: Path | None, skip: list[str], data: Any, seed: int) -> _Found:
    """Plan, make the copy, and run both."""
    read = target.model
    graph = read.graph
    if graph is None:
        reasons = tuple(Refusal(record.name, f"the model shows no graph: {read.no_graph}") for record in read.layers)
        return _Found(Plan((), reasons), None, NOTHING)
    given = _inputs(target, data, seed)
    ranks = _ranks(read, graph, given[0][1][0])
    plan = planned(graph, read.layers, ranks, skip)
    if not plan.folds:
        return _Found(plan, None, NOTHING)
    changes = [Change(edit.operation, *edit.stored(), tuple(one.norm for one in edit.folds)) for edit in plan.edits]
    copy = Copy(target.folded(changes, place))
    try:
        tried = tuple(proved(read, copy, source, parts) for source, parts in given)
    except CopyFailedError as why:
        return _Found(plan, None, BROKEN.format(why))
    dtype = max(_dtypes(plan, graph), key=unit_roundoff)
    proof = Proof(tried, tolerance(plan.terms, dtype), bound(plan.terms, dtype), len(plan.edits))
    if proof.holds:
        guessed = isinstance(target, TorchTarget) and data is None and any(one.layer in ranks for one in plan.folds)
        return _Found(plan, proof, notes=(GUESSED.format(_shape(given[0][1][0])),) if guessed else ())
    moved = max(proof.share(proved(read, Nudged(read), source, parts)) for source, parts in given)
    return _Found(plan, proof, _why(plan, proof, read.layers, moved))


def _dtypes(plan: Plan, graph: Graph) -> list[Any]:
    """The types in which something rounds: of the new weights, and of any layer that computes in another one."""
    computed = {str(each.settings["computes"]) for each in graph.operations if "computes" in each.settings}
    return [*(edit.dtype for edit in plan.edits), *computed]


def _inputs(target: Target, data: Any, seed: int) -> list[tuple[str, list[Any]]]:
    """Random inputs and given ones, each with its name; the random ones have the shape of the given."""
    wanted = target.inputs()
    if data is not None:
        parts = list(batches(data, wanted))
        if not parts:
            fixed = next((one.shape[0] for one in wanted or () if one.shape and one.shape[0]), 1)
            raise ArgumentError(f"fold: --data holds no whole batch: the model takes {fixed} at a time.")
        _check_finite(parts)
        return [("random", [like(parts[0], seed)]), ("data", parts)]
    if not wanted:
        raise ArgumentError(f"fold: the inputs of {target.model.path} are not known; give some with --data (data=).")
    return [("random", [first_that_runs(target.model, wanted, seed)])]


def _check_finite(parts: Sequence[Any]) -> None:
    """Refuse data that would make both models' outputs NaN, which no proof can compare."""
    start = 0
    for part in parts:
        inputs: Any = list(cast("dict[str, Any]", part).values()) if isinstance(part, dict) else part
        arrays: list[Any] = cast("list[Any]", inputs) if isinstance(inputs, list) else [inputs]
        for array in map(np.atleast_1d, arrays):
            bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
            if len(bad):
                raise ArgumentError(
                    f"fold: --data holds a NaN or an infinity in sample {start + int(bad[0])}, counted from 0; a proof "
                    "needs numbers. Leave such samples out."
                )
        start += len(np.atleast_1d(arrays[0]))


def _ranks(read: Model, graph: Graph, x: Any) -> dict[str, int]:
    """Number of axes of what comes into the layers beside a dense operation, which works on any number."""
    beside = [
        each.name
        for each in graph.operations
        if each.kind == "batch_norm"
        and "input_rank" not in each.settings
        and any(near is not None and near.kind == "dense" for near in _neighbours(graph, each))
    ]
    names = [record.name for record in read.layers if record.name in beside]
    if not names:
        return {}
    _, calls = read.run(x, names)
    return {name: found[0][0].ndim for name, found in calls.items() if found}


def _shape(x: Any) -> str:
    arrays = cast("dict[str, Any]", x).values() if isinstance(x, dict) else [x]
    return " and ".join(f"({', '.join(['N', *map(str, each.shape[1:])])})" for each in arrays)


def _neighbours(graph: Graph, norm: Operation) -> list[Operation | None]:
    found = [graph.producer(norm.inputs[0]), *graph.consumers(norm.outputs[0])]
    while found[0] is not None and found[0].kind in ("identity", "batch_norm") and found[0].inputs:
        found[0] = graph.producer(found[0].inputs[0])
    return [*found, *(user for each in found[1:] if each is not None for user in graph.consumers(each.outputs[0]))]


def _why(plan: Plan, proof: Proof, records: Sequence[LayerRecord], moved: float) -> str:
    if not np.isfinite(proof.max_rel):
        return NOT_FINITE
    if not any(proof.tells(each) for each in proof.inputs):
        return TELLS_NOTHING
    names = {one.layer for one in plan.folds}
    worst, deviations = max(((record.name, _distance(record)) for record in records if record.name in names),
                            key=lambda each: each[1])  # fmt: skip
    hint = CANCELS.format(worst, deviations) if deviations > FAR else "Leave layers out with --skip."
    if moved > proof.max_rel / 4:
        hint = f"{AMPLIFIES.format(moved)} {hint}"
    return FAILED.format(proof.max_rel, proof.tolerance, hint)


def _distance(record: LayerRecord) -> float:
    """How many standard deviations a mean lies from 0, at most: what folding loses in rounding."""
    assert record.moving_mean is not None
    assert record.moving_variance is not None
    mean, variance = (each.astype(np.float64) for each in (record.moving_mean, record.moving_variance))
    with np.errstate(all="ignore"):
        return float(np.nanmax(np.abs(mean) / np.sqrt(variance + (record.epsilon or 0.0))))
