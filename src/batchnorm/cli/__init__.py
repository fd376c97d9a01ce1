"""The command: parse, call, render, exit status."""

from . import about, comparing, reading
from .program import main, run

__all__ = ["about", "comparing", "main", "reading", "run"]
