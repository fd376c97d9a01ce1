"""What every reader returns and every analysis takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from .record import LayerRecord

__all__ = ["Capture", "Masked", "Model"]

Capture = dict[str, list[tuple[NDArray[Any], NDArray[Any]]]]
"""Layer name -> (input, output) of each of its calls, in the order of the calls."""


class Masked(dict[str, list[tuple[NDArray[Any], NDArray[Any]]]]):
    """A `Capture` that also tells which positions hold no data.

    Attributes
    ----------
    masks : dict
        Layer name -> for each call the mask that the layer itself was given, True where it counts, or None.
    padding : array or None
        The positions that the model itself takes for data, one row a sample, whatever its layers make of that.
    order : dict
        The names of the layers as they were first called.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__({name: [] for name in names})
        self.masks: dict[str, list[NDArray[Any] | None]] = {name: [] for name in names}
        self.padding: NDArray[Any] | None = None
        self.order: dict[str, None] = {}


@runtime_checkable
class Model(Protocol):
    """A trained model, read: the batch normalizations it holds and, where an engine can, a way to run it."""

    @property
    def path(self) -> str:
        """Where it was read from; the object's own name for live objects."""
        ...

    @property
    def format(self) -> str:
        """``"keras"``, ``"hdf5"``, ``"numpy"``, ..."""
        ...

    @property
    def layers(self) -> tuple[LayerRecord, ...]:
        """Every batch normalization, in the order of the data's way where the format tells it."""
        ...

    @property
    def other_layers(self) -> tuple[str, ...]:
        """Names of what else the model holds, for the message that there is no batch normalization."""
        ...

    def run(self, x: Any, capture: Sequence[str] = ()) -> tuple[Any, Capture]:
        """Outputs of the model in inference mode, and what went in and out of the named layers."""
        ...
