"""The command: parse, call, render, exit status."""

from . import about, checking, comparing, reading
from .program import main, run

__all__ = ["about", "checking", "comparing", "main", "reading", "run"]
