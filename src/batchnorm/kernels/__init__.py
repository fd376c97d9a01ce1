"""The same mathematics, fast: compiled kernels held to `batchnorm.core` by tests.

`cpu` is the door. Nothing here is imported, and Numba never is, before a kernel is asked for.
"""
