"""Batch normalization you can understand, trust, repair and run fast."""

__version__ = "0.1.0"
