"""``.tflite``: what the converter leaves of a batch normalization, read and run."""

import json
import random
import struct

import numpy as np
import pytest

from batchnorm.models import open_model
from batchnorm.testing import assert_unchanged
from tests.running import script

from .fuzzing import mutated, outcomes
from .test_bad_files import refused

NAMES = ["alone", "second", "merged"]


@pytest.fixture(scope="module")
def effective(tensorflow_files):
    """Scale and shift of each layer, by the formula from the numbers that the model had before it was converted."""
    found = {}
    for name, want in json.loads((tensorflow_files / "lite.json").read_text()).items():
        wide = {role: None if each is None else np.array(each, "f4").astype("f8") for role, each in want.items()}
        gamma = 1.0 if wide["gamma"] is None else wide["gamma"]
        scale = gamma / np.sqrt(wide["moving_variance"] + want["epsilon"])
        found[name] = scale, wide["beta"] - wide["moving_mean"] * scale
    return found


def plain(record):
    """The layer's own name: conversion puts the model's in front and a number behind."""
    return record.name.rpartition("/")[2].rpartition("_")[0] or record.name


# float32 constants round each of scale and shift once or twice; half precision stores them with 11 bits; integers of
# eight bits have a step of 1/255 of the range of a vector, of which half is lost.
TOLERANCE = {"float.tflite": 4 * 2**-24, "half.tflite": 2**-11 * 1.01, "int8.tflite": 0.02}


@pytest.mark.parametrize("file", TOLERANCE)
def test_effective_scale_and_shift(tensorflow_files, effective, file):
    found = open_model(tensorflow_files / file)
    assert found.format == "tflite"
    assert [plain(record) for record in found.layers] == NAMES
    for record in found.layers[:2]:
        scale, shift = effective[plain(record)]
        size = max(np.abs(scale).max(), np.abs(shift).max())
        np.testing.assert_allclose(record.gamma, scale, rtol=TOLERANCE[file], atol=TOLERANCE[file] * size)
        np.testing.assert_allclose(record.beta, shift, rtol=TOLERANCE[file], atol=2 * TOLERANCE[file] * size)
        assert (record.moving_mean, record.moving_variance, record.epsilon) == (None, None, None)
        assert (record.epsilon_source, record.mode, record.axis) == ("unknown", "inference", -1)
        assert record.kind.endswith("(folded)")


def test_what_was_merged_into_a_convolution_is_only_named(tensorflow_files):
    record = open_model(tensorflow_files / "float.tflite").layers[2]
    assert (record.kind, record.channels, record.gamma, record.beta) == ("CONV_2D (folded)", 4, None, None)


def test_explain_says_what_is_left(tensorflow_files, capsys):
    from batchnorm import cli

    path = tensorflow_files / "float.tflite"
    record = open_model(path).layers[0]
    assert cli.run(["explain", str(path), "--layer", record.name, "--x", "1,2,3", "--channel", "2"]) == 2
    said = capsys.readouterr().err
    assert f"channel 2 y = {record.gamma[2]!s}*x + ({record.beta[2]!s})" in said
    assert cli.run(["explain", str(path), "--layer", "merged_1", "--x", "1,2,3,4"]) == 2
    assert "CONV_2D (folded): it is part of another operator's weights" in capsys.readouterr().err


def test_the_notes_say_what_is_lost(tensorflow_files):
    (note,) = open_model(tensorflow_files / "float.tflite").notes
    assert "2 of 3 kept a scale" in note
    assert "cannot be taken out" in note
    assert "quantized" in open_model(tensorflow_files / "int8.tflite").notes[-1]


def test_provenance_from_names_in_a_larger_model(tensorflow_files):
    names = [plain(record) for record in open_model(tensorflow_files / "model.tflite").layers]
    assert [name for name in ("full", "deep", "shared", "rows", "bare") if name not in names] == []


