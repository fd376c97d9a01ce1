"""What ``check`` and ``rule`` return."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

from batchnorm.analysis.rules import RANK, Finding, Level, Rule
from batchnorm.render.document import plain

from .results import ModelInfo, Result

__all__ = ["Accuracy", "Check", "Checked", "Largest", "RuleBook", "Seen"]

LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Largest:
    """The layer whose statistics are furthest off what it is fed, in standard deviations."""

    layer: str
    effect: float


@dataclass(frozen=True, slots=True)
class Seen:
    """The data that was run.

    How much of it, how much a gap of 0.3 standard deviations needs to be told, and how many samples were left out as
    they are not finite.
    """

    samples: int
    batches: int
    batch_size: int | None
    samples_needed: int | None
    first_gap: str | None
    skipped: int = 0
    largest: Largest | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right answers in each mode; ``training`` None where the model cannot be run so."""

    inference: float
    training: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """One model's findings, worst first."""

    model: ModelInfo
    layers: int
    findings: tuple[Finding, ...]
    live: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Check(Result):
    """What the rules found in one or several models."""

    schema: ClassVar[str] = "batchnorm/check/1"
    checked: tuple[Checked, ...]
    fail_on: Level
    skipped: tuple[tuple[Rule, str], ...] = ()
    data: Seen | None = None
    accuracy: Accuracy | None = None
    notes: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all models together."""
        return tuple(finding for one in self.checked for finding in one.findings)

    @property
    def failed(self) -> bool:
        """Whether a finding is as bad as ``fail_on``, or worse."""
        return any(RANK[finding.level] <= RANK[self.fail_on] for finding in self.findings)

    def to_document(self) -> dict[str, Any]:
        """See `Result`."""
        infos = [plain(one.model) for one in self.checked]
        about = {"model": infos[0]} if len(infos) == 1 else {"models": infos}
        counted = Counter(finding.level for finding in self.findings)
        return {
            "schema": self.schema,
            **about,
            "layers": [one.layers for one in self.checked],
            "findings": [_document(finding, one) for one in self.checked for finding in one.findings],
            "summary": {level: counted[level] for level in LEVELS},
            "fail_on": self.fail_on,
            "failed": self.failed,
            "data": plain(self.data),
            "accuracy": plain(self.accuracy),
            "skipped": [{"rule": rule.code, "name": rule.name, "why": why} for rule, why in self.skipped],
            "notes": list(self.notes),
        }


def _document(finding: Finding, checked: Checked) -> dict[str, Any]:
    rule, hit = finding.rule, finding.hit
    return {
        "rule": rule.code,
        "name": rule.name,
        "level": hit.level,
        "model": checked.model.path,
        "layer": hit.layer,
        "layers": list(hit.layers) or None,
        "channels": list(hit.channels) or None,
        "message": hit.message,
        "remedy": hit.code or hit.remedy if checked.live else _filled(hit.remedy, checked.model.path),
        "evidence": plain(hit.evidence),
    }


def _filled(remedy: str, path: str) -> str:
    # As whole words: a remedy also speaks of "the model".
    return " ".join(shlex.quote(path) if word == "MODEL" else word for word in remedy.split(" "))


@dataclass(frozen=True, slots=True, eq=False)
class RuleBook(Result):
    """Rules and what their pages say."""

    schema: ClassVar[str] = "batchnorm/rule/1"
    rules: tuple[Rule, ...]
    pages: tuple[str, ...]

    def to_document(self) -> dict[str, Any]:
        """See `Result`."""
        pairs = zip(self.rules, self.pages, strict=True)
        return {"schema": self.schema, "rules": [_rule(rule, page) for rule, page in pairs]}


def _rule(rule: Rule, page: str) -> dict[str, Any]:
    return {
        "code": rule.code,
        "name": rule.name,
        "level": rule.level,
        "title": rule.title,
        "needs": rule.needs,
        "page": page,
    }
