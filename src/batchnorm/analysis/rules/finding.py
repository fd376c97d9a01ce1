"""What a rule gets, what it gives, and how the two are joined in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from batchnorm.core.graph import Graph
from batchnorm.core.record import LayerRecord

from .measured import Measurements

__all__ = ["RANK", "Finding", "Hit", "Level", "Need", "Rule", "Subject", "on_each"]

Level = Literal["error", "warning", "note"]
Need = Literal["records", "graph", "data", "models"]
RANK = {"error": 0, "warning": 1, "note": 2}
NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """One model as the rules see it.

    Parameters
    ----------
    records : tuple of LayerRecord
        In the order of the data's way.
    graph : Graph or None
        Which operation feeds which, where the model tells it.
    data : Measurements or None
        What each layer was fed, where data was given.
    deployed : bool
        It is in a form made for inference alone, that nobody trains any more.
    others : tuple of (str, tuple of LayerRecord)
        Further models, by name, that this one is held against.
    """

    records: tuple[LayerRecord, ...]
    graph: Graph | None = None
    data: Measurements | None = None
    deployed: bool = False
    others: tuple[tuple[str, tuple[LayerRecord, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What a rule found in one place.

    Parameters
    ----------
    level : str
        "error", "warning" or "note".
    layer : str or None
        Its name; None where the whole model is meant.
    layers : tuple of str
        The layers, where one finding speaks of several.
    channels : tuple of int
        Which of its channels; empty where it is not about channels.
    message : str
        With layer, channels, numbers and reason: a sentence or two.
    short : str
        The same for a table, without the layer's name.
    remedy : str
        The way out: a command in which MODEL stands for the model, or what to change.
    code : str
        The same as a line of Python for a live object, ``model``; empty where ``remedy`` says it as well.
    evidence : mapping
        The numbers behind it.
    """

    level: Level
    layer: str | None
    message: str
    short: str
    remedy: str
    code: str = ""
    layers: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: a code and a name for good, the worst level it can give, its function, and what that needs."""

    code: str
    name: str
    level: Level
    title: str
    function: Callable[[Subject], Iterable[Hit]]
    needs: Need = "records"


@dataclass(frozen=True, slots=True)
class Finding:
    """A hit with the rule behind it."""

    rule: Rule
    hit: Hit

    @property
    def level(self) -> Level:
        """As of the hit."""
        return self.hit.level


def on_each(function: Callable[[LayerRecord], Hit | None]) -> Callable[[Subject], Iterable[Hit]]:
    """A rule about one layer, as a rule about all of them."""

    def every(subject: Subject) -> Sequence[Hit]:
        return [hit for record in subject.records if (hit := function(record)) is not None]

    return every
