"""Compiled kernels need Numba; without it only the tests of the way without it run."""

import importlib.util

COMPILED = ("forward", "backward", "on_arrays", "intrinsics", "launch", "layer", "streaming")
collect_ignore = [] if importlib.util.find_spec("numba") else [f"test_{name}.py" for name in COMPILED]
