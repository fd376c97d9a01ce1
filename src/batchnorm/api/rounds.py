"""All engines over everything that is fed, each batch beside the float64 reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batchnorm.analysis.agreement import Agreement, EngineResult, Tolerance, allowed
from batchnorm.analysis.constants import Constants
from batchnorm.core.record import LayerRecord
from batchnorm.engines.norms import ENGINES, NormCall, installed
from batchnorm.engines.workers import EngineFailed, Workers

from .feeding import Fed, Saver

__all__ = ["Round"]


@dataclass(slots=True, eq=False)
class Round:
    """All engines over everything that is fed."""

    workers: Workers
    names: Sequence[str]
    asked: bool
    records: Sequence[LayerRecord]
    tolerance: Tolerance
    agreements: dict[str, Agreement] = field(default_factory=dict[str, Agreement])

    def over(self, source: Iterable[Fed], saver: Saver | None) -> tuple[tuple[EngineResult, ...], EngineResult | None]:
        """The result of each engine, and of the model's own run."""
        order = tuple(record.name for record in self.records)
        lacking = {name: missing for name in self.names if (missing := installed(ENGINES[name])) is not None}
        self.agreements = {n: Agreement(n, order, self.tolerance) for n in self.names if n not in lacking}
        run = Agreement("model", order, self.tolerance)
        for fed in source:
            if saver is not None:
                saver.add(fed)
            self._compute(fed)
            if fed.y is not None:
                _take_run(run, fed, fed.y)
        for name, agreement in self.agreements.items():
            agreement.version = self.workers.versions.get(name)
        results = [
            _lacking(name, lacking[name], self.asked) if name in lacking else self.agreements[name].result()
            for name in self.names
        ]
        return tuple(results), run.result() if run.layers else None

    def _compute(self, fed: Fed) -> None:
        working = [one for one in self.agreements.values() if one.failure is None]
        if not working:
            return
        call = _call(fed)
        reference = self.workers.compute("reference", call)
        constants = _constants(fed)
        for agreement in working:
            try:
                y = self.workers.compute(agreement.engine, call)
            except EngineFailed as error:
                agreement.failure = f"{fed.record.name}: {error}"
                continue
            if y.shape != call.x.shape:
                agreement.failure = f"{fed.record.name}: its output has the shape {y.shape}, not {call.x.shape}"
                continue
            agreement.add(fed.record.name, call.x, y, reference, allowed(constants, call.x, y))


def _call(fed: Fed) -> NormCall:
    record = fed.record
    dtype = np.float64 if record.dtype == "float64" else np.float32
    arrays = (record.gamma, record.beta, record.moving_mean, record.moving_variance)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite in the engines as well
        gamma, beta, mean, variance = (None if array is None else array.astype(dtype) for array in arrays)
        x = np.ascontiguousarray(fed.x.astype(dtype))
    assert mean is not None
    assert variance is not None
    assert record.epsilon is not None
    return NormCall(x, gamma, beta, mean, variance, record.epsilon, fed.axis)


def _constants(fed: Fed) -> Constants:
    assert fed.record.epsilon is not None
    return Constants.of(fed.record, fed.record.epsilon).along(fed.x.ndim, fed.axis)


def _take_run(run: Agreement, fed: Fed, y: Any) -> None:
    """What the model itself gave, beside the reference on the very input that it captured."""
    constants = _constants(fed)
    reference = constants.output(fed.x.astype(np.float64))
    run.add(fed.record.name, fed.x, y, reference, allowed(constants, fed.x, y))


def _lacking(name: str, missing: str, asked: bool) -> EngineResult:
    extra = ENGINES[name].extra
    why = f"{name} needs {missing}, which is not installed. Install it with: pip install 'batchnorm[{extra}]'"
    return EngineResult(name, None, "failed" if asked else "unavailable", why)
