"""PyTorch layers over the core; the public door is `batchnorm.torch`."""
