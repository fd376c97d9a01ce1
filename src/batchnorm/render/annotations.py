"""Findings for other programs: SARIF 2.1.0, and GitHub's workflow commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from batchnorm import __version__

from .document import spelled
from .pieces import Document

__all__ = ["github", "sarif"]

SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
NOTICE = {"error": "error", "warning": "warning", "note": "notice"}


def sarif(document: Document, rules: Sequence[Document]) -> str:
    """The findings of a check as SARIF 2.1.0: one run, a result a finding, the layer as logical location.

    Parameters
    ----------
    document : mapping
        Of ``batchnorm check``.
    rules : sequence of mapping
        Of ``batchnorm rule``: every rule that a finding names.
    """
    places = {rule["code"]: place for place, rule in enumerate(rules)}
    driver = {
        "name": "batchnorm",
        "semanticVersion": __version__,
        "rules": [_rule(rule) for rule in rules],
    }
    results = [_result(finding, places[finding["rule"]]) for finding in document["findings"]]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return json.dumps({"$schema": SARIF, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False)


def _rule(rule: Document) -> dict[str, Any]:
    return {
        "id": rule["code"],
        "name": "".join(part.capitalize() for part in rule["name"].split("-")),
        "shortDescription": {"text": rule["title"]},
        "fullDescription": {"text": rule["title"]},
        "help": {"text": rule["page"], "markdown": rule["page"]},
        "defaultConfiguration": {"level": rule["level"]},
    }


def _result(finding: Document, place: int) -> dict[str, Any]:
    layers = [finding["layer"]] if finding["layer"] is not None else finding["layers"] or []
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": _uri(finding["model"])}}}
    if layers:
        location["logicalLocations"] = [{"name": name, "kind": "module"} for name in layers]
    return {
        "ruleId": finding["rule"],
        "ruleIndex": place,
        "level": finding["level"],
        "message": {"text": f"{_subject(finding)}{finding['message']} {finding['remedy']}"},
        "locations": [location],
        "properties": spelled({"channels": finding["channels"], "evidence": finding["evidence"]}),
    }


def _uri(path: str) -> str:
    place = Path(path)
    return place.as_uri() if place.is_absolute() else quote(place.as_posix())


def _subject(finding: Document) -> str:
    return "" if finding["layer"] is None else f"{finding['layer']}: "


def github(document: Document) -> str:
    """A workflow command a finding: GitHub shows it beside the run, at the file."""
    lines = [
        f"::{NOTICE[one['level']]} file={_property(one['model'])},title={_property(one['rule'] + ' ' + one['name'])}::"
        f"{_data(_subject(one) + one['message'] + ' ' + one['remedy'])}"
        for one in document["findings"]
    ]
    return "\n".join(lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
