"""The commands check and rule: status, formats, settings of a project."""

import json
from pathlib import Path

import pytest

from batchnorm.cli import run

ROOT = Path(__file__).parents[2]
QUESTION = str(ROOT / "examples/question.keras")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_status(capsys):
    assert run(["check", QUESTION]) == 1
    assert "BN107 statistics-not-converged" in capsys.readouterr().out
    assert run(["check", QUESTION, "--fail-on", "error"]) == 0
    assert run(["check", QUESTION, "--ignore", "BN107"]) == 0
    assert "Nothing found." in capsys.readouterr().out
    assert run(["check", QUESTION, "--select", "BN999"]) == 2
    assert run(["check", "absent.keras"]) == 2
    assert run(["check"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_formats(capsys):
    for form in ("json", "sarif"):
        assert run(["check", QUESTION, "--format", form]) == 1
        assert json.loads(capsys.readouterr().out)
    assert run(["check", QUESTION, "--format", "github"]) == 1
    assert capsys.readouterr().out.startswith("::warning file=")
    assert run(["check", QUESTION, "--format", "github", "--ignore", "BN107"]) == 0
    assert capsys.readouterr().out == ""
    assert run(["check", QUESTION, "--format", "markdown"]) == 1
    assert capsys.readouterr().out.startswith("```text\n")


def test_lines_fit_a_terminal(capsys):
    run(["check", QUESTION, str(ROOT / "examples/digits.keras")])
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if str(ROOT) not in line) <= 80


def test_rule(capsys):
    assert run(["rule", "bn107"]) == 0
    assert capsys.readouterr().out.startswith("# BN107 statistics-not-converged")
    assert run(["rule"]) == 0
    assert "BN101" in capsys.readouterr().out
    assert run(["rule", "BN999"]) == 2


def settings(folder, text):
    folder.joinpath("pyproject.toml").write_text(text)


def test_settings_of_the_project(elsewhere, monkeypatch, capsys):
    settings(elsewhere, '[tool.batchnorm]\nignore = ["BN107"]\n')
    assert run(["check", QUESTION]) == 0
    elsewhere.joinpath("inside").mkdir()
    monkeypatch.chdir(elsewhere / "inside")
    assert run(["check", QUESTION]) == 0
    assert run(["check", QUESTION, "--ignore", "BN101"]) == 1  # what is typed wins
    settings(elsewhere, '[tool.batchnorm]\nfail-on = "error"\nselect = ["BN1"]\n')
    assert run(["check", QUESTION]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "[tool.batchnorm]\nignor = []",
        '[tool.batchnorm]\nselect = "BN1"',
        "[tool]\nbatchnorm = 1",
        "x =",
        '[tool.batchnorm]\nignore = ["BN9"]',
        "[tool.batchnorm]\nselect = []",
    ],
)
def test_settings_that_cannot_be_used(elsewhere, text, capsys):
    settings(elsewhere, text)
    assert run(["check", QUESTION]) == 2
    assert "pyproject.toml" in capsys.readouterr().err


def test_a_tool_that_is_no_table_is_none_of_ours(elsewhere):
    settings(elsewhere, "tool = 3\n[project]")
    assert run(["check", QUESTION]) == 1
    settings(elsewhere, "[tool.batchnorm]\nignore = []")
    assert run(["check", QUESTION]) == 1
