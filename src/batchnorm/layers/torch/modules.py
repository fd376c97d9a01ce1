"""The public layers: torch's signatures, and ours behind a keyword."""

# torch leaves many parameters of its own functions untyped.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from . import quick
from .activations import activation as checked_activation
from .layer import Layer, Statistics

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchNormAct1d", "BatchNormAct2d", "BatchNormAct3d"]


class _Plain(Layer):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        statistics: Statistics = "moving",
        guard: bool = True,
        virtual_batch_size: int | None = None,
    ) -> None:
        # Releases of torch before 2.12 have no bias argument.
        absent = {} if bias else {"bias": False}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **absent)
        self._configure(statistics, guard, virtual_batch_size)


class BatchNorm1d(_Plain, nn.BatchNorm1d):
    """Batch normalization of ``(N, C)`` or ``(N, C, L)``: `torch.nn.BatchNorm1d`, and more.

    ``y = weight * (x - mean) / sqrt(variance + eps) + bias``, per channel over all other axes.

    Parameters
    ----------
    num_features : int
        C, the number of channels.
    eps : float
        Added to the variance inside the root; positive.
    momentum : float or None
        Share of the batch in an update of the running statistics, 0 to 1. None: their plain mean over all batches.
    affine, bias : bool
        Whether there are weight (gamma) and bias (beta).
    track_running_stats : bool
        False keeps no running statistics: inference normalises with the batch's as well.
    device, dtype
        Of the parameters. The running statistics are float32 also where ``dtype`` has 16 bits.
    statistics : {"moving", "debiased", "cumulative"}
        ``"moving"`` is torch's way: the initial 0 and 1 fade at the pace of the momentum. ``"debiased"`` takes them
        out: right from the first update. ``"cumulative"`` is ``momentum=None``.
    guard : bool
        A channel whose batch statistics are NaN or infinite keeps its running statistics, and counts that in
        ``skipped_updates``. The output shows the NaN all the same. False is torch's way: the channel is lost for good.
    virtual_batch_size : int, optional
        Normalise the batch in parts of this many samples, one update each.

    Raises
    ------
    ArgumentError
        (A ValueError.) At construction: eps, momentum, statistics or virtual_batch_size out of range. In forward: an
        input of another rank or channel count; one element per channel in training; a mask that does not broadcast.
    TypeError
        An input that is complex or not floating point; a mask that is not boolean.

    Notes
    -----
    ``forward(x, mask=None)``: a boolean mask, true where an element counts in the statistics, of the shape of ``x``
    without its channel axis, or of its rank with 1 there. Masked positions are normalised like any other. Where
    everything is masked the running statistics normalise and nothing is updated. Inference takes no notice of it.

    Differs from torch's layer: a constant channel gives exactly ``bias``; a large mean costs no accuracy; an empty
    batch changes nothing; statistics are updated once under activation checkpointing; `freeze` survives ``train()``.

    The variance is a corrected two-pass around the first counted element (Chan, Golub and LeVeque, The American
    Statistician 37, 1983), in float32, or float64 for float64. The gradient is in closed form (Ioffe and Szegedy,
    arXiv:1502.03167).

    Examples
    --------
    >>> import torch
    >>> layer = BatchNorm1d(1, statistics="debiased")
    >>> layer(torch.tensor([[1.0], [5.0]])).ravel()
    tensor([-1.0000,  1.0000], grad_fn=<ViewBackward0>)
    >>> layer.running_mean.round(), layer.running_var.round()
    (tensor([3.]), tensor([8.]))
    """

    ranks = (2, 3)


class BatchNorm2d(_Plain, nn.BatchNorm2d):
    """Batch normalization of ``(N, C, H, W)``: `torch.nn.BatchNorm2d`, and more; see `BatchNorm1d`."""

    ranks = (4,)


class BatchNorm3d(_Plain, nn.BatchNorm3d):
    """Batch normalization of ``(N, C, D, H, W)``: `torch.nn.BatchNorm3d`, and more; see `BatchNorm1d`."""

    ranks = (5,)


class Activated(Layer):
    """Adds the activation and the residual to a layer: ``activation(batch_norm(x) + residual)``."""

    def __init__(self, *args: Any, activation: str | None = "relu", **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.activation = checked_activation(activation, type(self).__name__)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """``activation(batch_norm(input) + residual)``; ``residual`` has the shape of ``input``."""
        return quick.call(self, input, residual) if mask is None else self._normalize(input, mask, residual)


class BatchNormAct1d(Activated, BatchNorm1d):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Batch normalization, residual add and activation in one operation, on ``(N, C)`` or ``(N, C, L)``.

    ``y = activation(weight * (x - mean) / sqrt(variance + eps) + bias + residual)``

    Parameters
    ----------
    activation : {"relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "tanh"} or None
        Applied last.
    **keywords
        Those of `BatchNorm1d`.

    Notes
    -----
    ``forward(x, residual=None, mask=None)``. Backward keeps ``x`` and ``residual`` and recomputes what lies between:
    neither the normalised input nor the sum is stored, and half precision is rounded once, at the end.

    It is a torch batch norm to `isinstance`. What replaces such layers without knowing this one drops the activation:
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` does, `batchnorm.torch.SyncBatchNorm.convert_sync_batchnorm` does
    not; `torch.nn.utils.fusion` folds the normalisation alone.

    Examples
    --------
    >>> import torch
    >>> BatchNormAct1d(1)(torch.tensor([[1.0], [5.0]])).ravel()
    tensor([0.0000, 1.0000], grad_fn=<ViewBackward0>)
    """


class BatchNormAct2d(Activated, BatchNorm2d):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`BatchNormAct1d` on ``(N, C, H, W)``."""


class BatchNormAct3d(Activated, BatchNorm3d):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`BatchNormAct1d` on ``(N, C, D, H, W)``."""