def test_neither_tensorflow_nor_litert_is_imported(tensorflow_files, in_subprocess):
    code = f"""
import sys
from batchnorm.models import open_model
assert len(open_model({str(tensorflow_files / "float.tflite")!r}).layers) == 3
assert not {{"tensorflow", "ai_edge_litert", "flatbuffers"}} & set(sys.modules)
"""
    in_subprocess(code)


@pytest.fixture(scope="module")
def ran(tensorflow_files, tmp_path_factory):
    """LiteRT in a process of its own: its pool of threads and TensorFlow's spin against each other."""
    import pickle
    from pathlib import Path

    out = tmp_path_factory.mktemp("ran") / "result.pickle"
    script(Path(__file__).with_name("run_tflite_files.py"), tensorflow_files, out)
    return pickle.loads(out.read_bytes())


def test_what_goes_in_and_out_is_scale_and_shift(tensorflow_files, ran):
    for file in ("float.tflite", "half.tflite"):
        _, captured = ran["runs"][file]
        for record in open_model(tensorflow_files / file).layers[:2]:
            ((x, y),) = captured[record.name]
            want = record.gamma.astype("f8") * x + record.beta
            bound = 4 * 2**-24 * (np.abs(record.gamma * x) + np.abs(record.beta) + np.abs(want))
            assert np.all(np.abs(y - want) <= bound), (file, record.name)


def test_batches_of_any_length(ran):
    one, five = ran["lengths"]
    np.testing.assert_allclose(five[:1], one, rtol=1e-5, atol=1e-6)
    assert len(five) == 5


def test_refusals_say_what_is_wanted(ran):
    errors = ran["errors"]
    assert "of shape (any, 6, 6, 3) and dtype float32, batch first; got shape (2, 7)" in errors["shape"]
    assert "got 'picture'" in errors["name"]
    assert errors["layer"].startswith("UnknownLayer")
    assert errors["merged"].startswith("Refused")
    assert "part of the weights of another operator" in errors["merged"]
    assert all("\n" not in message for message in errors.values())


def test_files_are_unchanged_also_after_errors(ran):
    assert ran["unchanged"]


def test_without_litert_the_install_line(tensorflow_files, in_subprocess):
    code = f"""
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("ai_edge_litert", "tensorflow"):
            raise ModuleNotFoundError(name, name=name.partition(".")[0])
sys.meta_path.insert(0, Absent())
import numpy as np
from batchnorm.errors import MissingExtra
from batchnorm.models import open_model
try: open_model({str(tensorflow_files / "float.tflite")!r}).run(np.ones((1, 6, 6, 3)))
except MissingExtra as error: print(error)
"""
    assert "pip install 'batchnorm[litert]'" in in_subprocess(code)


def test_truncated(tensorflow_files, tmp_path):
    whole = (tensorflow_files / "float.tflite").read_bytes()
    for length in (8, 20, 100, len(whole) // 2):
        (tmp_path / "m.tflite").write_bytes(whole[:length])
        refused(tmp_path / "m.tflite", "damaged")


def test_offsets_that_lead_out(tensorflow_files, tmp_path):
    whole = bytearray((tensorflow_files / "float.tflite").read_bytes())
    for value in (0xFFFFFFFF, len(whole), 4):
        whole[:4] = struct.pack("<I", value)
        (tmp_path / "m.tflite").write_bytes(whole)
        refused(tmp_path / "m.tflite", "damaged")


@pytest.mark.parametrize("file", ["float.tflite", "int8.tflite"])
def test_fuzz(tensorflow_files, tmp_path, file):
    data = (tensorflow_files / file).read_bytes()
    rng = random.Random(len(file))  # noqa: S311
    tally = outcomes(tmp_path / "m.tflite", (mutated(data, rng) for _ in range(300)))
    assert tally["opened"] + tally["refused"] == 300
    assert tally["refused"] > 20
    assert tally["slowest"] < 2


def test_the_file_is_left_alone(tensorflow_files):
    with assert_unchanged(tensorflow_files / "float.tflite"):
        open_model(tensorflow_files / "float.tflite")
