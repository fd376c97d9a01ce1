"""The Python functions that hold a model against another, or against what it should compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batchnorm.analysis.diff import compare
from batchnorm.analysis.difference import Comparison
from batchnorm.analysis.folded import is_merged
from batchnorm.core.protocols import Model

from .epsilons import Epsilon
from .loading import hashed, opened, some
from .results import FOLDING, Diff

__all__ = ["diff", "kindred"]

AXIS_FREE = {"keras", "weights.h5", "weights.json", "hdf5", "hdf5 weights", "numpy"}
"""Formats that spell axis and mode as Keras does."""


def diff(a: Any, b: Any, *, epsilon: Epsilon | None = None) -> Diff:
    """What differs between the batch normalizations of two models, and how far each difference moves the output.

    Layers are paired by their values, then their names, then their order, whatever the formats; nothing is run.

    Parameters
    ----------
    a, b : path or object
        See `load`.
    epsilon : float, "hint" or path, optional
        As in `load`, for both.

    Returns
    -------
    Diff
        ``.pairs[i].differences`` holds ``what``, the constant on either side, and ``max_output_change``: the maximum
        of ``abs(y_b(x) - y_a(x))`` when this one constant of ``a`` becomes that of ``b``, for every x within three
        standard deviations of the channel's moving mean. ``.changes_output`` says whether anything moves an output.

    Raises
    ------
    NoBatchNorm
        One of them holds none.
    ModelFileError
        A file that cannot be read as a model.

    Notes
    -----
    Float32 spellings of one number are no difference, nor is an absent gamma beside one of ones. Momentum and the
    divisor of the stored variance move no output in inference, and are listed with a change of 0. A variance that is
    n/(n-1) of the other in every channel is named ``ddof``; values that went through float16 or bfloat16 are named
    ``dtype``. An epsilon that one file does not hold has a change of None. Where a converter left a scale and a shift
    of a layer (.tflite, an un-fused .onnx), the one constant that accounts for both in every channel is named; a layer
    that became part of another operator's weights is not compared, and a note says so.

    Examples
    --------
    >>> found = diff("examples/question.keras", "examples/question.keras")
    >>> found.pairs[0].differences, found.changes_output
    ((), False)
    """
    models = [opened(one, epsilon) for one in (a, b)]
    first, second = models
    found = compare(first.layers, second.layers, kindred=kindred(first, second))
    infos = (hashed(a, first), hashed(b, second))
    return Diff(infos, found.pairs, found.only_a, found.only_b, _notes(models, found))


def kindred(a: Model, b: Model) -> bool:
    """Whether two models come from formats that spell axis and mode alike."""
    return _family(a) == _family(b)


def _family(model: Model) -> str:
    return "keras" if model.format in AXIS_FREE else model.format


def _notes(models: list[Model], found: Comparison) -> tuple[str, ...]:
    notes = [note for model in models for note in getattr(model, "notes", ())]
    if all(record.epsilon is None for model in models for record in model.layers):
        notes.append("Neither model holds an epsilon; the changes were computed with 1e-5. Pass --eps.")
    if any(pair.paired_by == "order" and pair.differences for pair in found.pairs):
        notes.append("Neither values nor names of some layers agree; they were paired in their order.")
    return (*notes, *_not_compared(models, found))


def _not_compared(models: list[Model], found: Comparison) -> Iterator[str]:
    """Layers that are part of other weights in a file for inference, of which nothing can be said from constants."""
    merged = {record.name for model in models for record in model.layers if is_merged(record)}
    names = [pair.a for pair in found.pairs if {pair.a, pair.b} & merged]
    for model, lacking in ((models[1], found.only_a), (models[0], found.only_b)):
        names += lacking if model.format in FOLDING else ()
    if names:
        yield (
            f"Not compared, as an exporter folded them into the weights before them or left them out: {some(names)}."
            " verify A B --data FILE compares what the models give."
        )
