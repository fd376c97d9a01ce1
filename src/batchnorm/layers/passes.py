"""One part of a batch on its way through the NumPy layer, forward and back. No state: arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchnorm.core import equations
from batchnorm.core.equations import Moments
from batchnorm.core.plan import Plan
from batchnorm.core.training import Renorm, Rule, State, inference_statistics

__all__ = ["Part", "Tape", "backward", "forward_inference", "forward_training"]

Array = NDArray[Any]


class Part(NamedTuple):
    """A part of a batch: its values in float64, its plan, which elements count, and how many of each channel."""

    values: Array
    how: Plan
    counted: Array | None
    count: Any


@dataclass(frozen=True, slots=True, eq=False)
class Tape:
    """What the way back of one part needs.

    Attributes
    ----------
    x_hat : array
        The normalised input.
    corrected : array
        What gamma multiplied: ``x_hat * r + d`` with renorm, else ``x_hat`` itself.
    scale : array
        ``gamma * inv_std * r``: what a difference of two inputs is multiplied by.
    part : Part
        Counts and mask; a count of 0 means that the statistics did not come from the batch.
    """

    x_hat: Array
    corrected: Array
    scale: Array
    part: Part

    @property
    def count(self) -> Any:
        """Counted elements of each channel; 0 where the statistics did not come from the batch."""
        return self.part.count


def forward_inference(
    part: Part, rule: Rule, state: State, gamma: Array | None, beta: Array | None
) -> tuple[Array, Tape]:
    """Output and tape where the layer's own statistics normalise; gamma, beta and the state broadcast."""
    mean, variance = inference_statistics(np, rule, state)
    inverse = equations.inv_std(np, variance, rule.epsilon)
    x_hat = equations.standardize(part.values, mean, 0.0, inverse)
    return _scaled(x_hat, x_hat, inverse, gamma, beta, part._replace(count=0))


def forward_training(
    part: Part, rule: Rule, state: State, gamma: Array | None, beta: Array | None
) -> tuple[Array, Tape, Moments]:
    """Output, tape and moments where the batch normalises itself; its count must be at least 1."""
    batch = equations.moments(np, part.values, part.how.reduced, part.count, part.counted)
    inverse = equations.inv_std(np, batch.variance, rule.epsilon)
    x_hat = equations.standardize(part.values, batch.high, batch.low, inverse)
    if rule.renorm is None:
        return *_scaled(x_hat, x_hat, inverse, gamma, beta, part), batch
    r, d = _correction(batch, rule, rule.renorm, state)
    return *_scaled(x_hat, equations.affine(x_hat, r, d), inverse * r, gamma, beta, part), batch


def backward(tape: Tape, grad: Array) -> tuple[Array, Array, Array]:
    """Gradients of the input, gamma and beta; the last two keep the rank of the input."""
    part = tape.part
    axes = part.how.reduced
    dbeta, along = equations.parameter_gradients(np, grad, tape.x_hat, axes, part.counted)
    dgamma = along
    if tape.corrected is not tape.x_hat:
        _, dgamma = equations.parameter_gradients(np, grad, tape.corrected, axes, part.counted)
    if not part.count:  # the statistics are constants: nothing flows through them
        return tape.scale * grad, dgamma, dbeta
    dx = equations.input_gradient(np, grad, tape.x_hat, tape.scale, (dbeta, along), part.count, part.counted)
    return dx, dgamma, dbeta


def _correction(batch: Moments, rule: Rule, renorm: Renorm, state: State) -> tuple[Array, Array]:
    return equations.renorm(np, batch, state["renorm_mean"], state["renorm_stddev"], rule.epsilon, renorm.limits)


def _scaled(
    x_hat: Array, corrected: Array, inverse: Array, gamma: Array | None, beta: Array | None, part: Part
) -> tuple[Array, Tape]:
    scale = inverse if gamma is None else inverse * gamma
    return equations.affine(corrected, gamma, beta), Tape(x_hat, corrected, scale, part)
