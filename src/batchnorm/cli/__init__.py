"""The command: parse, call, render, exit status."""

from . import about, checking, comparing, mending, reading, recalibrating
from .program import main, run

__all__ = ["about", "checking", "comparing", "main", "mending", "reading", "recalibrating", "run"]
