"""What differs between two models, constant by constant, and how far each difference moves the output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchnorm.core.record import LayerRecord

from .constants import Constants, largest_change, whole_change
from .difference import Comparison, Difference, LayerPair
from .kinds import IN_EQUATION, KINDS, Case
from .pairing import By, pair_layers

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
    epsilon = next((e for e in (a.epsilon, b.epsilon) if e is not None), ASSUMED_EPSILON)
    case = Case(a, b, Constants.of(a, epsilon), Constants.of(b, epsilon), kindred)
    found = [difference for kind in KINDS for difference in kind(case)]
    found.sort(key=lambda one: -_weight(one))
    changed = any(one.changes_output and one.what in IN_EQUATION for one in found)
    change = whole_change(largest_change(case.left, case.right)) if changed else 0.0
    others = [one.max_output_change or 0.0 for one in found if one.what not in IN_EQUATION]
    return LayerPair(a.name, b.name, tuple(found), float(np.max([change, *others])), by)


def _weight(difference: Difference) -> float:
    change = difference.max_output_change
    return -1.0 if change is None else (float("inf") if change != change else change)
