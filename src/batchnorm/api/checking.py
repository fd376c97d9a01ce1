"""What is wrong with a model, and what to do: ``bn.check``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, cast

from batchnorm.analysis.rules import RANK, Rule, Subject, apply
from batchnorm.analysis.rules.data import gaps, needed
from batchnorm.analysis.rules.effect import FEWEST
from batchnorm.analysis.rules.finding import Level
from batchnorm.analysis.rules.measured import Measurements
from batchnorm.core.graph import Graph
from batchnorm.core.protocols import Model
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError

from .findings import Check, Checked, Largest, Seen
from .loading import hashed, load, notes_of
from .measuring import Run, ordered, run_on
from .rulebook import chosen_rules

__all__ = ["check"]

DEPLOYED = ("onnx", "pt2", "saved_model", "tflite")
"""Formats made for inference, which nobody trains any more."""
AT_ONCE = 64
"""Samples of an array that are run at once where no batch size is given; it bounds the memory."""
NEEDS = {
    "graph": "this file does not tell which operation feeds which",
    "data": "needs --data",
    "models": "needs several MODELs",
}
Codes = Iterable[str] | str | None


def check(
    model: Any,
    data: Any = None,
    *,
    others: Sequence[Any] = (),
    labels: Any = None,
    batch_size: int | None = None,
    select: Codes = None,
    ignore: Codes = None,
    fail_on: str = "warning",
    skip_nonfinite: bool = False,
    epsilon: float | None = None,
) -> Check:
    """What is wrong with a model's batch normalizations, with the numbers that show it and the way out.

    Parameters
    ----------
    model : path or object
        See `load`. Without data nothing is run, and nothing of a file executed.
    data : array_like, dict of arrays, iterable of batches, or function that returns one, optional
        Input of the model, which is run on it in inference mode. A batch is an array, a dict of named inputs, or a
        tuple of one of them and the labels. Memory does not grow with the number of batches.
    others : sequence of paths or objects
        Further models: each is checked, and all are held against each other.
    labels : array_like, optional
        The right answers, one a sample: gives the accuracy in inference and, where the model can be run so, in
        training mode.
    batch_size : int, optional
        That of the training, where the data is an array: BN405 needs one.
    select, ignore : str or iterable of str, optional
        Codes (``"BN107"``), beginnings of codes (``"BN1"``) or names of rules to apply, or to leave out.
    fail_on : {"error", "warning", "note"}
        From which level on ``.failed`` is True.
    skip_nonfinite : bool
        Leave out samples that hold a NaN or an infinity; ``.data.skipped`` says how many.
    epsilon : float, optional
        As in `load`.

    Returns
    -------
    Check
        ``.findings``, worst first; ``.failed``; ``str()`` is what the terminal shows, ``.to_json()`` the document.

    Raises
    ------
    ModelFileError
        A file that cannot be read as a model.
    ArgumentError
        No such rule or level; data without a sample, or with a NaN in one, which is named; labels that are too many,
        too few, or no class of the model.

    Examples
    --------
    >>> found = check("examples/question.keras")
    >>> [finding.rule.code for finding in found.findings]
    ['BN107']
    >>> found.failed
    True
    """
    rules = chosen_rules(select, ignore)
    if fail_on not in RANK:
        raise ArgumentError(f"--fail-on: must be error, warning or note; got {fail_on!r}.")
    given = [model, *others]
    if batch_size is not None and batch_size < 1:
        raise ArgumentError(f"--batch-size: must be at least 1; got {batch_size}.")
    if labels is not None and data is None:
        raise ArgumentError("--labels: they go with --data, which is missing.")
    if data is not None and others:
        raise ArgumentError("--data: one model at a time is run on data; give a single MODEL.")
    reads = [load(one, epsilon=epsilon) for one in given]
    ran = None if data is None or not reads[0].layers else _run(reads[0], data, labels, batch_size, skip_nonfinite)
    subjects = _subjects(reads, None if ran is None else ran.measurements)
    checked = tuple(
        Checked(hashed(one, read), len(read.layers), apply(subject, rules), _live(one))
        for one, read, subject in zip(given, reads, subjects, strict=True)
    )
    notes = tuple(note for read in reads for note in _notes(read, epsilon))
    return Check(
        checked,
        cast("Level", fail_on),
        _skipped(rules, subjects, reads),
        data=None if ran is None else _seen(ran, reads[0].layers, checked[0]),
        accuracy=None if ran is None else ran.accuracy,
        notes=notes,
    )


def _run(read: Model, data: Any, labels: Any, batch_size: int | None, skip_nonfinite: bool) -> Run:
    from batchnorm.engines.randomness import random_state_kept

    from .batches import Batches, is_whole

    batched = batch_size is not None or not is_whole(data)
    with random_state_kept():  # a loader that shuffles draws from it
        batches = Batches(
            data,
            batch_size or _at_once(read),
            labels,
            who="check",
            nonfinite="skip" if skip_nonfinite else "refuse",
            hint=f"A gap shows from {FEWEST} samples on, and well from a few hundred.",
        )
        return run_on(read, batches, batched, labelled=labels is not None)


def _at_once(read: Model) -> int:
    """How many samples of an array are run at once: as many as the model takes, where that is fixed."""
    from batchnorm.engines.session import inputs_of

    return next((one.shape[0] for one in inputs_of(read) or () if one.shape and one.shape[0]), AT_ONCE)


def _seen(ran: Run, records: Sequence[LayerRecord], checked: Checked) -> Seen:
    measured = ran.measurements
    size = next((seen.batch_size for seen in measured.layers.values()), None)
    gap = next((one.hit.layer for one in checked.findings if one.rule.code == "BN401"), None)
    enough, most = needed(measured, records), _largest(ran, records)
    return Seen(measured.samples, ran.batches, size, enough, gap, ran.skipped, most)


def _largest(ran: Run, records: Sequence[LayerRecord]) -> Largest | None:
    known = Subject(records=tuple(record for record in records if record.mode != "frozen"), data=ran.measurements)
    found = max(gaps(known), key=lambda one: one[2].size, default=None)
    return None if found is None else Largest(found[0].name, found[2].size)


def _subjects(reads: Sequence[Model], data: Measurements | None) -> list[Subject]:
    graphs: list[Graph | None] = [getattr(read, "graph", None) for read in reads]
    return [
        Subject(
            records=_as_run(ordered(read), data),
            graph=graphs[place],
            data=data,
            deployed=read.format in DEPLOYED,
            others=tuple((later.path, later.layers) for later in reads[place + 1 :]),
        )
        for place, read in enumerate(reads)
    ]


def _as_run(records: tuple[LayerRecord, ...], data: Measurements | None) -> tuple[LayerRecord, ...]:
    """In the order in which the data reached them; those that it did not reach are last."""
    reached = [] if data is None else list(data.layers)
    return tuple(sorted(records, key=lambda each: [*reached, each.name].index(each.name)))


def _skipped(
    rules: Sequence[Rule], subjects: Sequence[Subject], reads: Sequence[Model]
) -> tuple[tuple[Rule, str], ...]:
    had = {
        "records": True,
        "graph": all(subject.graph is not None for subject in subjects),
        "data": all(subject.data is not None for subject in subjects),
        "models": len(subjects) > 1,
    }
    reasons = (getattr(read, "no_graph", None) for read in reads)
    needs = NEEDS | {"graph": next((f"needs a graph: {why}" for why in reasons if why), NEEDS["graph"])}
    return tuple((rule, needs[rule.needs]) for rule in rules if not had[rule.needs])


def _notes(read: Model, epsilon: float | None) -> tuple[str, ...]:
    empty = () if read.layers else (f"{read.path}: there is no batch normalization in this model.",)
    return (*empty, *notes_of(read, epsilon))


def _live(given: Any) -> bool:
    return not isinstance(given, (str, os.PathLike, Model))
