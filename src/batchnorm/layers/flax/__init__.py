"""The layer for Flax NNX: state and options (`layer`), derivative and devices (`training`), conversion (`convert`)."""

from .convert import convert, freeze, from_linen, to_linen, unfreeze
from .layer import BatchNorm, SkippedUpdates

__all__ = ["BatchNorm", "SkippedUpdates", "convert", "freeze", "from_linen", "to_linen", "unfreeze"]
