"""Batch normalization for Flax: `BatchNorm` in the place of `flax.nnx.BatchNorm`, and what moves models to it."""

from __future__ import annotations

from batchnorm.errors import require

require("flax", "jax", "batchnorm.flax")

from batchnorm.layers.flax import BatchNorm, SkippedUpdates, convert, freeze, from_linen, to_linen, unfreeze  # noqa: E402

__all__ = ["BatchNorm", "SkippedUpdates", "convert", "freeze", "from_linen", "to_linen", "unfreeze"]
