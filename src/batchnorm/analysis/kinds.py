"""The kinds of difference between two layers: each a small function of both in `KINDS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from batchnorm.core.record import LayerRecord

from .constants import ROLES, Constants, distance, largest_change, whole_change
from .difference import Difference, What
from .rounding import SAME, common_divisor, rounded

__all__ = ["IN_EQUATION", "KINDS", "Case"]

Array = NDArray[np.float64]
Role = Literal["gamma", "beta", "moving_mean", "moving_variance"]
DEFAULT_EPSILON = {1e-3: "Keras", 1e-5: "PyTorch, ONNX and Flax", 1e-4: "TensorFlow's operation"}
DECAY_SLACK = 2e-7
"""A momentum that was once a float32, and 1 less it, come back within this."""
BATCH = ("training", "batch-statistics")
CROSSED: tuple[tuple[Role, Role, What], ...] = (
    ("gamma", "beta", "swapped gamma/beta"),
    ("moving_mean", "moving_variance", "swapped mean/variance"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Two layers to compare; ``kindred`` where both come from formats that spell axis and mode alike."""

    a: LayerRecord
    b: LayerRecord
    left: Constants
    right: Constants
    kindred: bool

    def change(self, **taken: Any) -> Array:
        """How far the outputs of the first layer move, per channel, with some constants replaced."""
        return largest_change(self.left, self.left.replace(**taken))

    def held(self, role: str) -> bool:
        """Whether neither side lacks the array because its file does not hold it."""
        statistic = role in ("moving_mean", "moving_variance")
        return not statistic or (getattr(self.a, role) is not None and getattr(self.b, role) is not None)


def _epsilon(case: Case) -> list[Difference]:
    a, b = case.a.epsilon, case.b.epsilon
    if a == b or (a is not None and b is not None and np.float32(a) == np.float32(b)):
        return []
    if a is None or b is None:
        side = "first" if a is None else "second"
        detail = f"the {side} model does not hold its epsilon, so that its output is not known: pass --eps"
        return [Difference("epsilon", a, b, None, detail=detail)]
    change = case.change(epsilon=b)
    lost = DEFAULT_EPSILON.get(b)
    detail = "" if lost is None else f"{b:g} is the default of {lost}: the first model's epsilon may have been lost"
    return [Difference("epsilon", a, b, whole_change(change), int(np.argmax(change)), detail=detail)]


def _decay(case: Case) -> list[Difference]:
    a, b = _decay_of(case.a), _decay_of(case.b)
    if a is None or b is None or a == b:
        return []
    if isinstance(a, str) or isinstance(b, str):
        return [Difference("decay", a, b, 0.0)]
    if abs(a - b) <= DECAY_SLACK:
        return []
    if abs(a + b - 1) <= DECAY_SLACK:
        detail = "each keeps the share of the old value that the other replaces: Keras' momentum is 1 - PyTorch's"
        return [Difference("momentum-convention", a, b, 0.0, detail=detail)]
    return [Difference("decay", a, b, 0.0)]


def _decay_of(record: LayerRecord) -> float | str | None:
    return "cumulative" if record.averaging == "cumulative" else record.decay


def _arrays(case: Case) -> list[Difference]:
    """The four arrays: swapped, divided by another count, rounded, or simply others."""
    found: list[Difference] = []
    rounding: dict[str, tuple[str, str]] = {}
    for first, second, what in CROSSED:
        roles: list[Role] = [role for role in (first, second) if case.held(role)]
        between: dict[Role, tuple[str, str] | None] = {
            role: rounded(getattr(case.left, role), getattr(case.right, role)) for role in roles
        }
        if None in between.values() and _is_swapped(case, first, second):
            found.append(_swapped(case, first, second, what))
            continue
        rounding |= {role: how for role, how in between.items() if how is not None and how[0] != SAME}
        found += [_other(case, role) for role, how in between.items() if how is None]
    return [*found, *_dtype(case, rounding)]


def _is_swapped(case: Case, first: Role, second: Role) -> bool:
    if not (case.held(first) and case.held(second)):
        return False
    crossed = ((first, second), (second, first))
    return all(rounded(getattr(case.left, p), getattr(case.right, q)) is not None for p, q in crossed)


def _swapped(case: Case, first: Role, second: Role, what: What) -> Difference:
    change = case.change(**{role: getattr(case.right, role) for role in (first, second)})
    channel = _worst(change)
    return Difference(
        what,
        _pair_at(case.left, first, second, channel),
        _pair_at(case.right, first, second, channel),
        whole_change(change),
        channel,
        int(np.sum(getattr(case.left, first) != getattr(case.right, first))),
        f"the second model's {second} is the first's {first}, and the other way round",
    )


def _pair_at(constants: Constants, first: Role, second: Role, channel: int) -> list[float]:
    return [float(getattr(constants, role)[channel]) for role in (first, second)]


