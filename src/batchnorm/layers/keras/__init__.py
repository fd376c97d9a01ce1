"""The layer for Keras 3, on TensorFlow, JAX and PyTorch."""

from .convert import convert, freeze, unfreeze
from .layer import BatchNormalization

__all__ = ["BatchNormalization", "convert", "freeze", "unfreeze"]
