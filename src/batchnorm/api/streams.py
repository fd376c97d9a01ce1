"""The data a model is run on again and again: the same batches every time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from batchnorm.errors import ArgumentError

from .batches import Batch, Batches

__all__ = ["Batch", "Stream"]

HEAD = 4
"""Batches that are kept: what the data's way, and the gap before and after, are seen on."""


class Stream:
    """Data that can be run through several times, batch by batch.

    Parameters
    ----------
    data : array, dict of arrays, iterable of batches, or function that returns one
        A batch is an array, a dict of named inputs, or a tuple ``(x, labels)``. An iterator can be run through once.
    size : int
        Samples of a batch cut from arrays. A last batch of one sample, which has no variance, joins the one before.
    labels : array, optional
        One a sample, where data are arrays.
    skip_nonfinite : bool
        Leave out samples with a NaN or an infinity in them, rather than refuse them.
    may_be_empty : bool
        No data is no error: other ranks of the job have some.
    who : str
        Beginning of the messages.

    Raises
    ------
    ArgumentError
        No data; samples that are not finite, named; data that change between two runs, or cannot be run through again.
    """

    def __init__(
        self,
        data: Any,
        size: int,
        labels: Any = None,
        *,
        skip_nonfinite: bool = False,
        may_be_empty: bool = False,
        who: str = "recalibrate",
    ) -> None:
        if size < 2:
            raise ArgumentError(f"{who}: the batch size must be at least 2, as one sample has no variance; got {size}.")
        self._who = who
        self._source = Batches(
            data,
            size,
            labels,
            who=who,
            nonfinite="skip" if skip_nonfinite else "refuse",
            pairs=True,
            hint="" if may_be_empty else "Give at least one batch.",
        )
        self.skipped = 0
        self.batches: int | None = self._source.batches
        self.samples: int | None = self._source.samples
        self.is_once = self._source.is_once
        self._apart: Callable[[Batch], Batch] | None = None
        self._first: list[Batch] = []
        self._started = False

    def taken_apart(self, apart: Callable[[Batch], Batch]) -> None:
        """From now on give every batch as ``apart`` makes it."""
        self._apart = apart

    def head(self) -> list[Batch]:
        """The first batches.

        Raises
        ------
        ArgumentError
            There is none.
        """
        if not self._first:
            source = self._checked()
            self._first = list(itertools.islice(source, HEAD))
            if self.is_once:
                self._rest = source
        return list(self._made(iter(self._first)))

    def __iter__(self) -> Iterator[Batch]:
        return self._made(self._all())

    def _made(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return batches if self._apart is None else map(self._apart, batches)

    def _all(self) -> Iterator[Batch]:
        if not self.is_once:
            return self._checked()
        if self._started:
            raise ArgumentError(
                f"{self._who}: data is an iterator, which can be run through once. Give a list, a data loader, or a "
                "function that returns a new iterator."
            )
        self.head()
        self._started = True
        return itertools.chain(self._first, self._rest)

    def _checked(self) -> Iterator[Batch]:
        number = samples = 0
        for batch in self._source:
            number, samples = number + 1, samples + batch.samples
            yield batch
        self.skipped = self._source.skipped
        if self.batches is not None and self.batches != number:
            raise ArgumentError(
                f"{self._who}: data gave {self.batches} batches, then {number}. It must give the same on every run."
            )
        self.batches, self.samples = number, samples
