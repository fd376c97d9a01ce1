"""``[tool.batchnorm]`` in pyproject.toml: of this folder, or of the nearest one above."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, cast

from batchnorm.errors import ArgumentError

__all__ = ["project_settings"]

LISTS = ("select", "ignore")
LEVELS = ("error", "warning", "note")


def project_settings(start: Path | None = None) -> dict[str, Any]:
    """The settings of ``check``: ``select`` and ``ignore``, lists of codes, and ``fail-on``; empty without a file.

    Raises
    ------
    ArgumentError
        A file that is no TOML, an unknown key, or a value of another kind.
    """
    here = (start or Path.cwd()).absolute()
    place = next((each for folder in (here, *here.parents) if (each := folder / "pyproject.toml").is_file()), None)
    if place is None:
        return {}
    try:
        whole = tomllib.loads(place.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{place}: cannot be read as TOML ({error}).") from None
    tool: Any = whole.get("tool", {})
    own: Any = cast("dict[str, Any]", tool).get("batchnorm", {}) if isinstance(tool, dict) else {}
    _validate(own, place)
    return cast("dict[str, Any]", own)


def _validate(own: Any, place: Path) -> None:
    if not isinstance(own, dict):
        raise ArgumentError(f"{place}: [tool.batchnorm] must be a table.")
    for key, value in cast("dict[str, Any]", own).items():
        if key in LISTS:
            good = isinstance(value, list) and all(isinstance(one, str) for one in cast("list[Any]", value))
            wanted = 'a list of codes, ["BN107"]'
        elif key == "fail-on":
            good, wanted = value in LEVELS, f"one of {', '.join(LEVELS)}"
        else:
            raise ArgumentError(f"{place}: [tool.batchnorm] has no setting {key!r}; there are select, ignore, fail-on.")
        if not good:
            raise ArgumentError(f"{place}: [tool.batchnorm] {key} must be {wanted}; got {value!r}.")
        if key in LISTS:
            _validate_codes(cast("list[str]", value), f"{place}: [tool.batchnorm] {key}")


def _validate_codes(codes: list[str], where: str) -> None:
    from batchnorm.api.rulebook import matching

    matching(codes, where)
