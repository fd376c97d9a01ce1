"""What differs between two models, constant by constant, and how far each difference moves the output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchnorm.core.record import LayerRecord

from .constants import Constants, largest_change, whole_change
from .difference import Comparison, Difference, LayerPair
from .folded import effective, is_folded, is_merged
from .kinds import IN_EQUATION, KINDS, Case
from .pairing import By, pair_layers
from .unfolding import explained, mirrored

__all__ = ["compare"]

ASSUMED_EPSILON = 1e-5
"""Where neither model holds one, so that the size of the other differences can be told."""


def compare(a: Sequence[LayerRecord], b: Sequence[LayerRecord], *, kindred: bool = True) -> Comparison:
    """Pair the layers of two models and list what differs in each pair.

    Parameters
    ----------
    a, b : sequence of LayerRecord
        With arrays.
    kindred : bool
        Both come from formats that name the channels' axis and the mode alike. Where they do not, a channels-last
        model and its channels-first conversion are right to differ in axis, and only modes that give other outputs are
        told apart.

    Returns
    -------
    Comparison
        Differences that move the output most come first. Float32 spellings of one number (an epsilon, a momentum) are
        no difference, nor is an absent gamma beside one of ones.
    """
    matches = pair_layers(a, b)
    pairs = tuple(_compared(a[match.a], b[match.b], kindred, match.by) for match in matches)
    paired_a, paired_b = {match.a for match in matches}, {match.b for match in matches}
    only_a = tuple(record.name for i, record in enumerate(a) if i not in paired_a)
    only_b = tuple(record.name for j, record in enumerate(b) if j not in paired_b)
    return Comparison(pairs, only_a, only_b)


def _compared(a: LayerRecord, b: LayerRecord, kindred: bool, by: By) -> LayerPair:
    if is_folded(a) or is_folded(b):
        found = _with_folded(a, b)
        if found is not None:
            return LayerPair(a.name, b.name, tuple(found), _whole_of_folded(a, b, found), by)
        a, b = effective(a), effective(b)
    epsilon = _epsilon(a, b)
    case = Case(a, b, Constants.of(a, epsilon), Constants.of(b, epsilon), kindred)
    found = [difference for kind in KINDS for difference in kind(case)]
    found.sort(key=lambda one: -_weight(one))
    changed = any(one.changes_output and one.what in IN_EQUATION for one in found)
    change = whole_change(largest_change(case.left, case.right)) if changed else 0.0
    others = [one.max_output_change or 0.0 for one in found if one.what not in IN_EQUATION]
    return LayerPair(a.name, b.name, tuple(found), float(np.max([change, *others])), by)


def _epsilon(a: LayerRecord, b: LayerRecord) -> float:
    return next((e for e in (a.epsilon, b.epsilon) if e is not None), ASSUMED_EPSILON)


def _with_folded(a: LayerRecord, b: LayerRecord) -> list[Difference] | None:
    """The differences of a pair of which one is folded; None where both are, and hold the same kind of numbers."""
    if is_merged(a) or is_merged(b):
        return []
    if is_folded(a) and is_folded(b) and (a.moving_mean is None) == (b.moving_mean is None):
        return None
    whole, folded = (b, a) if is_folded(a) and (not is_folded(b) or a.moving_mean is None) else (a, b)
    whole = effective(whole)
    found = explained(whole, Constants.of(whole, ASSUMED_EPSILON), folded)
    return found if folded is b else mirrored(found)


def _whole_of_folded(a: LayerRecord, b: LayerRecord, found: list[Difference]) -> float | None:
    if is_merged(a) or is_merged(b):
        return None
    if not any(one.changes_output for one in found):
        return 0.0
    sides = [effective(one) for one in (a, b)]
    left, right = (Constants.of(one, ASSUMED_EPSILON) for one in sides)
    return whole_change(largest_change(*((right, left) if is_folded(a) else (left, right))))


def _weight(difference: Difference) -> float:
    change = difference.max_output_change
    return -1.0 if change is None else (float("inf") if change != change else change)
