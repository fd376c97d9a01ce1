"""What folding asks of a format: an operation with new weights, and the batch normalizations that it takes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from batchnorm.core.graph import Operation

__all__ = ["Change"]


@dataclass(frozen=True, slots=True)
class Change:
    """An operation with a new kernel and bias, and the batch normalizations that it takes in.

    Parameters
    ----------
    operation : Operation
        As the graph has it.
    kernel, bias : array
        As the format stores them, in the type that the kernel had; there is always a bias.
    norms : tuple of Operation
        Those that vanish: what took their output takes their input.
    """

    operation: Operation
    kernel: NDArray[Any]
    bias: NDArray[Any]
    norms: tuple[Operation, ...]
