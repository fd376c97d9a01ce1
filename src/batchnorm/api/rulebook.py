"""Which rules apply, and their pages: ``bn.rules``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources

from batchnorm.analysis.rules import RULES, Rule, named
from batchnorm.errors import ArgumentError

from .findings import RuleBook

__all__ = ["chosen_rules", "matching", "page", "rules"]


def rules(code: str | None = None) -> RuleBook:
    """The rules of `batchnorm.check`, or the one of that code or name, each with its page.

    Raises
    ------
    ArgumentError
        No such rule.

    Examples
    --------
    >>> rules("BN107").rules[0].name
    'statistics-not-converged'
    """
    if code is None:
        return RuleBook(RULES, tuple(page(rule) for rule in RULES))
    found = named(code)
    if found is None:
        raise ArgumentError(f"rule: no rule {code!r}; batchnorm rule lists them.")
    return RuleBook((found,), (page(found),))


def page(rule: Rule) -> str:
    """What the package says about a rule, in Markdown."""
    return resources.files("batchnorm.analysis.rules").joinpath("pages", f"{rule.code}.md").read_text("utf-8").strip()


def chosen_rules(
    select: Iterable[str] | str | None = None, ignore: Iterable[str] | str | None = None
) -> Sequence[Rule]:
    """The rules that ``select`` names (all without it), less those that ``ignore`` names.

    Raises
    ------
    ArgumentError
        A code, beginning of codes or name that fits no rule.
    """
    wanted = RULES if select is None else matching(select, "--select")
    unwanted = () if ignore is None else matching(ignore, "--ignore")
    return tuple(rule for rule in wanted if rule not in unwanted)


def matching(codes: Iterable[str] | str, option: str) -> tuple[Rule, ...]:
    """The rules of codes, beginnings of codes or names; ``option`` begins the message.

    Raises
    ------
    ArgumentError
        A code that fits no rule; none at all to select, which would find nothing in any model.
    """
    parts = codes.split(",") if isinstance(codes, str) else list(codes)
    if not parts and option.endswith("select"):
        raise ArgumentError(f"{option}: no rule at all; leave it out for all of them, or give codes as BN101, or BN1.")
    found: set[str] = set()
    for part in (text.strip() for text in parts):
        fitting = {rule.code for rule in RULES if part and _fits(rule, part)}
        if not fitting:
            raise ArgumentError(f"{option}: no rule {part!r}; batchnorm rule lists them. Give codes as BN101, or BN1.")
        found |= fitting
    return tuple(rule for rule in RULES if rule.code in found)


def _fits(rule: Rule, part: str) -> bool:
    wanted = part.upper()
    return wanted in ("ALL", rule.code, rule.name.upper()) or (wanted.startswith("BN") and rule.code.startswith(wanted))
