"""Which layer of one model is which layer of another: by their values, then their names, then their order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord

from .constants import ROLES, Constants
from .folded import is_folded, same_map

__all__ = ["By", "Match", "pair_layers"]

By = Literal["values", "name", "order"]
CLOSE = 2.0**-6
"""Arrays that went through bfloat16, or were swapped, or of which one was edited, still lead to their layer."""
MOST_COMPARED = 20_000
"""Pairs of layers of one size whose arrays are compared; where there are more, order alone decides."""
NUMBER = re.compile(r"_\d+$")
"""Converters make a repeated name its own with one."""
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Match:
    """Layer ``a`` of the first model is layer ``b`` of the second, as indices, and what said so."""

    a: int
    b: int
    by: By


def pair_layers(a: Sequence[LayerRecord], b: Sequence[LayerRecord]) -> list[Match]:
    """Pair the layers of two models; a layer is in one pair at most, and both of a pair have as many channels.

    Within layers of one size the pair with the most equal arrays (of gamma, beta, moving mean and variance, also
    swapped) is taken first; among equals the one whose names agree most from their ends, then the one that is nearest
    in order. Names alone decide nothing where values speak.
    """
    matches: list[Match] = []
    for channels in dict.fromkeys(record.channels for record in a):
        mine = [i for i, record in enumerate(a) if record.channels == channels]
        theirs = [j for j, record in enumerate(b) if record.channels == channels]
        matches += _pair_group(a, b, mine, theirs)
    return sorted(matches, key=lambda match: match.a)


def _pair_group(
    a: Sequence[LayerRecord], b: Sequence[LayerRecord], mine: list[int], theirs: list[int]
) -> Iterable[Match]:
    certain = _by_fingerprint(a, b, mine, theirs)
    mine = [i for i in mine if i not in certain]
    theirs = [j for j in theirs if j not in certain.values()]
    return [*(Match(i, j, "values") for i, j in certain.items()), *_greedily(a, b, mine, theirs)]


def _by_fingerprint(
    a: Sequence[LayerRecord], b: Sequence[LayerRecord], mine: list[int], theirs: list[int]
) -> dict[int, int]:
    """Layers whose four arrays are the same in float32, and no other layer's."""
    ours, others = _fingerprints(a, mine), _fingerprints(b, theirs)
    return {at[0]: others[key][0] for key, at in ours.items() if len(at) == 1 and len(others.get(key, ())) == 1}


def _fingerprints(records: Sequence[LayerRecord], chosen: list[int]) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for index in chosen:
        with np.errstate(over="ignore"):
            key = b"".join(values.astype(np.float32).tobytes() for values in _arrays(records[index]))
        found.setdefault(key, []).append(index)
    return found


def _greedily(
    a: Sequence[LayerRecord], b: Sequence[LayerRecord], mine: list[int], theirs: list[int]
) -> Iterable[Match]:
    if len(mine) * len(theirs) > MOST_COMPARED:
        return [Match(i, j, "order") for i, j in zip(mine, theirs, strict=False)]
    ours, others = ([_arrays(side[i]) for i in chosen] for side, chosen in ((a, mine), (b, theirs)))
    candidates = [
        (-_alike(a[i], b[j], ours[p], others[q]), -_common_tail(a[i].name, b[j].name), abs(p - q), p, q)
        for p, i in enumerate(mine)
        for q, j in enumerate(theirs)
    ]
    return _taken(sorted(candidates), mine, theirs)


def _taken(candidates: list[tuple[float, float, int, int, int]], mine: list[int], theirs: list[int]) -> Iterable[Match]:
    used_a: set[int] = set()
    used_b: set[int] = set()
    for equal, tail, _, p, q in candidates:
        if p in used_a or q in used_b:
            continue
        used_a.add(p)
        used_b.add(q)
        by: By = "values" if -equal >= 2 else ("name" if tail else "order")
        yield Match(mine[p], theirs[q], by)


def _arrays(record: LayerRecord) -> tuple[Array, ...]:
    constants = Constants.of(record, 0.0)
    return tuple(getattr(constants, role) for role in ROLES)


def _alike(a: LayerRecord, b: LayerRecord, ours: tuple[Array, ...], theirs: tuple[Array, ...]) -> float:
    """How many of the four arrays are close; all where one side holds the scale and shift of the other."""
    if is_folded(a) == is_folded(b):
        return _equal_arrays(ours, theirs)
    whole, folded = (b, a) if is_folded(a) else (a, b)
    if folded.gamma is None or whole.epsilon is None:
        return 0.0
    return 4.0 if same_map(Constants.of(whole, 0.0), folded) else 0.0


def _equal_arrays(a: tuple[Array, ...], b: tuple[Array, ...]) -> float:
    """How many of the four arrays are close; a hundredth less for two that are so when swapped."""
    total = 0.0
    for first, second in ((0, 1), (2, 3)):
        straight = _close(a[first], b[first]) + _close(a[second], b[second])
        crossed = 0 if straight == 2 else _close(a[first], b[second]) + _close(a[second], b[first])
        total += max(straight, crossed - 0.01)
    return total if total >= 2 else 0.0


def _close(a: Array, b: Array) -> int:
    size = np.maximum(np.abs(a), np.abs(b))
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= CLOSE * (size + CLOSE * np.max(size, initial=0.0))
    return int(np.all(near | (a == b) | (np.isnan(a) & np.isnan(b))))


def _common_tail(a: str, b: str) -> float:
    """How many parts of two names agree, counted from their ends; a half for a last part but for its number."""
    parts = [re.split(r"[/.:]", name)[::-1] for name in (a, b)]
    common = 0
    for first, second in zip(*parts, strict=False):
        if first != second:
            break
        common += 1
    if not common and len({NUMBER.sub("", part[0]) for part in parts}) == 1:
        return 0.5
    return common
