"""Whether compiled code can be kept on disk.

Numba keeps it beside the source, else in the user's cache folder, else nowhere: and then says so with an error where a
function is declared. Kernels are compiled anew in every process there.
"""

# Numba's decorators are untyped.
# pyright: basic, reportMissingTypeStubs=false
from __future__ import annotations

from numba import njit

__all__ = ["CACHE"]


def _probe() -> None:
    """Nothing."""


def _possible() -> bool:
    try:
        njit(cache=True)(_probe)
    except RuntimeError:
        return False
    return True


CACHE = _possible()
