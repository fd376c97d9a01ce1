"""docs/NUMERICS.md names a test for each promise; each of them exists."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/NUMERICS.md").read_text("utf-8"))))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=str)
def test_the_named_test_exists(file, name):
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)


def test_every_row_of_the_tables_names_a_test():
    text = (ROOT / "docs/NUMERICS.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith(("|---", "| promise"))]
    assert len(rows) > 20
    assert [row for row in rows if "::" not in row] == []


def test_the_figures_are_printed_and_within_their_bounds():
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks/accuracy.py", "--count", "512"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "exactly beta" in run.stdout
    assert "All within their bounds." in run.stdout
