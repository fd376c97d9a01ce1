"""verify: what is fed, what is said, what it costs, and what it leaves behind. The engines' own tests are elsewhere."""

import json
import tracemalloc
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import batchnorm as bn
from batchnorm import cli
from batchnorm.engines import norms
from batchnorm.engines.norms import numpy as own
from batchnorm.engines.workers import EngineFailed
from batchnorm.testing import assert_unchanged
from tests.analysis.cases import Fake, f32, record

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples/digits.keras"
QUESTION = ROOT / "examples/question.keras"
SCHEMA = json.loads((Path(bn.__file__).parent / "render/schemas/verify.json").read_text("utf-8"))


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = cli.run([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def wrong(monkeypatch):
    """An engine that is off by a thousandth in layers of one of these numbers of channels."""

    def install(*channels):
        right = own.normalize
        monkeypatch.setattr(own, "normalize", lambda c: right(c) * (1.001 if c.mean.size in channels else 1))

    return install


def valid(result):
    document = json.loads(result.to_json())
    jsonschema.validate(document, SCHEMA)
    return document


class Runs(Fake):
    """A model that runs: each layer gets the data, and gives what the formula gives, plus an error."""

    def __init__(self, *records, error=0.0):
        super().__init__(*records)
        self.error = error
        self.seen = []

    def run(self, x, capture=()):
        self.seen.append(len(x))
        calls = {}
        for one in self.layers:
            y = bn.normalize(x, one.moving_mean, one.moving_variance, one.gamma, one.beta, epsilon=one.epsilon)
            calls[one.name] = [(x, y + np.float32(self.error))]
        return y, {name: calls[name] for name in capture}


X = np.random.default_rng(0).normal(1, 2, (20, 4)).astype(np.float32)


def test_agreement_on_numbers_drawn():
    found = bn.verify(DIGITS, engines=["reference", "numpy"])
    document = valid(found)
    assert found.agrees
    assert document["model"]["sha256"]
    assert document["input"] == {"source": "random", "seed": 0, "atol": None, "rtol": None}
    reference, numpy = document["engines"]
    assert (reference["max_abs"], reference["max_ulp"]) == (0.0, 0.0)
    assert 0 < numpy["max_ulp"] <= 0.5  # rounded once
    assert [layer["count"] for layer in numpy["layers"]] == [64 * 16] * 3


def test_an_engine_that_is_wrong(wrong, run):
    wrong(2)
    layers = (record(name="one"), *(two(name=n) for n in ("second", "third")))
    found = bn.verify(Fake(*layers), engines=["numpy"])
    (engine,) = found.engines
    assert not found.agrees
    assert (engine.status, engine.first_differing_layer) == ("differs", "second")
    assert engine.max_rel == pytest.approx(1e-3, rel=1e-3)
    assert "off by" in engine.why
    assert "by the size of the output" in str(found)
    valid(found)
    wrong(16)
    status, out, _ = run("verify", DIGITS, "--engines", "numpy")
    assert status == 1
    assert "stem_bn" in out
    assert run("verify", DIGITS, "--engines", "numpy", "--rtol", "0.01")[0] == 0


def two(**more):
    arrays = ("gamma", "beta", "moving_mean", "moving_variance")
    return record(channels=2, **{name: getattr(record(), name)[:2] for name in arrays}, **more)


def test_an_engine_that_is_not_installed(monkeypatch, run):
    find = norms.importlib.util.find_spec
    monkeypatch.setattr(norms.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    found = bn.verify(QUESTION, engines=["numpy", "onnxruntime"])
    asked = found.engines[1]
    assert (asked.status, found.agrees) == ("failed", False)
    assert "pip install 'batchnorm[onnx]'" in asked.why
    valid(found)
    assert run("verify", QUESTION, "--engines", "onnxruntime")[0] == 1
    monkeypatch.setattr("batchnorm.api.verifying.ENGINES", {k: norms.ENGINES[k] for k in ("numpy", "onnxruntime")})
    others = bn.verify(QUESTION)
    assert [engine.status for engine in others.engines] == ["agrees", "unavailable"]
    assert others.agrees


def test_an_engine_that_fails(monkeypatch):
    def fail(call):
        raise EngineFailed("broken")

    monkeypatch.setattr(own, "normalize", fail)
    found = bn.verify(DIGITS, engines=["numpy", "reference"])
    assert [engine.status for engine in found.engines] == ["failed", "agrees"]
    assert found.engines[0].why == "stem_bn: broken"
    assert not found.agrees
    valid(found)


def test_the_input_of_a_layer(run):
    found = bn.verify(QUESTION, x=[1, 5], engines=["numpy"])
    assert found.engines[0].layers[0].count == 2
    assert found.input.source == "x"
    assert run("verify", QUESTION, "--x", "1,5", "--engines", "numpy,reference")[0] == 0
    assert bn.verify(DIGITS, x=np.ones(16), layer="bn1", engines=["numpy"]).layers == ("block_bn1",)


def test_the_model_itself_is_held_against_the_reference():
    good, bad = (Runs(record(), error=error) for error in (0.0, 1e-3))
    found = bn.verify(good, data=X, engines=["numpy"])
    assert found.agrees
    assert found.model_run.status == "agrees"
    assert found.model_run.layers[0].count == X.size
    assert good.seen == [8, 8, 4]
    found = bn.verify(bad, data=X, engines=["numpy"])
    assert (found.model_run.status, found.engines[0].status, found.agrees) == ("differs", "agrees", False)
    assert found.model_run.max_abs == pytest.approx(1e-3, rel=1e-3)
    assert "the model itself" in str(found)
    valid(found)


def test_a_layer_of_the_numpy_kind_is_left_alone():
    layer = bn.BatchNormalization(dtype="float64")
    layer(X.astype(np.float64), training=True)
    with assert_unchanged(layer):
        assert bn.verify(layer, data=X, engines=["numpy"]).agrees
        with pytest.raises(bn.ArgumentError):
            bn.verify(layer, data=X[:, :2], engines=["numpy"])


@pytest.mark.parametrize("axis", [1, (1, 2), (0,)])
def test_any_axis(axis):
    layer = bn.BatchNormalization(axis=axis)
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    layer(x, training=True)
    found = bn.verify(layer, data=x, engines=["numpy", "reference"], batch_size=5)
    assert found.agrees
    assert found.model_run.layers[0].count == x.size


def test_batches_of_any_kind():
    for data in (iter([X[:3], X[3:]]), [(X, None)], [X, X], (batch for batch in (X,))):
        assert bn.verify(Runs(record()), data=data, engines=["numpy"]).agrees
    for data, message in (([], "no sample"), (3, "iterable of batches"), (np.float32(1), "no sample"),
                          ({}, "same number"), ({"a": X, "b": X[:2]}, "same number")):  # fmt: skip
        with pytest.raises(bn.ArgumentError, match=message):
            bn.verify(Runs(record()), data=data, engines=["numpy"])


def test_memory_is_constant_in_the_number_of_samples():
    wide = record(channels=64, **{name: np.tile(getattr(record(), name), 16)
                                  for name in ("gamma", "beta", "moving_mean", "moving_variance")})  # fmt: skip
    batch = np.ones((2000, 64), np.float32)

    def peak(count):
        tracemalloc.start()
        found = bn.verify(Runs(wide), data=(batch + n for n in range(count)), engines=["numpy"])
        assert found.engines[0].layers[0].count == count * batch.size
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return reached

    peak(1)
    few, many = peak(2), peak(40)
    # 38 more batches of 0.5 MB, in float64 1 MB: a hoard of any kind of them would show twentyfold.
    assert many < 1.2 * few


def test_drawn_numbers_depend_on_the_seed_alone():
    def share(**more):
        return bn.verify(DIGITS, engines=["numpy"], **more).engines[0].layers

    assert share() == share(batch_size=3)
    assert share(seed=1) != share()
    assert share(random=5)[0].count == 5 * 16


def test_inputs_saved_and_loaded(tmp_path, run):
    file = tmp_path / "inputs.npz"
    first = bn.verify(Runs(record()), data=X, save_inputs=file, engines=["numpy"])
    again = bn.verify(Fake(record()), load_inputs=file, engines=["numpy"])
    assert again.engines[0].layers == first.engines[0].layers
    assert again.input.source == "saved inputs"
    with np.load(file, allow_pickle=False) as held:
        np.testing.assert_array_equal(np.concatenate([held[f"x0_{n}"] for n in range(3)]), X)
    assert [path.name for path in tmp_path.iterdir()] == ["inputs.npz"]
    with pytest.raises(bn.ArgumentError, match="--force"):
        bn.verify(Runs(record()), data=X, save_inputs=file, engines=["numpy"])
    bn.verify(Runs(record()), data=X[:3], save_inputs=file, force=True, engines=["numpy"])
    digits = tmp_path / "digits.npz"
    assert run("verify", DIGITS, "--engines", "numpy", "--save-inputs", digits)[0] == 0
    assert run("verify", DIGITS, "--engines", "numpy", "--load-inputs", digits)[0] == 0
    assert bn.verify(DIGITS, layer="stem_bn", load_inputs=digits, engines=["numpy"]).agrees


def test_saved_inputs_of_other_names_are_taken_in_their_order(tmp_path):
    """As in another format; one layer of another name is another layer."""
    file = tmp_path / "inputs.npz"
    first = bn.verify(Runs(record(name="a"), two(name="b")), data=None, engines=["numpy"], save_inputs=file)
    again = bn.verify(Fake(record(name="x"), two(name="y")), load_inputs=file, engines=["numpy"])
    counts = [[layer.count for layer in found.engines[0].layers] for found in (first, again)]
    assert counts[0] == counts[1]
    assert again.engines[0].max_abs == first.engines[0].max_abs
    assert "in their order" in again.notes[-1]
    with pytest.raises(bn.ArgumentError, match="channels"):
        bn.verify(Fake(two(name="x"), record(name="y")), load_inputs=file, engines=["numpy"])
    with pytest.raises(bn.UnknownLayer):
        bn.verify(Fake(record(name="x")), load_inputs=file, engines=["numpy"])
    with pytest.raises(bn.UnknownLayer):
        bn.verify(Fake(record(name="a"), two(name="y")), load_inputs=file, engines=["numpy"])


def test_an_error_leaves_no_half_written_file(tmp_path):
    def failing():
        yield X
        raise KeyError("data")

    with pytest.raises(KeyError):
        bn.verify(Runs(record()), data=failing(), save_inputs=tmp_path / "inputs.npz", engines=["numpy"])
    assert list(tmp_path.iterdir()) == []


def test_bad_files_of_inputs(tmp_path, run):
    good = tmp_path / "good.npz"
    bn.verify(Runs(record()), data=X, save_inputs=good, engines=["numpy"])
    cut = tmp_path / "cut.npz"
    cut.write_bytes(good.read_bytes()[:300])
    other = tmp_path / "other.npz"
    np.savez(other, a=X)
    plain = tmp_path / "plain.npy"
    np.save(plain, X)
    shape = tmp_path / "shape.npz"
    np.savez(shape, layers=np.array(["bn"]), x0_0=X[:, :2])
    for file in (cut, other, plain, shape, tmp_path / "none.npz", tmp_path):
        with pytest.raises(bn.ArgumentError, match="--load-inputs"):
            bn.verify(Fake(record()), load_inputs=file, engines=["numpy"])
    with pytest.raises(bn.UnknownLayer, match="no input of 'else'"):
        bn.verify(Fake(record(name="else")), load_inputs=good, engines=["numpy"])
    status, _, err = run("verify", DIGITS, "--load-inputs", cut)
    assert (status, len(err.splitlines())) == (2, 1)
    assert run("verify", DIGITS, "--save-inputs", tmp_path / "no" / "x.npz", "--engines", "numpy")[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--engines", "cuda"), ("--engines", ""), ("--x", "1,5", "--data", "x.npy"), ("--x", "1,5"), ("--random", "0"),
        ("--seed", "-1"), ("--atol", "-1"), ("--rtol", "nan"), ("--batch-size", "0"), ("--layer", "none"),
        ("--data", "none.npy"), ("none.keras",),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(arguments, run):
    status, out, err = run("verify", DIGITS, *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)


def test_no_epsilon_and_no_statistics():
    with pytest.raises(bn.ArgumentError, match="--eps"):
        bn.verify(Fake(record(epsilon=None, epsilon_source="unknown")), engines=["numpy"])
    bare = record(name="bare", moving_mean=None, moving_variance=None)
    with pytest.raises(bn.ArgumentError, match="no moving statistics"):
        bn.verify(Fake(bare), engines=["numpy"])
    assert "bare" in bn.verify(Fake(record(), bare), engines=["numpy"]).notes[-1]
    with pytest.raises(bn.NoBatchNorm):
        bn.verify(Fake(), engines=["numpy"])


def test_damaged_statistics_are_the_same_everywhere():
    damaged = record(moving_variance=f32(-1, np.nan, np.inf, 1))
    found = bn.verify(Fake(damaged), engines=["numpy", "reference"])
    assert found.agrees


def test_two_models_on_the_same_input():
    a = Runs(record(name="one"), record(name="two"))
    same = bn.verify(a, Runs(record(name="one"), record(name="two")), data=X)
    assert same.agrees
    assert same.engines == ()
    document = valid(same)
    assert [model["path"] for model in document["models"]] == ["model.keras"] * 2
    b = Runs(record(name="one"), record(name="two", epsilon=0.1))
    found = bn.verify(a, b, data=X)
    first = found.comparison.first_diverging
    assert (first.a, first.cause, first.constants) == ("two", "constant", ("epsilon",))
    assert first.input_max_abs == 0.0
    assert "They part at two" in str(found)
    assert not found.agrees
    valid(found)


def test_an_engine_is_the_cause_where_constants_agree():
    found = bn.verify(Runs(record()), Runs(record(), error=0.01), data=X)
    first = found.comparison.first_diverging
    assert (first.cause, first.constants) == ("engine", ())
    assert "second" in first.why


def test_without_data_the_constants_alone_are_compared():
    a, b = Fake(record()), Fake(record(beta=f32(0.1, -0.2, 0.0, 0.4)))
    found = bn.verify(a, b)
    assert found.comparison.first_diverging.cause == "constant"
    assert found.comparison.first_diverging.max_abs == pytest.approx(0.1, rel=1e-6)
    assert bn.verify(a, Fake(record(epsilon=float(np.float32(1e-3))))).agrees
    assert bn.verify(a, b, atol=0.2).agrees
    assert bn.verify(a, b, x=[1, 2, 3, 4], engines=["numpy"]).engines[0].status == "agrees"


def test_layers_without_their_like():
    found = bn.verify(Runs(record(name="one"), two(name="two")), Runs(record(name="one")))
    assert (found.comparison.only_a, found.comparison.only_b) == (("two",), ())
    assert "Only in the first: two" in str(found)


def test_channels_elsewhere():
    """A channels-last model beside its channels-first conversion: the input is transposed for the second."""
    last, first = (bn.BatchNormalization(axis=axis) for axis in (-1, 1))
    x = np.random.default_rng(0).normal(size=(6, 5, 7, 3)).astype(np.float32)
    last(x, training=True)
    first.build((None, 3, 5, 7))
    first.set_weights(last.get_weights())
    other = bn.load(first)
    found = bn.verify(last, Format(other, "other"), data=x)
    assert found.agrees
    assert found.comparison.pairs[0].count == x.size
    assert "transposed" in found.notes[-1]


def test_the_help_names_every_engine_and_format(run):
    status, out, _ = run("verify", "--help")
    assert status == 0
    words = "".join(out.split())  # a line may end at the hyphen of a name
    assert all(name in words for name in norms.ENGINES)
    for suffix in (".keras", ".weights.h5", ".h5", ".hdf5", ".onnx", ".pt2", ".pt", ".pth", ".ckpt", ".bin",
                   ".safetensors", ".tflite", "SavedModel", "--trust", "safe_mode"):  # fmt: skip
        assert suffix in out


class Format:
    """A model under another format's name."""

    def __init__(self, model, name):
        self.model, self.format = model, name

    def __getattr__(self, name):
        return getattr(self.model, name)
