"""The line that an error gives to install something is one that works."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"batchnorm\[(\w+)\]|require\(\s*\"[\w.]+\",\s*\"(\w+)\"")


def test_every_extra_that_a_message_names_exists():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        one or other: file.name
        for file in (ROOT / "src").rglob("*.py")
        for one, other in LINE.findall(file.read_text("utf-8"))
    }
    assert len(named) > 4
    assert {extra: file for extra, file in named.items() if extra not in known} == {}
