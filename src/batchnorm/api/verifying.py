"""What a model's batch normalizations give on every engine, and where two models part: ``bn.verify``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from batchnorm.analysis.agreement import Tolerance
from batchnorm.analysis.folded import effective, is_merged
from batchnorm.core.protocols import Model
from batchnorm.core.record import LayerRecord
from batchnorm.engines.norms import ENGINES
from batchnorm.engines.workers import TIMEOUT, Workers
from batchnorm.errors import ArgumentError

from .epsilons import Epsilon
from .feeding import Fed, Saver, batches, captured, drawn, given, in_order, loaded
from .loading import chosen, hashed, opened, some
from .results import Input, Verification
from .rounds import Round
from .siblings import Sibling, pair_up

__all__ = ["verify"]

SAMPLES = 64
BATCH = 8
"""Samples a model is run on at once: the activations of all its layers lie in memory together."""
DRAWN = 1024
"""Samples drawn at once, for one layer."""
ORDER_NOTE = "The saved inputs are of layers of other names; they were taken in their order."
BATCH_NOTE = (
    "The model itself normalises with each batch's own statistics in {}; verified is inference, with the stored ones."
)


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """The options of a verification that say what is fed and what is allowed."""

    layer: str | None
    x: Any
    data: Any
    random: int
    seed: int
    load_inputs: Any
    batch_size: int
    tolerance: Tolerance
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        sources = {"x": self.x, "data": self.data, "load_inputs": self.load_inputs}
        named = [name for name, value in sources.items() if value is not None]
        if len(named) > 1:
            raise ArgumentError(f"verify: give one of x, data and load_inputs; got {' and '.join(named)}.")
        if not self.timeout > 0:
            raise ArgumentError(f"verify: timeout must be a positive number of seconds; got {self.timeout:g}.")
        for name, value in (("random", self.random), ("batch_size", self.batch_size)):
            if value < 1:
                raise ArgumentError(f"verify: {name} must be at least 1; got {value}.")
        if self.seed < 0:
            raise ArgumentError(f"verify: seed must not be negative; got {self.seed}.")
        for name, value in (("atol", self.tolerance.atol), ("rtol", self.tolerance.rtol)):
            if value is not None and not 0 <= value < float("inf"):
                raise ArgumentError(f"verify: {name} must be a finite number that is not negative; got {value:g}.")

    def check_twice(self, *, twice: bool) -> None:
        """Refuse data that can be gone through once where they are needed twice."""
        if twice and isinstance(self.data, Iterator):
            raise ArgumentError(
                "verify: data is an iterator, which two models and then the engines cannot both go through; give an "
                "array or a list of batches."
            )

    @property
    def source(self) -> str:
        """Where the input comes from, in a word or two."""
        named = {"x": self.x, "data": self.data, "saved inputs": self.load_inputs}
        return next((name for name, value in named.items() if value is not None), "random")

    def fed(self, model: Model, records: Sequence[LayerRecord]) -> Iterator[Fed]:
        """The input of each layer, batch by batch."""
        if self.x is not None:
            return given(chosen(records, None, "verify"), self.x)
        if self.data is not None:
            return captured(model, records, batches(self.data, self.batch_size, model.run))
        if self.load_inputs is not None:
            return loaded(self.load_inputs, records)
        return drawn(records, self.random, self.seed, DRAWN)


def verify(
    model: Any,
    other: Any = None,
    *,
    layer: str | None = None,
    x: ArrayLike | None = None,
    data: Any = None,
    random: int = SAMPLES,
    seed: int = 0,
    engines: Sequence[str] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    save_inputs: str | os.PathLike[str] | None = None,
    load_inputs: str | os.PathLike[str] | None = None,
    batch_size: int = BATCH,
    epsilon: Epsilon | None = None,
    force: bool = False,
    timeout: float = TIMEOUT,
) -> Verification:
    """Whether every engine computes what this model's batch normalizations should give.

    Each layer is computed in inference by each engine's own operation, in a process of its own, and held against the
    float64 formula. Without a tolerance an engine agrees when everywhere ``abs(y - reference) <=
    4u(abs(gamma*inv_std)(abs(x) + abs(mean)) + abs(beta) + abs(y))``, u the unit roundoff of its type. With ``other``
    two models are compared layer by layer on the same input: the first layer where they part, and the cause.

    Parameters
    ----------
    model, other : path or object
        See `load`. Nothing of a live object is changed. ``data`` runs the model in its own engine.
    layer : str, optional
        Only this layer, by its name or any unambiguous tail of it.
    x : array_like, optional
        The input of the layer.
    data : array, dict of arrays, or iterable of batches, optional
        The input of the model: every layer is then verified on what reaches it, and what the model itself made of it
        is held against the reference, too. An iterable is consumed batch by batch.
    random, seed : int
        Without ``x``, ``data`` and ``load_inputs``: so many samples of each channel, drawn with the layer's statistics.
    engines : sequence of str, optional
        Names from `batchnorm.engines.norms.ENGINES`. None is every one that is installed (with ``other``, none). One
        that is named and not installed has failed.
    atol, rtol : float, optional
        Allow ``atol + rtol*abs(reference)`` instead of the derived bound; one alone leaves the other 0.
    save_inputs, load_inputs : path, optional
        Write what the layers were fed to a .npz file; feed them from one, by the names of the layers, or in their order
        where it holds as many and none of these names.
    batch_size : int
        Samples run at once; arrays of ``data`` are cut so. Memory does not grow with the number of samples.
    epsilon : float, "hint" or path, optional
        As in `load`.
    force : bool
        Replace an existing file of ``save_inputs``.
    timeout : float
        Seconds an engine may take for one answer; the first includes the import of its framework.

    Returns
    -------
    Verification
        ``.agrees``; ``.engines`` with the largest absolute and relative error, the ULPs, the tolerance that would be
        required, errors by decade and the first layer that differs; ``.comparison`` with ``other``.

    Raises
    ------
    NoBatchNorm, UnknownLayer, ModelFileError, MissingExtra
        As in `load` and `explain`.
    ArgumentError
        An unknown engine, an epsilon that is not known, input of the wrong name or shape.

    Examples
    --------
    >>> found = verify("examples/digits.keras", engines=["numpy"])
    >>> found.agrees, found.engines[0].status
    (True, 'agrees')
    """
    wanted = Wanted(layer, x, data, random, seed, load_inputs, batch_size, Tolerance(atol, rtol), timeout)
    names = _engine_names(engines, alone=other is None)
    read = opened(model, epsilon)
    wanted.check_twice(twice=other is not None and bool(names or save_inputs is not None))
    sibling = None if other is None else pair_up(read, opened(other, epsilon), layer)
    records, notes = _verifiable(read, layer, sibling, whole=data is not None)
    if load_inputs is not None and in_order(load_inputs, records):
        notes += (ORDER_NOTE,)
    with contextlib.ExitStack() as stack:
        saver = None
        if save_inputs is not None:
            saver = Saver(save_inputs, records, force=force)
            stack.callback(saver.discard)
        comparison, models = None, (hashed(model, read),)
        if sibling is not None:
            comparison, more = sibling.compared(
                wanted.tolerance, wanted.data, wanted.batch_size, lambda: wanted.fed(read, records)
            )
            notes += more
            models += (hashed(other, sibling.b),)
        results, run = (), None
        if names or saver is not None or other is None:
            workers = stack.enter_context(Workers(timeout))
            results, run = Round(workers, names, engines is not None, records, wanted.tolerance).over(
                wanted.fed(read, records), saver
            )
        if saver is not None:
            saver.finish()
    how = Input(wanted.source, seed if wanted.source == "random" else None, atol, rtol)
    layers = tuple(record.name for record in records)
    return Verification(models, layers, how, results, run, comparison, notes)


def _engine_names(engines: Sequence[str] | None, *, alone: bool) -> tuple[str, ...]:
    if engines is None:
        return tuple(ENGINES) if alone else ()
    unknown = [name for name in engines if name not in ENGINES]
    if unknown or not engines or isinstance(engines, str):
        got = f"no engine {unknown[0]!r}" if unknown else "none named"
        raise ArgumentError(f"verify: {got}; the engines are {', '.join(ENGINES)}.")
    return tuple(dict.fromkeys(engines))


def _verifiable(
    read: Model, layer: str | None, sibling: Sibling | None, *, whole: bool
) -> tuple[list[LayerRecord], tuple[str, ...]]:
    """The layers whose output is determined by what the model holds, and what to say of the others.

    A folded layer is one of variance 1 and epsilon 0. An epsilon may come from the like layer of ``sibling``; without
    any layer left, two models can still be compared as a ``whole``.
    """
    named = list(read.layers) if layer is None else [chosen(read.layers, layer, "verify")]
    known = {} if sibling is None else {record.name: record for record, _, _ in sibling.pairs}
    records = [known.get(record.name, effective(record)) for record in named]
    merged = [record.name for record in records if is_merged(record)]
    unknown = [record.name for record in records if record.epsilon is None and record.name not in merged]
    if unknown:
        raise ArgumentError(
            f"verify: {read.path} holds no epsilon for {unknown[0]!r}, so that its output is not determined. Pass "
            "--eps E, the epsilon that the model was built with."
        )
    without = [r.name for r in records if r.name not in merged and (r.moving_mean is None or r.moving_variance is None)]
    held = [record for record in records if record.name not in {*without, *merged}]
    if not held and not (whole and sibling is not None):
        raise ArgumentError(f"verify: {_nothing(read.path, without, merged)}")
    notes = tuple(getattr(read, "notes", ()))
    batch = [record.name for record in held if record.mode in ("training", "batch-statistics")]
    if batch:
        notes += (BATCH_NOTE.format(some(batch)),)
    if without:
        notes += (f"Left out, as the model holds no moving statistics for them: {some(without)}.",)
    if merged and sibling is None:
        notes += (f"Left out, as they are part of the weights of other operators: {some(merged)}.",)
    return held, notes


def _nothing(path: str, without: Sequence[str], merged: Sequence[str]) -> str:
    if without:
        return f"{path} holds no moving statistics for {without[0]!r}; nothing to verify."
    return (
        f"{path} holds {merged[0]!r} as part of the weights of another operator; nothing to verify by itself. Compare "
        "the outputs with those of the model that it was made from: verify A B --data FILE."
    )
