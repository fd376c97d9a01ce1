"""Every planted fault is found at its layer, and no sound model gives a warning or an error: files read, data run."""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from batchnorm.analysis.rules import RULES
from tests.corpus import report
from tests.corpus.manifest import PARTS, Entry, archive, entries

ROOT = Path(__file__).parents[2]
ONE_FORM = {"BN307": "the runtimes that it names run ONNX files alone"}
"""Rules whose fault one form of one framework alone can have."""


def looked_at(part):
    """(File, rule, what it is) -> the entry and its findings, from one process for all engines."""
    env = {**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "tests/corpus/report.py", "--json", part],
        cwd=ROOT, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    looked = json.loads(done.stdout)[part]
    return {(entry["file"], entry["rule"]): (Entry(**entry), findings) for entry, findings in looked}


@pytest.fixture(scope="module", params=PARTS)
def found(request):
    return looked_at(request.param)


def test_every_planted_fault_is_found_at_its_layer(found):
    planted = [(one, findings) for one, findings in found.values() if one.rule and not one.beyond]
    missed = [f"{one.file}: {one.what}: {findings}" for one, findings in planted if not report.shown(one, findings)]
    assert not missed


def test_no_sound_model_gives_a_warning(found):
    sound = [(one, findings) for one, findings in found.values() if one.rule is None]
    alarmed = [f"{one.file}: {one.what}: {report.alarms(findings)}" for one, findings in sound]
    assert not [line for line, (_, findings) in zip(alarmed, sound, strict=True) if report.alarms(findings)]


def test_what_a_file_cannot_show_says_why():
    beyond = [one for part in PARTS for one in entries(part) if one.beyond]
    assert all(one.rule and len(one.beyond) > 20 for one in beyond)
    assert len(beyond) < 10


def test_every_rule_is_planted_three_times_in_more_than_one_form():
    planted, forms = Counter(), defaultdict(set)
    for one in (one for part in PARTS for one in entries(part) if one.rule and not one.beyond):
        planted[one.rule] += 1
        forms[one.rule].add((one.framework, one.form))
    assert set(planted) == {rule.code for rule in RULES}
    assert min(planted.values()) >= 3, planted
    alone = {rule: found for rule, found in forms.items() if len(found) < 2 and rule not in ONE_FORM}
    assert not alone


def test_the_corpus_is_as_wide_as_it_should_be():
    of_all = [one for part in PARTS for one in entries(part)]
    assert {one.framework for one in of_all} == {"keras", "torch", "flax", "onnx"}
    assert {one.form for one in of_all} >= {
        "keras", "h5", "weights.h5", "onnx", "pt2", "pt", "ckpt", "pth", "safetensors", "savedmodel", "tflite", "live",
    }  # fmt: skip
    for part in PARTS:
        assert sum(1 for one in entries(part) if not one.rule) >= 40
        assert len({one.arch for one in entries(part)}) >= 6
        assert archive(part).stat().st_size < 2_500_000