def _other(case: Case, role: Role) -> Difference:
    left, right = getattr(case.left, role), getattr(case.right, role)
    change = case.change(**{role: right})
    if role == "moving_variance":
        for low, high, a, b in ((left, right, 0, 1), (right, left, 1, 0)):
            n = common_divisor(low, high)
            if n is not None:
                detail = f"every variance is {n}/{n - 1} of the {'first' if b else 'second'} model's: divisor count - 1"
                return Difference("ddof", a, b, whole_change(change), _worst(change), case.a.channels, detail)
    differs = distance(left, right) != 0
    channel = _worst(np.where(differs, change, -1.0))
    a, b = (_at(getattr(record, role), channel) for record in (case.a, case.b))
    return Difference(role, a, b, whole_change(change), channel, int(differs.sum()))


def _at(values: NDArray[Any] | None, channel: int) -> float | None:
    return None if values is None else float(values[channel])


def _dtype(case: Case, rounding: dict[str, tuple[str, str]]) -> list[Difference]:
    if not rounding:
        exact = case.a.dtype == case.b.dtype or not case.held("moving_mean")
        return [] if exact else [Difference("dtype", case.a.dtype, case.b.dtype, 0.0, detail="the values are the same")]
    change = case.change(**{role: getattr(case.right, role) for role in rounding})
    name, side = min(rounding.values(), key=lambda how: ("bfloat16", "float16", "float32").index(how[0]))
    damaged = {"a": name if side == "a" else case.a.dtype, "b": name if side == "b" else case.b.dtype}
    return [
        Difference(
            "dtype",
            damaged["a"],
            damaged["b"],
            whole_change(change),
            _worst(change),
            detail=_rounding_told(tuple(rounding), name, side),
        )
    ]


def _rounding_told(roles: tuple[str, ...], name: str, side: str) -> str:
    listed = " and ".join(roles) if len(roles) < 3 else f"{', '.join(roles[:-1])} and {roles[-1]}"
    if not side:
        return f"{listed} differ{'s' if len(roles) == 1 else ''} in the last digit of {name}"
    whose = "first" if side == "a" else "second"
    return f"the {whose} model's {listed} went through {name}"


def _ddof(case: Case) -> list[Difference]:
    a, b = case.a, case.b
    trains = a.mode == b.mode == "by-call"
    if not trains or a.ddof is None or b.ddof is None or a.ddof == b.ddof:
        return []
    by_values = case.held("moving_variance") and any(
        common_divisor(*pair) is not None
        for pair in (
            (case.left.moving_variance, case.right.moving_variance),
            (case.right.moving_variance, case.left.moving_variance),
        )
    )
    detail = "further training would store its variances with another divisor"
    return [] if by_values else [Difference("ddof", a.ddof, b.ddof, 0.0, detail=detail)]


def _axis(case: Case) -> list[Difference]:
    a, b = case.a.axis, case.b.axis
    known = case.a.averaging != "unknown" and case.b.averaging != "unknown"
    if a == b or not case.kindred or not known or _both_last(a, b):
        return []
    change = _crossed_channels(case.left)
    detail = "where the input is as long on either axis; a shape error elsewhere"
    return [Difference("axis", _spelled(a), _spelled(b), change, detail=detail)]


def _both_last(a: int | tuple[int, ...], b: int | tuple[int, ...]) -> bool:
    # tf.keras counts the last axis of images and sequences from the front; axis 1 is the last of a matrix alone.
    return {type(a), type(b)} == {int} and -1 in (a, b) and max(a, b) >= 2  # type: ignore[operator]


def _spelled(axis: int | tuple[int, ...]) -> int | list[int]:
    return list(axis) if isinstance(axis, tuple) else axis


def _crossed_channels(constants: Constants) -> float:
    """The largest change over all channels c, d when values of channel c meet the constants of channel d."""
    x = constants.ends(constants)
    own = constants.output(x)
    scale = constants.scale()
    largest = 0.0
    with np.errstate(all="ignore"):
        for c in range(len(constants.gamma)):
            others = scale * (x[:, c, None] - constants.moving_mean) + constants.beta
            largest = float(np.maximum(largest, np.max(distance(own[:, c, None], others))))
    return largest


def _mode(case: Case) -> list[Difference]:
    a, b = case.a.mode, case.b.mode
    if a is None or b is None or a == b:
        return []
    if (a in BATCH) == (b in BATCH):
        return [Difference("mode", a, b, 0.0)] if case.kindred else []
    x = case.left.ends(case.left)
    change = distance(case.left.output(x), np.broadcast_to(case.left.beta, x.shape)).max(axis=0)
    which = "second" if b in BATCH else "first"
    largest = whole_change(change)
    detail = f"the {which} model normalises with each batch's own statistics; a batch that is constant gives beta"
    return [Difference("mode", a, b, largest, _worst(change), detail=detail)]


def _worst(change: Array) -> int:
    return int(np.argmax(np.nan_to_num(change, nan=np.inf)))


KINDS: tuple[Callable[[Case], list[Difference]], ...] = (_epsilon, _arrays, _axis, _mode, _decay, _ddof)
IN_EQUATION = ("epsilon", *ROLES, "ddof", "swapped gamma/beta", "swapped mean/variance", "dtype")
