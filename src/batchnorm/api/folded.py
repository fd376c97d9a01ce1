"""What folding, freezing and unfreezing return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from batchnorm.analysis.fold_plan import Fold, Refusal

from .proving import Proof
from .results import ModelInfo, Result

__all__ = ["Folding", "Freezing"]


@dataclass(frozen=True, slots=True, eq=False)
class Folding(Result):
    """Batch normalizations folded into their neighbours.

    ``result`` is the folded copy of a live model; ``output`` the file that was written. Both are None where nothing
    could be folded, or the proof failed.
    """

    schema: ClassVar[str] = "batchnorm/fold/1"
    model: ModelInfo
    folded: tuple[Fold, ...]
    refused: tuple[Refusal, ...]
    proof: Proof | None
    output: str | None = None
    notes: tuple[str, ...] = ()
    result: Any = field(default=None, repr=False)

    @property
    def holds(self) -> bool:
        """Whether something was folded, and proved."""
        return self.proof is not None and self.proof.holds

    def to_document(self) -> dict[str, Any]:
        """See `Result`."""
        return {
            "schema": self.schema,
            "model": {"path": self.model.path, "format": self.model.format, "sha256": self.model.sha256},
            "folded": [{"layer": each.layer, "into": each.into, "where": each.where} for each in self.folded],
            "refused": [{"layer": each.layer, "why": each.why} for each in self.refused],
            "proof": None if self.proof is None else _proof(self.proof),
            "output": self.output,
            "notes": list(self.notes),
        }


def _proof(proof: Proof) -> dict[str, Any]:
    inputs = [
        {
            "source": each.source, "samples": each.samples, "max_abs": each.max_abs, "max_rel": proof.share(each),
            "tells": proof.tells(each),
        }
        for each in proof.inputs
    ]  # fmt: skip
    return {
        "inputs": inputs, "max_abs": proof.max_abs, "max_rel": proof.max_rel, "tolerance": proof.tolerance,
        "bound": proof.bound, "depth": proof.depth, "holds": proof.holds,
    }  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Freezing(Result):
    """Layers frozen or thawed; ``changed`` are those that were not so before."""

    schema: ClassVar[str] = "batchnorm/freeze/1"
    model: ModelInfo
    frozen: bool
    changed: tuple[str, ...]
    unchanged: tuple[Refusal, ...]
    output: str | None = None
    notes: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """See `Result`."""
        return {
            "schema": self.schema if self.frozen else self.schema.replace("freeze", "unfreeze"),
            "model": {"path": self.model.path, "format": self.model.format, "sha256": self.model.sha256},
            "changed": list(self.changed),
            "unchanged": [{"layer": each.layer, "why": each.why} for each in self.unchanged],
            "output": self.output,
            "notes": list(self.notes),
        }
