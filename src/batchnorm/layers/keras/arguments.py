"""The constructor's arguments, checked once; every message names the layer, the argument, the value and the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from batchnorm.core.equations import Limits
from batchnorm.core.training import Renorm, Rule
from batchnorm.errors import ArgumentError

__all__ = ["check_axis", "check_parts", "check_synchronized", "fraction", "limits", "positive", "rule"]


def check_axis(axis: Any, who: str) -> int | tuple[int, ...]:
    """An int, or a tuple of ints from any sequence."""
    if isinstance(axis, int) and not isinstance(axis, bool):
        return axis
    if isinstance(axis, Sequence) and axis and not isinstance(axis, str):
        several = cast("Sequence[Any]", axis)
        if all(isinstance(one, int) and not isinstance(one, bool) for one in several):
            return tuple(several) if len(several) > 1 else several[0]
    raise ArgumentError(
        f"{who}: axis must be an int or a sequence of ints; got {axis!r}. Pass the axis that holds the channels."
    )


def positive(value: Any, name: str, who: str) -> float:
    """A number above 0."""
    number = float(value)
    if not 0 < number < float("inf"):
        raise ArgumentError(f"{who}: {name} must be positive; got {value!r}. Keras' default is 0.001.")
    return number


def fraction(value: Any, name: str, who: str) -> float:
    """A number from 0 to 1."""
    number = float(value)
    if not 0 <= number <= 1:
        raise ArgumentError(
            f"{who}: {name} must be between 0 and 1; got {value!r}. It is the share of the old value that one update "
            "keeps; Keras' default is 0.99."
        )
    return number


def rule(
    statistics: Any,
    *,
    epsilon: Any,
    momentum: Any,
    ddof: Any,
    guard: bool,
    renorm: Renorm | None,
    defaults: bool,
    who: str,
) -> Rule:
    """The rule of `core.training`; ``defaults``: whether the moving statistics start from 0 and 1."""
    if statistics not in ("moving", "debiased", "cumulative"):
        raise ArgumentError(
            f'{who}: statistics must be "moving", "debiased" or "cumulative"; got {statistics!r}. "moving" is Keras\' way.'
        )
    if statistics == "debiased" and not defaults:
        raise ArgumentError(
            f'{who}: statistics="debiased" takes the initial values 0 and 1 out of the moving statistics, so '
            "moving_mean_initializer and moving_variance_initializer must be 'zeros' and 'ones'; got others. "
            'Leave them at their defaults, or pass statistics="moving".'
        )
    if ddof not in (0, 1) or isinstance(ddof, bool):
        raise ArgumentError(f"{who}: ddof must be 0 (Keras) or 1 (PyTorch); got {ddof!r}.")
    return Rule(
        epsilon=positive(epsilon, "epsilon", who),
        decay=fraction(momentum, "momentum", who),
        ddof=ddof,
        statistics=statistics,
        guard=bool(guard),
        renorm=renorm,
    )


def limits(clipping: Mapping[str, Any] | None, who: str) -> Limits:
    """The limits of ``renorm_clipping``."""
    given = dict(clipping or {})
    if unknown := sorted(set(given) - {"rmax", "rmin", "dmax"}):
        raise ArgumentError(
            f"{who}: Received invalid keys for renorm_clipping: {unknown}. Use rmax, rmin and dmax, each optional."
        )
    rmin, rmax, dmax = (given.get(name) for name in ("rmin", "rmax", "dmax"))
    if rmin is not None and rmax is not None and rmax < rmin:
        raise ArgumentError(f"{who}: rmax should be at least rmin in renorm_clipping; got rmax={rmax}, rmin={rmin}.")
    if dmax is not None and dmax < 0:
        raise ArgumentError(f"{who}: dmax should be non-negative in renorm_clipping; got dmax={dmax}.")
    return Limits(rmin, rmax, dmax)


def check_parts(virtual_batch_size: Any, axis: int | tuple[int, ...], synchronized: bool, who: str) -> int | None:
    """A whole number of samples of which the statistics of one part are made."""
    if virtual_batch_size is None:
        return None
    if not isinstance(virtual_batch_size, int) or isinstance(virtual_batch_size, bool) or virtual_batch_size < 1:
        raise ArgumentError(f"{who}: virtual_batch_size must be a positive int or None; got {virtual_batch_size!r}.")
    if synchronized:
        raise ArgumentError(
            f"{who}: virtual_batch_size splits a batch and synchronized joins batches; got both "
            f"(virtual_batch_size={virtual_batch_size}). Pass one of them."
        )
    if 0 in (axis if isinstance(axis, tuple) else (axis,)):
        raise ArgumentError(
            f"{who}: virtual_batch_size splits axis 0, which axis={axis} says holds channels. Pass another axis."
        )
    return virtual_batch_size


def check_synchronized(synchronized: Any, backend: str, who: str) -> bool:
    """Possible where there are replicas to join."""
    if synchronized and backend not in ("tensorflow", "torch", "jax"):
        raise ArgumentError(
            f"{who}: synchronized must be False on the {backend} backend; got {synchronized!r}. It joins the replicas "
            "of TensorFlow or PyTorch (and is how JAX always works)."
        )
    return bool(synchronized)
