"""What an engine must be able to do so that a model's statistics can be measured anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from .accumulator import Accumulator
from .padding import LeftOut, Told
from .record import LayerRecord

__all__ = ["Bench", "Trace"]


@dataclass(frozen=True, slots=True)
class Trace:
    """What one batch shows of the data's way.

    Parameters
    ----------
    order : tuple of str
        The layers that the data reach, in the order of their first calls.
    feeds : mapping of str to frozenset of str
        Layer -> those whose input depends on its output, by whatever way; itself where one call feeds another.
    reached : mapping of str to float
        Layer -> the share of a forward's time that has passed when its last call begins, 0 to 1.
    once : bool
        Whether every layer is called once; a pass can then stop at the layer it measures.
    seconds : float
        Of one forward of a whole batch.
    padded : frozenset of str, optional
        The layers along whose inputs the padding lies that the data tell of, or that are given a mask by the model;
        None where the data tell of none.
    """

    order: tuple[str, ...]
    feeds: Mapping[str, frozenset[str]]
    reached: Mapping[str, float] = field(default_factory=dict[str, float])
    once: bool = True
    seconds: float = 0.0
    padded: frozenset[str] | None = None


class Bench(Protocol):
    """A model on an engine, whose batch normalizations can be measured and given other statistics.

    Everything happens inside `session`, which puts the model back as it was, whatever happens. A batch is what the
    engine takes as the model's input.
    """

    @property
    def records(self) -> Sequence[LayerRecord]:
        """The layers that hold statistics, as they were when the bench was made."""
        ...

    def session(self) -> AbstractContextManager[None]:
        """Inference mode, noise off; on leaving, everything is as before to the bit."""
        ...

    def trace(self, batch: Any, told: Told | None = None) -> Trace:
        """Run one batch to learn the data's way, and where the padding lies that is told of."""
        ...

    def measure(
        self,
        batch: Any,
        layers: Collection[str],
        training: Collection[str] = (),
        left_out: LeftOut | None = None,
    ) -> dict[str, Accumulator]:
        """Moments of what each of ``layers`` gets, over all its calls, channels flattened in C order.

        Layers in ``training`` normalise with the moments of the batch (divisor count), all others with what they hold.
        A layer that is not called is left out. Padding that is ``left_out`` takes no part in any moments; a layer that
        the model itself gives a mask keeps to that.
        """
        ...

    def outputs(self, batch: Any, training: Collection[str] = (), left_out: LeftOut | None = None) -> Any:
        """The model's outputs as arrays, in their structure; ``training`` and ``left_out`` as in `measure`."""
        ...

    def write(self, layer: str, mean: Any, variance: Any) -> None:
        """Let a layer hold other statistics, until the session ends."""
        ...
