"""From the times of the rounds to ratios: each taken within one round, then the median over the rounds."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from .engines import ROOF
from .runner import Timing

OURS = ("ours", "ours_torch")


class Ratio(NamedTuple):
    """Median of a ratio over the rounds, and the quartiles around it."""

    median: float
    low: float
    high: float
    best: float
    """Of the fastest times of the run, whatever rounds they are from: what is left when the machine was busy."""

    def __format__(self, spec: str) -> str:
        return format(self.median, spec)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median


def ratio(over: list[float], under: list[float]) -> Ratio:
    """``over / under``, round by round."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    best = min(over) / min(under)
    if len(each) < 2:
        return Ratio(each[0], each[0], each[0], best)
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
    return Ratio(middle, low, high, best)


def roof(timing: Timing) -> list[float] | None:
    """Seconds that the case's bytes take, round by round: the faster copy, by the tensors that must be touched."""
    copies = [timing.seconds[name] for name in ROOF if name in timing.seconds]
    return [min(each) * timing.case.passes / 2 for each in zip(*copies, strict=True)] if copies else None


def share_of_roof(timing: Timing, engine: str) -> Ratio | None:
    """The roof's time over the engine's: 1 is as fast as a copy of the least bytes."""
    top = roof(timing)
    return None if top is None or engine not in timing.seconds else ratio(top, timing.seconds[engine])


def times_faster(timing: Timing, ours: str, rival: str) -> Ratio | None:
    """The rival's time over ours."""
    if ours not in timing.seconds or rival not in timing.seconds:
        return None
    return ratio(timing.seconds[rival], timing.seconds[ours])


def document(timings: list[Timing], machine: dict[str, Any], versions: dict[str, str], plan: dict[str, Any]) -> dict:
    """Everything, for JSON."""
    return {
        "schema": "batchnorm/benchmark/1",
        "machine": machine,
        "versions": versions,
        "plan": plan,
        "results": [_result(timing) for timing in timings],
    }


def _result(timing: Timing) -> dict[str, Any]:
    engines = {}
    for name, seconds in timing.seconds.items():
        share = share_of_roof(timing, name)
        engines[name] = {
            "median_seconds": statistics.median(seconds),
            "share_of_roof": None if share is None else share._asdict(),
            "over_ours": {
                ours: found._asdict() for ours in OURS if (found := times_faster(timing, ours, name)) is not None
            },
            "error": timing.errors.get(name),
            "seconds": seconds,
        }
    return {"case": timing.case.as_dict(), "threads": timing.threads, "engines": engines, "absent": timing.absent}
