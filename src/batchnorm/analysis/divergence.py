"""Where two models part on the same input, layer by layer, and what the cause is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.dtypes import unit_roundoff

from .agreement import Tolerance, allowed, error_of
from .constants import Constants
from .difference import Difference

__all__ = ["Cause", "Divergence", "Outputs", "PairErrors", "PairResult", "Side", "compare_outputs", "first_divergence"]

Cause = Literal["constant", "precision", "engine", "input"]
Array = NDArray[Any]
Wide = NDArray[np.float64]
DRIFT = 2.0**13
"""Units of roundoff by which what reaches a layer may differ after a deep network of another engine: its rounding grows
from layer to layer; a constant that is wrong shows at once."""
MOST_DRIFT = 2.0**-4


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """A layer's input and output in one model, channels last, and its constants."""

    x: Array
    y: Array
    constants: Constants

    def bound(self) -> Wide:
        """What its engine may be off by."""
        return allowed(self.constants, self.x, self.y)

    def share(self, bound: Wide) -> float:
        """How far the output is from the reference on its own constants, in units of the bound."""
        expected = self.constants.output(self.x.astype(np.float64))
        return _largest(error_of(self.y.astype(np.float64), expected) / bound)


@dataclass(frozen=True, slots=True)
class PairResult:
    """One pair of layers on the same input of both models.

    Attributes
    ----------
    a, b : str
        Names.
    input_max_abs, max_abs : float
        How far apart what goes in is, and what comes out.
    diverges : bool
        Whether the layer itself makes a difference beyond rounding, or its input already differs.
    cause : str or None
        ``"constant"``: the constants named in ``constants`` differ; ``"precision"``: one side rounds more coarsely;
        ``"engine"``: an output is not what its own constants give; ``"input"``: what comes before the layer differs.
    why : str or None
        The same in a sentence.
    """

    a: str
    b: str
    count: int
    input_max_abs: float
    max_abs: float
    max_rel: float
    diverges: bool
    cause: Cause | None
    why: str | None
    constants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of both models; ``agrees`` where they differ by no more than rounding may make of it."""

    max_abs: float
    max_rel: float
    agrees: bool


@dataclass(frozen=True, slots=True)
class Divergence:
    """Two models on the same input; ``first_diverging`` is None where they agree in every layer."""

    pairs: tuple[PairResult, ...]
    first_diverging: PairResult | None
    outputs: Outputs | None
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether no layer diverges and the outputs agree."""
        return self.first_diverging is None and (self.outputs is None or self.outputs.agrees)


