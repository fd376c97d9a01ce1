"""What the commands and the Python functions return: frozen, printable, and one document each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from batchnorm.analysis.agreement import EngineResult
from batchnorm.analysis.difference import LayerPair
from batchnorm.analysis.divergence import Divergence
from batchnorm.analysis.explanation import LayerExplanation
from batchnorm.analysis.reasons import verdict
from batchnorm.analysis.signs import effective_scale, epsilon_dominated, signs_of
from batchnorm.core.record import ARRAYS, LayerRecord
from batchnorm.render.document import dumps, plain

__all__ = ["FOLDING", "Diff", "Explanation", "Listing", "ModelInfo", "Result", "Verification", "record_document"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model a result is about; ``sha256`` is None where the file was not hashed."""

    path: str
    format: str
    sha256: str | None = None


class Result:
    """A result: ``to_document()`` for scripts, ``to_json()``, ``str()`` as the terminal shows it, HTML in notebooks."""

    schema: ClassVar[str]

    def to_document(self) -> dict[str, Any]:
        """The result as dicts, lists, strings and numbers, in the shape of its JSON Schema."""
        raise NotImplementedError

    def to_json(self) -> str:
        """The document as JSON text."""
        return dumps(self.to_document())

    def __str__(self) -> str:
        from batchnorm.render.text import render

        return render(self.to_document())

    def _repr_html_(self) -> str:
        from batchnorm.render.page import fragment

        return fragment(self.to_document())


@dataclass(frozen=True, slots=True, eq=False)
class Listing(Result):
    """Every batch normalization of a model."""

    schema: ClassVar[str] = "batchnorm/list/1"
    model: ModelInfo
    layers: tuple[LayerRecord, ...]
    other_layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    arrays: bool = False

    def to_document(self) -> dict[str, Any]:
        """See `Result`."""
        return {
            "schema": self.schema,
            "model": plain(self.model),
            "layers": [record_document(record, arrays=self.arrays) | _health(record) for record in self.layers],
            "other_layers": list(self.other_layers),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Explanation(Result):
    """Why the outputs of a model's batch normalizations are what they are."""

    schema: ClassVar[str] = "batchnorm/explain/1"
    model: ModelInfo
    layers: tuple[LayerExplanation, ...]
    notes: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """See `Result`."""
        return {
            "schema": self.schema,
            "model": plain(self.model),
            "layers": [_explained(layer) for layer in self.layers],
            "notes": list(self.notes),
        }


FOLDING = ("onnx", "tflite")
"""Formats whose exporters and converters fold batch normalizations into other weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Diff(Result):
    """What differs between two models: pairs of layers with their differences, and the layers without a partner."""

    schema: ClassVar[str] = "batchnorm/diff/1"
    models: tuple[ModelInfo, ModelInfo]
    pairs: tuple[LayerPair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def changes_output(self) -> bool:
        """Whether anything differs that moves an output: a constant that inference uses, or a layer without partner.

        A layer that only a file for inference lacks is no such difference by itself: exporters fold a batch
        normalization into the weights before it.
        """
        a, b = (model.format in FOLDING for model in self.models)
        lost = (self.only_a and not b) or (self.only_b and not a)
        return bool(lost) or any(one.changes_output for p in self.pairs for one in p.differences)

    def to_document(self) -> dict[str, Any]:
        """See `Result`."""
        return {"schema": self.schema, **plain(self)}


@dataclass(frozen=True, slots=True)
class Input:
    """What the layers were fed: ``source`` is "data", "x", "random" or "saved inputs"; the seed where it was drawn."""

    source: str
    seed: int | None
    atol: float | None
    rtol: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Verification(Result):
    """Every batch normalization on every engine beside the float64 reference; or two models beside each other."""

    schema: ClassVar[str] = "batchnorm/verify/1"
    models: tuple[ModelInfo, ...]
    layers: tuple[str, ...]
    input: Input
    engines: tuple[EngineResult, ...]
    model_run: EngineResult | None = None
    comparison: Divergence | None = None
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether nothing differs and nothing failed; an engine that is merely not installed does not count."""
        results = [*self.engines, *filter(None, [self.model_run])]
        compared = self.comparison is None or self.comparison.agrees
        return compared and all(one.status in ("agrees", "unavailable") for one in results)

    def to_document(self) -> dict[str, Any]:
        """See `Result`."""
        document = plain(self)
        models = document.pop("models")
        about = {"model": models[0]} if len(models) == 1 else {"models": models}
        return {"schema": self.schema, **about, "agrees": self.agrees, **document}


def record_document(record: LayerRecord, *, arrays: bool) -> dict[str, Any]:
    """The layer record as every document spells it."""
    document = {name: plain(getattr(record, name)) for name in RECORD_KEYS}
    if arrays:
        document["parameters"] = {name: plain(getattr(record, name)) for name in ARRAYS}
    return document


RECORD_KEYS = (
    "name",
    "kind",
    "channels",
    "axis",
    "dtype",
    "epsilon",
    "epsilon_source",
    "averaging",
    "decay",
    "momentum",
    "ddof",
    "mode",
    "updates",
    "updates_source",
    "updates_doubt",
    "recalibrated",
    "initial_weight",
    "source",
)


def _health(record: LayerRecord) -> dict[str, Any]:
    return {
        "signs": plain(signs_of(record)),
        "scale": plain(effective_scale(record)),
        "epsilon_dominated": epsilon_dominated(record),
    }


def _explained(layer: LayerExplanation) -> dict[str, Any]:
    return record_document(layer.record, arrays=True) | {
        "verdict": verdict(layer.record),
        "explain_mode": layer.mode,
        "explained": plain(layer.explained),
        "channels_truncated": layer.channels_truncated,
        "expected": plain(layer.expected),
        "because": list(layer.because),
        "remedies": list(layer.remedies),
    }
