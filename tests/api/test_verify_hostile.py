"""verify under bad conditions: engines that hang or die, numbers that are none, odd shapes, an interrupt."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import batchnorm as bn
from batchnorm import cli
from batchnorm.api import verifying
from batchnorm.engines.workers import Workers
from tests.analysis.cases import Fake, f32, record
from tests.api.test_verify import Runs

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples/digits.keras"
SCHEMA = json.loads((Path(bn.__file__).parent / "render/schemas/verify.json").read_text("utf-8"))
X = np.random.default_rng(0).normal(1, 2, (20, 4)).astype(np.float32)


def valid(result):
    document = json.loads(result.to_json())
    jsonschema.validate(document, SCHEMA)
    return document


def needs(module):
    return pytest.importorskip(module)


def test_an_engine_that_hangs_has_failed(capsys):
    needs("onnxruntime")
    found = bn.verify(DIGITS, engines=["numpy", "onnxruntime"], timeout=0.01)
    assert [engine.status for engine in found.engines] == ["agrees", "failed"]
    assert "no answer within 0.01 seconds" in found.engines[1].why
    valid(found)
    status = cli.run(["verify", str(DIGITS), "--engines", "onnxruntime", "--timeout", "0.01", "--json"])
    jsonschema.validate(json.loads(capsys.readouterr().out), SCHEMA)
    assert status == 1
    for wrong in ("0", "-1", "nan"):
        assert cli.run(["verify", str(DIGITS), "--engines", "numpy", "--timeout", wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_engine_that_is_killed_has_failed_and_the_others_go_on(monkeypatch):
    needs("onnxruntime")
    killed = []

    class Killing(Workers):
        def compute(self, name, call):
            if name == "onnxruntime" and self._processes and not killed:
                killed.append(self._processes["onnxruntime"]._process.kill())
            return super().compute(name, call)

    monkeypatch.setattr(verifying, "Workers", Killing)
    found = bn.verify(DIGITS, engines=["onnxruntime", "numpy"])
    assert [engine.status for engine in found.engines] == ["failed", "agrees"]
    assert "block_bn1: its process died with exit status -9" in found.engines[0].why
    assert not found.agrees
    valid(found)


def test_an_engine_that_cannot_be_imported_has_failed(tmp_path, monkeypatch):
    needs("onnxruntime")
    broken = tmp_path / "onnx"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('libbroken.so: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = bn.verify(DIGITS, engines=["onnxruntime"])
    (engine,) = found.engines
    # Whichever of the two is found first: an engine fails in its own words, or works.
    assert engine.status == "failed"
    assert "libbroken" in engine.why
    valid(found)


def test_nan_and_infinity_go_the_same_way_everywhere():
    odd = f32(np.nan, np.inf, -np.inf, 3e38)
    big = record(gamma=f32(1e30, 1, 1, 1e10), beta=f32(0, np.nan, 0, 0), moving_variance=f32(1, 1, np.inf, 1e-30))
    for one in (record(), big):
        found = bn.verify(Fake(one), x=odd, engines=["numpy", "reference"])
        assert found.agrees, str(found)
        document = valid(found)
        assert document["engines"][0]["by_decade"][0]["decade"] is None
    assert valid(bn.verify(Runs(record(), error=np.inf), data=X, engines=["numpy"]))["model_run"]["max_abs"] == "inf"
    found = bn.verify(Runs(record()), Runs(record(), error=np.nan), data=X)
    assert found.comparison.first_diverging.cause == "engine"
    valid(found)


def test_an_input_in_which_nothing_is_finite():
    found = bn.verify(Runs(record()), data=np.full((3, 4), np.nan, np.float32), engines=["numpy"])
    assert found.agrees
    valid(found)


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (6, 3, 5, 4), (6, 2, 3, 2, 4)])
def test_any_rank(shape):
    found = bn.verify(Runs(record()), data=np.ones(shape, np.float32), engines=["numpy"], batch_size=4)
    assert found.agrees
    assert found.engines[0].layers[0].count == np.prod(shape)


def test_data_of_no_size():
    empty = X[:0]
    for data in (empty, [], {"x": empty}):
        with pytest.raises(bn.ArgumentError, match=r"at least one|no batch"):
            bn.verify(Runs(record()), data=data, engines=["numpy"])
    assert bn.verify(Runs(record()), data=[X, empty], engines=["numpy"]).agrees  # one empty batch among others


@pytest.mark.parametrize(
    "data", [np.array(["a", "b"]), np.array([1 + 1j]), np.array([None]), {"x": np.array(["a"])}, "x.npy", 1.5]
)
def test_data_that_are_no_numbers(data):
    with pytest.raises(bn.ArgumentError):
        bn.verify(Runs(record()), data=data, engines=["numpy"])


def test_an_iterator_cannot_be_gone_through_twice():
    a, b = Runs(record()), Runs(record())
    assert bn.verify(a, b, data=iter([X])).agrees
    with pytest.raises(bn.ArgumentError, match="array or a list of batches"):
        bn.verify(a, b, data=iter([X]), engines=["numpy"])
    assert bn.verify(a, b, data=[X], engines=["numpy"]).agrees


def test_onnx_says_what_it_wants(tmp_path, capsys):
    onnx = needs("onnx")
    needs("onnxruntime")
    values = [onnx.numpy_helper.from_array(f32(1, 2, 3), name) for name in ("g", "b", "m", "v")]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 3, 2]) for name in ("image", "y"))
    node = onnx.helper.make_node("BatchNormalization", ["image", "g", "b", "m", "v"], ["y"], name="bn")
    graph = onnx.helper.make_graph([node], "g", [x], [y], values)
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8), path)
    good = np.ones((5, 3, 2), np.float32)
    assert bn.verify(path, data=good, engines=["numpy"]).agrees
    assert bn.verify(path, data={"image": good.astype(np.float64)}, engines=["numpy"]).agrees
    for wrong in (good[:, :2], {"photo": good}, {"image": good, "more": good}, good[0]):
        with pytest.raises(bn.ArgumentError, match="'image'"):
            bn.verify(path, data=wrong, engines=["numpy"])
    np.save(tmp_path / "wrong.npy", good[:, :2])
    assert cli.run(["verify", str(path), "--data", str(tmp_path / "wrong.npy")]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "(any, 3, 2)" in err


def test_a_graph_in_training_mode_is_said_to_be_one(tmp_path):
    onnx = needs("onnx")
    values = [onnx.numpy_helper.from_array(f32(1, 2, 3), name) for name in ("g", "b", "m", "v")]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 3]) for name in ("x", "y"))
    node = onnx.helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y", "m2", "v2"], training_mode=1)
    graph = onnx.helper.make_graph([node], "g", [x], [y], values)
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8), path)
    found = bn.verify(path, engines=["numpy"])
    assert found.agrees
    assert any("each batch's own statistics" in note for note in found.notes)


def test_layers_without_statistics_are_left_out():
    bare = record(name="bare", moving_mean=None, moving_variance=None, mode="batch-statistics")
    found = bn.verify(Fake(record(), bare), engines=["numpy"])
    assert found.layers == ("bn",)
    valid(found)


def test_a_damaged_input_file_is_no_traceback(tmp_path, capsys):
    """Headers that promise more than there is, members of other kinds, a member beyond memory."""
    plain = tmp_path / "plain.npz"
    bn.verify(Fake(record(name="bn")), engines=["numpy"], save_inputs=plain)
    whole = plain.read_bytes()
    for n, cut in enumerate(range(0, len(whole), max(1, len(whole) // 40))):
        bad = tmp_path / f"bad{n}.npz"
        bad.write_bytes(whole[:cut] + bytes(8) + whole[cut + 8 :])
        with contextlib.suppress(bn.ArgumentError, bn.UnknownLayer):
            bn.verify(Fake(record(name="bn")), engines=["numpy"], load_inputs=bad)


SLOW = """
import time
import numpy as np
def batches():
    yield np.ones((4, 8, 8, 1), "float32")
    open("started", "w").close()
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_leaves_nothing_behind(tmp_path):
    needs("keras")
    (tmp_path / "slow.py").write_text(SLOW)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(temporary), "TF_CPP_MIN_LOG_LEVEL": "3"}
    arguments = ["verify", str(DIGITS), "--data", "slow:batches", "--engines", "numpy", "--save-inputs", "in.npz"]
    process = subprocess.Popen(
        [sys.executable, "-m", "batchnorm", *arguments], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (tmp_path / "started").exists() and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("__pycache__",)) == [
        "slow.py", "started", "tmp"]  # fmt: skip
    assert not [path for path in temporary.iterdir() if path.name.startswith("batchnorm-")]


def test_channels_first_where_the_engine_cannot(tmp_path, in_subprocess):
    """TensorFlow has no channels-first convolution on the CPU: one line that says so, or the numbers."""
    needs("tensorflow")
    path = tmp_path / "first.keras"
    code = f"""
import json, keras, numpy as np, batchnorm as bn
L = keras.layers
x = keras.Input((3, 6, 6))
norm = L.BatchNormalization(axis=1, name="bn")
keras.Model(x, norm(x)).save({str(path)!r})
alone = bn.verify({str(path)!r}, data=np.ones((2, 3, 6, 6), "float32"), engines=["numpy"])
assert alone.agrees, str(alone)
conv = L.Conv2D(3, 3, data_format="channels_first", padding="same")
keras.Model(x, norm(conv(x))).save({str(path)!r})
try:
    bn.verify({str(path)!r}, data=np.ones((2, 3, 6, 6), "float32"), engines=["numpy"])
    print("ran")
except bn.errors.BatchnormError as error:
    print(error)
"""
    said = in_subprocess(code, environment={"KERAS_BACKEND": "tensorflow"}).strip()
    assert said.splitlines()[-1] == "ran" or "first.keras" in said
    assert len(said.splitlines()) == 1
