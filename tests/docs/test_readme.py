"""Every code block of README.md and of docs/ runs, and prints what it says it prints.

``python tests/docs/test_readme.py`` writes what the commands print now into the console blocks; then read them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import pytest

from batchnorm.cli import run

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"^\$ batchnorm (.*?)\n(.*?)(?:^\$ echo \$\?\n(\d)\n)?(?=^\$ batchnorm |\Z)", re.MULTILINE | re.DOTALL
)
BLOCKS = [(page, kind, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))]


def blocks(*kinds):
    """The blocks of these languages, named by page and number."""
    found = [(page, text) for page, kind, text in BLOCKS if kind in kinds]
    return [pytest.param(text, id=f"{page.stem}-{n}") for n, (page, text) in enumerate(found)]


def test_every_block_says_its_language():
    assert {kind for _, kind, _ in BLOCKS} <= {"python", "console", "toml"}


def measured(text):
    """The text without its rounding errors, which are those of the processor that it ran on."""
    return re.sub(" +", " ", re.sub(r"\d(\.\d+)?e-\d\d", "#", text))


@pytest.mark.parametrize("text", blocks("console"))
def test_console_blocks_print_what_they_say(text, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command, expected, status in COMMAND.findall(text):
        assert run(shlex.split(command)) == int(status or 0)
        assert measured(capsys.readouterr().out.rstrip()) == measured(expected.rstrip())


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_run(text, in_subprocess):
    in_subprocess(text)


def rewritten(block):
    """A console block with what its commands print now."""

    def printed(found):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            status = run(shlex.split(found[1]))
        told = f"$ echo $?\n{status}\n" if status else ""
        return f"$ batchnorm {found[1]}\n{out.getvalue().rstrip()}\n{told}"

    return f"```console\n{COMMAND.sub(printed, block[1])}```"


if __name__ == "__main__":
    os.chdir(ROOT)
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = re.sub(r"^```console\n(.*?)^```$", rewritten, old, flags=re.MULTILINE | re.DOTALL)
        page.write_text(new, encoding="utf-8")
