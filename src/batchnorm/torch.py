"""Batch normalization for PyTorch: drop-in layers, a functional, synchronisation, freezing and conversion."""

from __future__ import annotations

from batchnorm.errors import require

require("torch", "torch", "batchnorm.torch")

from batchnorm.layers.torch.convert import convert  # noqa: E402
from batchnorm.layers.torch.functional import batch_norm  # noqa: E402
from batchnorm.layers.torch.modules import (  # noqa: E402
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
)
from batchnorm.layers.torch.sync import SyncBatchNorm, SyncBatchNormAct  # noqa: E402
from batchnorm.layers.torch.tree import freeze, unfreeze  # noqa: E402

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "SyncBatchNorm",
    "SyncBatchNormAct",
    "batch_norm",
    "convert",
    "freeze",
    "unfreeze",
]
