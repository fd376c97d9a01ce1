"""Every planted fault is found at its layer, and no sound model gives a warning or an error: files read, data run."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from batchnorm.analysis.rules import RULES
from tests.corpus import report
from tests.corpus.manifest import Entry, archive, entries

ROOT = Path(__file__).parents[2]
ALL = entries()


@pytest.fixture(scope="module")
def found():
    """File -> its findings, from one process for all engines."""
    env = {**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "tests/corpus/report.py", "--json"],
        cwd=ROOT, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    looked = json.loads(done.stdout)
    return {(entry["file"], entry["rule"]): (Entry(**entry), findings) for entry, findings in looked}


@pytest.mark.parametrize("entry", [entry for entry in ALL if entry.rule], ids=lambda entry: entry.file)
def test_a_planted_fault_is_found_at_its_layer(entry, found):
    one, findings = found[entry.file, entry.rule]
    assert report.shown(one, findings), f"{entry.what}: {findings}"


@pytest.mark.parametrize("entry", [entry for entry in ALL if not entry.rule], ids=lambda entry: entry.file)
def test_a_sound_model_gives_no_warning(entry, found):
    _, findings = found[entry.file, entry.rule]
    assert not report.alarms(findings), entry.what


def test_the_corpus_is_as_wide_as_it_should_be():
    planted = Counter(entry.rule for entry in ALL if entry.rule)
    assert set(planted) == {rule.code for rule in RULES}
    assert min(planted.values()) >= 3, planted
    assert sum(1 for entry in ALL if not entry.rule) >= 40
    assert {entry.framework for entry in ALL} == {"keras", "torch", "flax"}
    assert len({entry.arch for entry in ALL}) >= 6
    assert archive().stat().st_size < 5_000_000
