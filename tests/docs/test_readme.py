"""Every code block of README.md and of docs/ runs, and prints what it says it prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from batchnorm.cli import run

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(page, kind, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))]


def blocks(*kinds):
    """The blocks of these languages, named by page and number."""
    found = [(page, text) for page, kind, text in BLOCKS if kind in kinds]
    return [pytest.param(text, id=f"{page.stem}-{n}") for n, (page, text) in enumerate(found)]


def test_every_block_says_its_language():
    assert {kind for _, kind, _ in BLOCKS} <= {"python", "console", "toml"}


@pytest.mark.parametrize("text", blocks("console"))
def test_console_blocks_print_what_they_say(text, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command, expected in re.findall(r"^\$ batchnorm (.*?)\n(.*?)(?=^\$ |\Z)", text, re.MULTILINE | re.DOTALL):
        assert run(shlex.split(command)) == 0
        assert capsys.readouterr().out.rstrip() == expected.rstrip()


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_run(text, in_subprocess):
    in_subprocess(text)
