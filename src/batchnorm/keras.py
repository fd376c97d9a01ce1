"""`BatchNormalization` for Keras 3 and what goes with it. Importing this module registers the layer for loading."""

from batchnorm.layers.keras import BatchNormalization, convert, freeze, unfreeze

__all__ = ["BatchNormalization", "convert", "freeze", "unfreeze"]
