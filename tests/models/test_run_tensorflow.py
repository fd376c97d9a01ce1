"""SavedModel folders run in TensorFlow, in a process of its own, against the records and the formula in float64."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from batchnorm.models import open_model
from tests.engines.bounds import formula
from tests.running import script

RUNNER = Path(__file__).with_name("run_tensorflow_files.py")
EXPORTED = ("exported", "saved")


@pytest.fixture(scope="module")
def ran(tensorflow_files, tmp_path_factory):
    out = tmp_path_factory.mktemp("ran") / "result.pickle"
    script(RUNNER, tensorflow_files, out)
    return pickle.loads(out.read_bytes())


def test_every_captured_output_is_the_formula(tensorflow_files, ran):
    """The input and output that the engine shows are joined by the layer's own numbers, within the printed bound."""
    checked = 0
    for folder, (_, captured) in ran["runs"].items():
        for record in open_model(tensorflow_files / folder).layers:
            if record.mode == "training" or record.name not in captured:
                continue
            for x, got in captured[record.name]:
                y, bound = formula(record, x)
                assert np.all(np.abs(got - y) <= bound), (folder, record.name)
                checked += 1
    assert checked == 2 * 6 + 1 + 1 + 1  # six calls of five layers in each export


def test_outputs_are_those_of_the_model_that_was_saved(tensorflow_files, ran):
    want = np.load(tensorflow_files / "y.npy")
    for folder in EXPORTED:
        np.testing.assert_allclose(ran["runs"][folder][0], want, rtol=1e-5, atol=1e-5)


def test_a_layer_used_twice_and_one_in_training_mode(tensorflow_files, ran):
    for folder in EXPORTED:
        assert {name: len(calls) for name, calls in ran["runs"][folder][1].items()} == {
            "full": 1, "deep": 1, "shared": 2, "rows": 1, "bare": 1,
        }  # fmt: skip
    x, y = ran["runs"]["training"][1]["stem/bn"][0]
    (record,) = open_model(tensorflow_files / "training").layers
    mean, variance = x.mean((0, 1, 2), dtype="f8"), x.var((0, 1, 2), dtype="f8")
    want = record.gamma * (x - mean) / np.sqrt(variance + record.epsilon) + record.beta
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_several_inputs_and_outputs_by_name(ran):
    outputs, _ = ran["runs"]["out"]
    assert sorted(outputs) == ["y", "z"]
    np.testing.assert_array_equal(outputs["y"], ran["by list"]["y"])


def test_inside_a_branch_nothing_can_be_shown(ran):
    assert ran["errors"]["branch"].startswith("Refused")
    assert "loop or a branch" in ran["errors"]["branch"]


def test_refusals_say_what_is_wanted(ran):
    errors = ran["errors"]
    assert errors["shape"].startswith("ArgumentError: the model wants 'image' of shape (any, 8, 8, 3)")
    assert "got shape (2, 7)" in errors["shape"]
    assert "dtype float32; got dtype complex128" in errors["dtype"]
    assert errors["name"] == (
        "ArgumentError: the model's inputs are 'a' of shape (any, 5) and dtype float32; 'b' of shape (any, 5) and "
        "dtype float32; got 'c'"
    )
    assert "wants 2 inputs" in errors["one"]
    assert errors["layer"].startswith("UnknownLayer")
    assert errors["fails"].startswith("ModelFileError")
    assert "assert_less" in errors["fails"]
    assert all("\n" not in message for message in errors.values())


def test_files_and_random_state_are_unchanged(ran):
    """Each run of the script is inside assert_unchanged: folder, Python's, NumPy's state; TensorFlow's by hand."""
    assert ran["unchanged"] == ["exported", "saved", "fused", "training", "out", "fails", "after errors"]
    assert ran["seed"]


def test_without_tensorflow_the_install_line(tensorflow_files, in_subprocess):
    code = f"""
import sys
sys.modules["tensorflow"] = None
import numpy as np
from batchnorm.errors import MissingExtra
from batchnorm.models import open_model
try: open_model({str(tensorflow_files / "exported")!r}).run(np.ones((1, 8, 8, 3)))
except MissingExtra as error: print(error)
"""
    assert "pip install 'batchnorm[tensorflow]'" in in_subprocess(code)


def test_tf_keras(tf_keras_files, in_subprocess):
    code = f"""
import json, numpy as np
from batchnorm.models import open_model
folder = {str(tf_keras_files)!r}
y, captured = open_model(folder + "/tf_keras").run(np.load(folder + "/tf_x.npy"), capture=["fused", "inner/deep"])
print(json.dumps([float(abs(y - np.load(folder + "/tf_y.npy")).max()), sorted(captured)]))
"""
    worst, names = json.loads(in_subprocess(code).splitlines()[-1])
    assert worst < 1e-5
    assert names == ["fused", "inner/deep"]
