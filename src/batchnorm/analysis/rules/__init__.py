"""The rules of ``batchnorm check``: each a small function in a table; records, graph and measurements in, hits out."""

from .finding import RANK, Finding, Hit, Level, Rule, Subject
from .table import RULES, apply, named, of_record

__all__ = ["RANK", "RULES", "Finding", "Hit", "Level", "Rule", "Subject", "apply", "named", "of_record"]
