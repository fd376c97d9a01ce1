"""How far an output is from the reference, element by element, gathered batch by batch in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.dtypes import smallest_normal, unit_roundoff

from .constants import Constants

__all__ = ["Agreement", "Decade", "EngineResult", "Errors", "LayerErrors", "Tolerance", "Worst", "allowed", "error_of"]

Status = Literal["agrees", "differs", "unavailable", "failed"]
Array = NDArray[Any]
Wide = NDArray[np.float64]
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": float(np.finfo(np.float32).max)}
NO_DECADE = -1000
"""Of an output of 0 and of one that is no finite number."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a user allows, ``abs(y - reference) <= atol + rtol*abs(reference)``; both None for the derived bound."""

    atol: float | None = None
    rtol: float | None = None

    @property
    def given(self) -> bool:
        """Whether a user named one; the other is then 0."""
        return self.atol is not None or self.rtol is not None


@dataclass(frozen=True, slots=True)
class Decade:
    """The errors of all outputs of one size: ``10**decade <= abs(reference) < 10**(decade + 1)``; None for 0."""

    decade: int | None
    count: int
    max_abs: float
    max_rel: float | None


@dataclass(frozen=True, slots=True)
class Worst:
    """The element whose error is largest beside what is allowed."""

    layer: str
    index: tuple[int, ...]
    x: float
    y: float
    reference: float
    allowed: float


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """One layer on one engine; ``share_of_bound`` over 1 differs."""

    name: str
    count: int
    max_abs: float
    max_rel: float
    max_ulp: float
    required_tolerance: float
    share_of_bound: float


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What one engine computed beside the reference.

    Attributes
    ----------
    name, version : str
        As the command line spells the engine; its package's version, or None.
    status : {"agrees", "differs", "unavailable", "failed"}
        Unavailable: not installed, and not asked for.
    why : str or None
        Of any other status than agrees.
    max_abs, max_rel, max_ulp : float or None
        Largest ``abs(y - reference)``; that by ``abs(reference)``, where that is not 0; that in units of the engine
        type's last place at the reference. None where nothing was computed.
    required_tolerance : float or None
        The smallest t for which ``numpy.allclose(y, reference, rtol=t, atol=t)``.
    share_of_bound : float or None
        The largest error in units of what is allowed there.
    first_differing_layer : str or None
        In the order of the model.
    """

    name: str
    version: str | None
    status: Status
    why: str | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    max_ulp: float | None = None
    required_tolerance: float | None = None
    share_of_bound: float | None = None
    first_differing_layer: str | None = None
    dtype: str | None = None
    by_decade: tuple[Decade, ...] = ()
    layers: tuple[LayerErrors, ...] = ()
    worst: Worst | None = None


def allowed(constants: Constants, x: Array, y: Array) -> Wide:
    """``4u(abs(gamma*inv_std)(abs(x) + abs(mean)) + abs(beta) + abs(y))``, u the unit roundoff of the type of ``y``.

    All broadcast. It covers subtract-first and scale-and-shift alike, each rounded at every step: half a dozen
    roundings, none of more than u of its result. One more is the smallest normal number, which some engines flush to 0.
    """
    dtype = y.dtype.name
    inputs, outputs = np.abs(x.astype(np.float64)), np.abs(y.astype(np.float64))
    with np.errstate(all="ignore"):
        scale = np.abs(constants.scale())
        terms = scale * (inputs + np.abs(constants.moving_mean)) + np.abs(constants.beta) + outputs
        return 4 * unit_roundoff(dtype) * terms + smallest_normal(dtype)


@dataclass(slots=True)
class Errors:
    """The errors of one layer on one engine, over all batches so far."""

    name: str
    count: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    max_ulp: float = 0.0
    required: float = 0.0
    share: float = 0.0
    worst: Worst | None = None
    decades: dict[int, list[float]] = field(default_factory=dict[int, list[float]])

    def add(self, x: Array, y: Array, reference: Wide, bound: Wide, dtype: str) -> None:
        """Take in one batch; all arrays have one shape, ``bound`` is what is allowed of each element."""
        if not y.size:
            return
        expected = _in_range(reference, dtype)
        error = error_of(y.astype(np.float64), expected)
        size = np.abs(expected)
        with np.errstate(all="ignore"):
            relative = np.where(size > 0, error / size, 0.0)
            relative[np.isinf(error)] = np.inf
            share = np.where(error == 0, 0.0, error / bound)
            share[np.isinf(error)] = np.inf
            needed = np.where(error == 0, 0.0, error / (1 + size))
            needed[np.isinf(error)] = np.inf
            ulps = np.where(error == 0, 0.0, error / _unit(size, dtype))
        self.count += y.size
        self.max_abs = max(self.max_abs, float(error.max()))
        self.max_rel = max(self.max_rel, float(relative.max()))
        self.max_ulp = max(self.max_ulp, float(ulps.max()))
        self.required = max(self.required, float(needed.max()))
        self._take_worst(x, y, expected, share, bound)
        self._take_decades(size, error, relative)

    def _take_worst(self, x: Array, y: Array, expected: Wide, share: Wide, bound: Wide) -> None:
        place = np.unravel_index(int(np.argmax(share)), share.shape)
        if float(share[place]) > self.share or self.worst is None:
            self.share = float(share[place])
            index = tuple(int(i) for i in place)
            self.worst = Worst(
                self.name, index, float(x[place]), float(y[place]), float(expected[place]), float(bound[place])
            )

    def _take_decades(self, size: Wide, error: Wide, relative: Wide) -> None:
        with np.errstate(all="ignore"):
            decade = np.floor(np.log10(size))
        decade = np.where(np.isfinite(decade), decade, NO_DECADE).astype(np.int64)
        for one in np.unique(decade):
            here = decade == one
            held = self.decades.setdefault(int(one), [0.0, 0.0, 0.0])
            held[0] += int(here.sum())
            held[1] = max(held[1], float(error[here].max()))
            held[2] = max(held[2], float(relative[here].max()))

    def public(self) -> LayerErrors:
        """What a result says of it."""
        return LayerErrors(self.name, self.count, self.max_abs, self.max_rel, self.max_ulp, self.required, self.share)


@dataclass(slots=True)
class Agreement:
    """One engine on all layers."""

    engine: str
    order: tuple[str, ...]
    tolerance: Tolerance
    version: str | None = None
    dtype: str | None = None
    failure: str | None = None
    layers: dict[str, Errors] = field(default_factory=dict[str, Errors])

    def add(self, layer: str, x: Array, y: Array, reference: Wide, bound: Wide) -> None:
        """Take in one batch of a layer; ``bound`` is the derived one, used where the user gave no tolerance."""
        dtype = y.dtype.name
        self.dtype = dtype if self.dtype is None or unit_roundoff(dtype) > unit_roundoff(self.dtype) else self.dtype
        if self.tolerance.given:
            bound = (self.tolerance.atol or 0.0) + (self.tolerance.rtol or 0.0) * np.abs(reference)
        self.layers.setdefault(layer, Errors(layer)).add(x, y, reference, bound, dtype)

    def result(self) -> EngineResult:
        """The verdict over everything taken in."""
        if self.failure is not None:
            return EngineResult(self.engine, self.version, "failed", self.failure)
        errors = [self.layers[name] for name in self.order if name in self.layers]
        if not errors:
            return EngineResult(self.engine, self.version, "failed", "no layer was reached")
        differing = next((one.name for one in errors if one.share > 1), None)
        worst = max(errors, key=lambda one: one.share)
        return EngineResult(
            self.engine,
            self.version,
            "agrees" if differing is None else "differs",
            None if differing is None else _why(worst, self.dtype),
            max(one.max_abs for one in errors),
            max(one.max_rel for one in errors),
            max(one.max_ulp for one in errors),
            max(one.required for one in errors),
            worst.share,
            differing,
            self.dtype,
            _by_decade(errors),
            tuple(one.public() for one in errors),
            worst.worst,
        )


def _why(errors: Errors, dtype: str | None) -> str:
    worst = errors.worst
    assert worst is not None
    narrow = dtype == "float64" and errors.share <= unit_roundoff("float32") / unit_roundoff("float64")
    at = ",".join(map(str, worst.index))
    return (
        f"{errors.name} at {at}: x = {worst.x:.9g} gives {worst.y:.9g}, the reference {worst.reference:.9g}; "
        f"off by {abs(worst.y - worst.reference):.3g}, allowed {worst.allowed:.3g}"
        + ("; it takes float64 and computes in float32" if narrow else "")
    )


def _by_decade(errors: list[Errors]) -> tuple[Decade, ...]:
    merged: dict[int, list[float]] = {}
    for one in errors:
        for decade, (count, largest, relative) in one.decades.items():
            held = merged.setdefault(decade, [0.0, 0.0, 0.0])
            held[:] = [held[0] + count, max(held[1], largest), max(held[2], relative)]
    return tuple(
        Decade(None if decade == NO_DECADE else decade, int(held[0]), held[1], None if decade == NO_DECADE else held[2])
        for decade, held in sorted(merged.items())
    )


def _in_range(reference: Wide, dtype: str) -> Wide:
    """The reference as the engine's type can hold it: what lies beyond is infinite."""
    largest = LARGEST.get(dtype, math.inf)
    return np.where(np.abs(reference) > largest, np.copysign(np.inf, reference), reference)


def error_of(y: Wide, expected: Wide) -> Wide:
    """``abs(y - expected)``; 0 where both are one infinity or both NaN, infinite where just one is no finite number."""
    with np.errstate(invalid="ignore"):
        same = (y == expected) | (np.isnan(y) & np.isnan(expected))
        error = np.abs(y - expected)
    return np.where(same, 0.0, np.where(np.isfinite(error), error, np.inf))


def _unit(size: Wide, dtype: str) -> Wide:
    """The distance between neighbouring numbers of ``dtype`` at ``size``."""
    lowest = smallest_normal(dtype)
    exponent = np.floor(np.log2(np.maximum(size, lowest)))
    return 2 * unit_roundoff(dtype) * np.exp2(exponent)
