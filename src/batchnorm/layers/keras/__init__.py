"""The layer for Keras 3, on TensorFlow, JAX and PyTorch."""

from .layer import BatchNormalization

__all__ = ["BatchNormalization"]
