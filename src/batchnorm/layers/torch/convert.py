"""Swapping torch's layers for ours in a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from .layer import Statistics
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .sync import SyncBatchNorm
from .tree import reborn, swap

__all__ = ["convert"]

OURS: dict[type[nn.Module], Any] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}


def convert(
    module: nn.Module,
    *,
    statistics: Statistics = "moving",
    guard: bool = True,
    virtual_batch_size: int | None = None,
) -> Any:
    """Replace torch's batch norms in a model by ours, in place.

    Parameters
    ----------
    module : Module
        A layer or anything that holds some.
    statistics, guard, virtual_batch_size
        As in `BatchNorm1d`, for every layer that is replaced (a synchronised one keeps its batch whole).

    Returns
    -------
    Module
        ``module``, or its replacement where it is a batch norm itself.

    Raises
    ------
    ArgumentError
        A setting that does not fit a layer: a layer with momentum=None cannot be ``"debiased"``.

    Notes
    -----
    Parameters are the same objects, so an optimizer goes on; running statistics, hooks, training flags and other
    attributes are kept, and so are outputs to rounding. One layer in several places stays one layer. ``"debiased"``
    takes statistics that were trained elsewhere as they are, and starts afresh where a layer has seen no batch.

    Left alone: layers of ours already, lazy layers before their first input, and subclasses of torch's layers, whose
    additions nobody knows. A layer that a module keeps outside its tracked children (a plain list) is not found.

    Examples
    --------
    >>> convert(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))[1]
    BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """

    def replacement(layer: nn.Module) -> nn.Module | None:
        kind = OURS.get(type(layer))
        if kind is None:
            return None
        new = reborn(layer, kind)
        new._configure(statistics, guard, None if kind is SyncBatchNorm else virtual_batch_size)
        return new

    return swap(module, replacement, "convert")