@dataclass(slots=True)
class PairErrors:
    """What was seen of one pair, over all batches so far."""

    a: str
    b: str
    differences: tuple[Difference, ...]
    tolerance: Tolerance
    count: int = 0
    input_max_abs: float = 0.0
    max_abs: float = 0.0
    max_rel: float = 0.0
    moved: float = 0.0
    drift: float = 0.0
    own: list[float] = field(default_factory=lambda: [0.0, 0.0])
    mismatch: str | None = None
    by_formula: bool = False
    types: tuple[str, ...] = ()

    def add(self, a: Side, b: Side) -> None:
        """Take in one batch."""
        if a.x.shape != b.x.shape:
            self.mismatch = f"the layer gets inputs of shape {a.x.shape} and {b.x.shape} (channels last)"
            return
        (xa, ya), (xb, yb) = ((side.x.astype(np.float64), side.y.astype(np.float64)) for side in (a, b))
        apart, moved = error_of(xa, xb), error_of(ya, yb)
        bounds = (a.bound(), b.bound())
        with np.errstate(all="ignore"):
            permitted = bounds[0] + bounds[1] + np.abs(a.constants.scale()) * apart
            if self.tolerance.given:
                permitted = (self.tolerance.atol or 0.0) + (self.tolerance.rtol or 0.0) * np.abs(ya)
            self.moved = max(self.moved, _largest(np.where(moved == 0, 0.0, moved / permitted)))
            self.max_rel = max(self.max_rel, _largest(np.where(moved == 0, 0.0, moved / np.abs(ya))))
            size = float(np.max(np.abs(xa), initial=0.0))
            self.drift = max(self.drift, _largest(apart / _drift_allowed(a, b) / size) if size else _largest(apart))
        self.count += ya.size
        self.input_max_abs = max(self.input_max_abs, _largest(apart))
        self.max_abs = max(self.max_abs, _largest(moved))
        for side, (one, bound) in enumerate(zip((a, b), bounds, strict=True)):
            self.own[side] = max(self.own[side], one.share(bound))

    def result(self) -> PairResult:
        """The verdict over everything taken in."""
        cause, why = self._cause()
        constants = tuple(one.what for one in self.differences if one.changes_output)
        return PairResult(
            self.a,
            self.b,
            self.count,
            self.input_max_abs,
            self.max_abs,
            self.max_rel,
            cause is not None,
            cause,
            why,
            constants,
        )

    def _cause(self) -> tuple[Cause | None, str | None]:
        parts = self.mismatch is not None or self.moved > 1 or (self.drift > 1 and not self.tolerance.given)
        if not parts:
            return None, None
        changed = [one.what for one in self.differences if one.changes_output and one.what != "dtype"]
        # Another axis or another mode is no other value in the same equation: everything looks wrong after it.
        other = [what for what in changed if what in ("axis", "mode")]
        if other:
            return "constant", _differ(other)
        if self.mismatch is not None:
            return "input", self.mismatch
        for side, share in zip(("first", "second"), self.own, strict=True):
            if share > 1:
                return "engine", f"the {side} model's output is off what its own constants give, by {share:.3g} bounds"
        if self.moved > 1 and changed:
            return "constant", _differ(changed)
        if self.drift > 1:
            return "input", f"what comes before it differs: its inputs are up to {self.input_max_abs:.3g} apart"
        rounded = next((one.detail for one in self.differences if one.what == "dtype" and one.changes_output), None)
        return "precision", rounded or "constants and engines agree; one side rounds more coarsely"


def _differ(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} differ{'s' if len(names) == 1 else ''}"


def first_divergence(pairs: Sequence[PairResult]) -> PairResult | None:
    """The first pair, in the order of the first model, that diverges."""
    return next((pair for pair in pairs if pair.diverges), None)


def compare_outputs(a: Iterable[Array], b: Iterable[Array], tolerance: Tolerance) -> Outputs | None:
    """The outputs of both models; None where their number or shapes differ."""
    first, second = list(a), list(b)
    if len(first) != len(second) or any(p.shape != q.shape for p, q in zip(first, second, strict=True)):
        return None
    largest, relative, agrees = 0.0, 0.0, True
    for p, q in zip(first, second, strict=True):
        ya, yb = p.astype(np.float64), q.astype(np.float64)
        apart = error_of(ya, yb)
        size = float(np.max(np.abs(ya), initial=0.0))
        u = max(unit_roundoff(p.dtype), unit_roundoff(q.dtype))
        with np.errstate(all="ignore"):
            permitted = min(DRIFT * u, MOST_DRIFT) * size
            limit = (tolerance.atol or 0.0) + (tolerance.rtol or 0.0) * np.abs(ya) if tolerance.given else permitted
            agrees = agrees and bool(np.all(apart <= limit))
            relative = max(relative, _largest(apart) / size if size else 0.0)
        largest = max(largest, _largest(apart))
    return Outputs(largest, relative, agrees)


def _drift_allowed(a: Side, b: Side) -> float:
    u = max(unit_roundoff(side.y.dtype) for side in (a, b))
    return min(DRIFT * u, MOST_DRIFT)


def _largest(values: Wide) -> float:
    return float(np.max(np.nan_to_num(values, nan=np.inf, posinf=np.inf), initial=0.0))
