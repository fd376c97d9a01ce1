"""Exported programs and TorchScript run in PyTorch, against the records and the formula in float64."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from batchnorm.errors import ArgumentError, ModelFileError, Refused, UnknownLayer
from batchnorm.models import open_model
from batchnorm.testing import assert_unchanged
from tests.engines.bounds import formula

from .test_pt2 import edited
from .test_torch_files import Shell

torch = pytest.importorskip("torch", reason="the engine is the real PyTorch")
X = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype("f4")


@pytest.mark.parametrize("file", ["net.pt2", "decomposed.pt2"])
def test_every_captured_output_is_the_formula(torch_files, file):
    with assert_unchanged(torch_files / file):
        read = open_model(torch_files / file)
        names = [record.name for record in read.layers]
        _, captured = read.run(X, capture=names)
        outputs, _ = read.run(np.ones((6, 3, 8, 8), "f8"))
    for record in read.layers:
        ((x, got),) = captured[record.name]
        y, bound = formula(record, x)
        assert np.all(np.abs(got - y) <= bound), record.name
    # The same operators on the same machine; a decomposed graph adds in another order.
    np.testing.assert_allclose(outputs, np.load(torch_files / "y.npy"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("file", ["train.pt2", "train_decomposed.pt2"])
def test_a_graph_of_training_mode_normalises_with_the_batch_and_moves_nothing(torch_files, file):
    with assert_unchanged(torch_files / file):
        read = open_model(torch_files / file)
        before = read.layers[0].moving_mean.copy()
        first, captured = read.run(X, capture=["bn"])
        second, _ = read.run(X)
    np.testing.assert_array_equal(first, second)  # its buffers are copies in each run
    ((x, y),) = captured["bn"]
    record = read.layers[0]
    axes = (0, 2, 3)
    by_channel = record.replace(moving_mean=x.mean(axes, dtype="f8"), moving_variance=x.var(axes, dtype="f8"))
    want, bound = formula(by_channel, x)
    assert np.all(np.abs(y - want) <= 8 * bound)  # the batch's own statistics are sums of 384 numbers in float32
    np.testing.assert_array_equal(open_model(torch_files / file).layers[0].moving_mean, before)


def test_a_layer_called_twice_and_one_in_a_branch(torch_files):
    read = open_model(torch_files / "branching.pt2")
    _, captured = read.run(X, capture=["shared", "branch"])
    assert {name: len(calls) for name, calls in captured.items()} == {"shared": 2, "branch": 0}
    with pytest.raises(Refused, match="inside a branch"):
        read.run(X, capture=["branch"])


def test_refusals_say_what_is_wanted(torch_files):
    read = open_model(torch_files / "net.pt2")
    with assert_unchanged(torch_files / "net.pt2"):
        with pytest.raises(ArgumentError) as caught:
            read.run(X[:, :2])
        assert str(caught.value) == (
            "the model wants 'x' of shape (any, 3, 8, 8) and dtype float32, batch first; got shape (6, 2, 8, 8)"
        )
        with pytest.raises(ArgumentError, match=r"inputs are 'x' of shape.*; got 'image'"):
            read.run({"image": X})
        with pytest.raises(ArgumentError, match="dtype float32; got dtype complex64"):
            read.run(X.astype(np.complex64))
        with pytest.raises(UnknownLayer, match=r"'none'; it has 'stem\.2'"):
            read.run(X, capture=["none"])


def test_an_error_in_the_middle(torch_files):
    """One sample where the graph was exported for six: the engine's own refusal in a line."""
    path = torch_files / "train.pt2"
    with assert_unchanged(path), pytest.raises((ArgumentError, ModelFileError)) as caught:
        open_model(path).run(X[:1], capture=["bn"])
    assert "\n" not in str(caught.value)


def test_pickled_objects_are_refused_before_anything_is_loaded(torch_files, tmp_path):
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(torch_files / "net.pt2") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("net/data/constants/custom_obj_0", pickle.dumps(Shell()))
    assert len(open_model(path).layers) == 5
    with pytest.raises(ModelFileError, match="custom_obj_0' is a pickled object, whose loading runs code"):
        open_model(path).run(X)


def test_sample_inputs_with_code_are_not_run(torch_files, tmp_path):
    """PyTorch loads the sample inputs of a program; with code in them it must fail instead."""
    memory = io.BytesIO()
    torch.save(Shell(), memory)
    path = edited(
        torch_files / "net.pt2", tmp_path / "m.pt2", **{"sample_inputs__model.pt": lambda _: memory.getvalue()}
    )
    with assert_unchanged(path), pytest.raises(ModelFileError, match="PyTorch refuses it"):
        open_model(path).run(X)


def test_torch_script_is_run_only_when_trusted(torch_files):
    path = torch_files / "script.pt"
    with pytest.raises(ModelFileError, match="--trust"):
        open_model(path)
    with assert_unchanged(path):
        read = open_model(path, trust=True)
        outputs, captured = read.run(X, capture=["stem.2", "flat"])
        plain, _ = read.run(np.ones((6, 3, 8, 8)))
    np.testing.assert_allclose(plain, np.load(torch_files / "y.npy"), rtol=1e-5, atol=1e-5)
    for record in read.layers:
        for x, got in captured.get(record.name, []):
            y, bound = formula(record, x)
            assert np.all(np.abs(got - y) <= bound), record.name
    np.testing.assert_array_equal(captured["flat"][0][1], outputs)


def test_without_torch_the_install_line(torch_files, in_subprocess):
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from batchnorm.errors import MissingExtra
from batchnorm.models import open_model
try: open_model({str(torch_files / "net.pt2")!r}).run(np.ones((1, 3, 8, 8)))
except MissingExtra as error: print(error)
"""
    assert "pip install 'batchnorm[torch]'" in in_subprocess(code)


def test_memory_is_constant_in_the_number_of_samples(torch_files, in_subprocess):
    code = f"""
import json, resource
import numpy as np
from batchnorm.models import open_model
read, peaks = open_model({str(torch_files / "train.pt2")!r}), []
for batches in (20, 100):
    for _ in range(batches):
        read.run(np.ones((6, 3, 8, 8), "f4"), capture=["bn"])
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""
    first, last = json.loads(in_subprocess(code, environment={"OMP_NUM_THREADS": "1"}).splitlines()[-1])
    assert last - first < 5_000  # KiB
