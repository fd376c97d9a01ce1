"""Compiled kernels need Numba; without it only the tests of the way without it run."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("numba") else ["test_forward.py", "test_backward.py"]
