"""Every rule, by its code, and how they are applied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from batchnorm.core.record import LayerRecord

from . import before, data, deployment, history, layout, modes, settings, values, wiring
from .finding import RANK, Finding, Hit, Rule, Subject, on_each

__all__ = ["RULES", "apply", "named", "of_record"]

MOST_NAMED = 3
"""Layers that a finding over many of them names."""

RULES: tuple[Rule, ...] = (
    Rule("BN101", "non-finite", "error", "A stored number is NaN or infinite", on_each(values.non_finite)),
    Rule("BN102", "negative-variance", "error", "A moving variance is below zero", on_each(values.negative_variance)),
    Rule(
        "BN103", "epsilon-dominated", "warning", "Variances no larger than epsilon", on_each(values.epsilon_dominated)
    ),
    Rule("BN104", "dead-gamma", "warning", "Gamma near 0: only beta comes out", on_each(values.dead_gamma)),
    Rule(
        "BN105",
        "exploding-scale",
        "warning",
        "A channel is stretched out of all proportion",
        on_each(values.exploding_scale),
    ),
    Rule(
        "BN106", "statistics-never-updated", "error", "Statistics still at their initial values", history.never_updated
    ),
    Rule(
        "BN107",
        "statistics-not-converged",
        "warning",
        "Too much of the initial value is left",
        history.not_converged,
    ),
    Rule(
        "BN108",
        "half-precision-damage",
        "error",
        "Statistics that 16 bits cannot hold",
        on_each(history.half_precision_damage),
    ),
    Rule(
        "BN109",
        "cancellation-risk",
        "warning",
        "A mean over a thousand standard deviations",
        on_each(values.cancellation_risk),
    ),
    Rule("BN110", "constant-channel", "warning", "A channel that never varied", on_each(values.constant_channel)),
    Rule("BN201", "epsilon-unknown", "note", "The file holds no epsilon", on_each(settings.epsilon_unknown)),
    Rule(
        "BN202",
        "momentum-convention",
        "warning",
        "A momentum of the other framework's convention",
        on_each(settings.momentum_convention),
    ),
    Rule(
        "BN203",
        "axis-mismatch",
        "error",
        "The axis contradicts the convolution beside it",
        layout.axis_mismatch,
        "graph",
    ),
    Rule(
        "BN204",
        "training-mode-deployed",
        "error",
        "The graph fixes training mode",
        modes.training_mode_deployed,
    ),
    Rule("BN205", "batch-statistics", "warning", "Mean or variance is no stored constant", modes.batch_statistics),
    Rule(
        "BN206",
        "odd-epsilon",
        "warning",
        "An epsilon that is no small constant, or not the others'",
        settings.odd_epsilon,
    ),
    Rule(
        "BN207", "swapped-statistics", "error", "Mean and variance were exchanged", on_each(values.swapped_statistics)
    ),
    Rule(
        "BN208",
        "freeze-conflict",
        "warning",
        "Frozen at its initial values, or frozen beside live",
        history.freeze_conflict,
    ),
    Rule(
        "BN209",
        "rank-divergence",
        "error",
        "Same weights, other statistics: ranks never merged",
        settings.rank_divergence,
        "models",
    ),
    Rule("BN301", "useless-bias", "note", "A bias before it that is cancelled", before.useless_bias, "graph"),
    Rule("BN302", "dropout-before", "warning", "Dropout shifts its input's variance", before.dropout_before, "graph"),
    Rule(
        "BN303",
        "shared-layer",
        "warning",
        "Several inputs share one set of statistics",
        wiring.shared_layer,
        "graph",
    ),
    Rule("BN304", "normalised-twice", "note", "Normalises what is normalised", before.normalised_twice, "graph"),
    Rule("BN305", "unused-layer", "note", "Its output is not used", wiring.unused_layer, "graph"),
    Rule("BN306", "foldable", "note", "Could be part of the layer before it", deployment.foldable, "graph"),
    Rule(
        "BN307",
        "runtime-fault",
        "warning",
        "A known fault of a runtime meets this graph",
        deployment.runtime_fault,
        "graph",
    ),
    Rule(
        "BN401",
        "train-inference-gap",
        "error",
        "Training and inference mode part on this data",
        data.train_inference_gap,
        "data",
    ),
    Rule("BN403", "input-scale", "error", "The input is scaled otherwise than in training", data.input_scale, "data"),
    Rule("BN404", "dead-on-data", "note", "A channel that carries nothing on this data", data.dead_on_data, "data"),
    Rule("BN405", "batch-too-small", "warning", "The batch variance is noisy", data.batch_too_small, "data"),
    Rule(
        "BN406",
        "padding-in-statistics",
        "warning",
        "Padding takes part in the statistics",
        data.padding_in_statistics,
        "data",
    ),
)


def named(code: str) -> Rule | None:
    """The rule of that code or name, in any case; None where there is none."""
    wanted = code.strip().lower()
    return next((rule for rule in RULES if wanted in (rule.code.lower(), rule.name)), None)


def apply(subject: Subject, rules: Sequence[Rule] = RULES) -> tuple[Finding, ...]:
    """What the rules find, worst first, then by code; a note that repeats over layers is one finding with a list."""
    found: list[Finding] = []
    for rule in rules:
        if _applies(rule, subject):
            with np.errstate(all="ignore"):
                found += [Finding(rule, hit) for hit in _joined(rule, tuple(rule.function(subject)))]
    return tuple(sorted(found, key=lambda one: (RANK[one.level], one.rule.code)))


def of_record(record: LayerRecord) -> tuple[Finding, ...]:
    """What one layer's stored numbers show by themselves, worst first, in the order of the table within a level."""
    alone = Subject(records=(record,))
    with np.errstate(all="ignore"):
        hits = [Finding(rule, hit) for rule in RULES if rule.needs == "records" for hit in rule.function(alone)]
    return tuple(sorted(hits, key=lambda one: RANK[one.level]))


def _applies(rule: Rule, subject: Subject) -> bool:
    given = {"graph": subject.graph, "data": subject.data, "models": subject.others or None}
    return rule.needs == "records" or given[rule.needs] is not None


def _joined(rule: Rule, hits: tuple[Hit, ...]) -> Iterable[Hit]:
    notes = [hit for hit in hits if hit.level == "note" and hit.layer is not None]
    if len(notes) < 2:
        return hits
    return [*(hit for hit in hits if hit not in notes), _one_of(rule, notes)]


def _some(notes: list[Hit]) -> str:
    """A few of them in short; where all say the same, the first in full."""
    more = f" and {len(notes) - MOST_NAMED} more" if len(notes) > MOST_NAMED else ""
    if len({hit.short for hit in notes}) == 1:
        return f"{', '.join(str(hit.layer) for hit in notes[:MOST_NAMED])}{more}. {notes[0].layer}: {notes[0].message}"
    return "; ".join(f"{hit.layer}: {hit.short}" for hit in notes[:MOST_NAMED]) + (f";{more}." if more else ".")


def _one_of(rule: Rule, notes: list[Hit]) -> Hit:
    names = tuple(str(hit.layer) for hit in notes)
    return Hit(
        level="note",
        layer=None,
        layers=names,
        message=f"{rule.title.lower()} in {len(notes)} layers: {_some(notes)}",
        short=f"in {len(notes)} layers",
        remedy=notes[0].remedy,
        code=notes[0].code,
        evidence={
            "layers": [
                {"layer": hit.layer, "channels": list(hit.channels) or None, "message": hit.message, **hit.evidence}
                for hit in notes
            ]
        },
    )
