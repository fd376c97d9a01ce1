"""Batch normalization over a batch that is spread over processes."""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from batchnorm.errors import ArgumentError

from .collective import active_group
from .layer import Layer, Statistics
from .modules import Activated
from .tree import reborn, swap

__all__ = ["SyncBatchNorm", "SyncBatchNormAct"]


class SyncBatchNorm(Layer):
    """Batch normalization with the statistics of all processes' batches together: `torch.nn.SyncBatchNorm`, on CPU too.

    ``mean, variance`` are those of the joined batch: the parts' moments merged by count (Chan, Golub and LeVeque,
    1983, section 3).

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        As in `BatchNorm1d`.
    process_group : ProcessGroup, optional
        The processes to synchronise with; None is all of them.
    statistics, guard
        As in `BatchNorm1d`.

    Raises
    ------
    ArgumentError, TypeError
        As in `BatchNorm1d`. One element per channel is an error only where there is nobody to synchronise with.

    Notes
    -----
    Input ``(N, C, ...)`` of any rank from 2; ``forward(x, mask=None)``. Works on CPU (gloo) and GPU (nccl). Batches may
    differ in size and in mask, and some may be empty: those processes take part in the communication all the same, so
    let their loss depend on the (empty) output and call ``backward()``. One gather of 4 numbers a channel in forward,
    one sum of 2 in backward, in float32 (float64 for float64). As in torch, gradients of weight and bias are each
    process' own: `DistributedDataParallel` averages them.

    Differs from torch's: CPU; unequal batches to rounding; variances merge as they are, not by way of 1/sqrt(variance +
    eps), which costs 0.9 % at variance 1e-10; double backward; `torch.compile`. It is a torch batch norm to
    `isinstance`, not a `torch.nn.SyncBatchNorm`: DistributedDataParallel refuses those on CPU.

    Examples
    --------
    >>> from torch import nn
    >>> SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))[1]
    SyncBatchNorm(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """

    ranks = tuple(range(2, 8))
    joins = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        statistics: Statistics = "moving",
        guard: bool = True,
    ) -> None:
        absent = {} if bias else {"bias": False}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **absent)
        self.process_group = process_group
        self._configure(statistics, guard)

    def _group(self) -> Any:
        return active_group(self.process_group)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Replace every batch norm in ``module``, torch's and ours, by a synchronised one; see `convert`.

        Weights, statistics, hooks, training flags and our settings are kept; the activation of a `BatchNormAct2d` too.
        """

        def replacement(layer: nn.Module) -> nn.Module | None:
            return cls._synchronised(layer, process_group) if isinstance(layer, _BatchNorm) else None

        return swap(module, replacement, "convert_sync_batchnorm")

    @classmethod
    def _synchronised(cls, layer: _BatchNorm, process_group: Any) -> nn.Module:
        if getattr(layer, "virtual_batch_size", None) is not None:
            raise ArgumentError(
                f"convert_sync_batchnorm: virtual_batch_size splits a batch and synchronising joins batches; got a "
                f"{type(layer).__name__} with virtual_batch_size={getattr(layer, 'virtual_batch_size', None)}. "
                "Set it to None first, or convert the parts of the model without that layer."
            )
        new = reborn(layer, SyncBatchNormAct if getattr(layer, "activation", None) else cls)
        new.process_group = process_group
        if not isinstance(layer, Layer):
            new._configure()
        return new


class SyncBatchNormAct(Activated, SyncBatchNorm):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`SyncBatchNorm`, residual add and activation in one operation; see `BatchNormAct1d`."""
