"""``.safetensors``: state dicts of every framework's names, and files that nobody should write."""

import json
import random
import resource
import struct
import time

import ml_dtypes
import numpy as np
import pytest

from batchnorm.errors import ModelFileError
from batchnorm.models import open_model

from .fuzzing import mutated, outcomes
from .test_bad_files import refused

CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}


def write(path, arrays, metadata=None, header=None):
    entries, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, array in arrays.items():
        array = np.asarray(array)
        offsets = [len(data), len(data) + array.nbytes]
        entries[name] = {"dtype": CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(entries if header is None else header(entries)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def norm(prefix="bn.", n=3, dtype="f4", **changes):
    rng = np.random.default_rng(n)
    arrays = {
        "weight": rng.normal(size=n).astype(dtype),
        "bias": rng.normal(size=n).astype(dtype),
        "running_mean": rng.normal(size=n).astype(dtype),
        "running_var": rng.uniform(1, 2, n).astype(dtype),
        "num_batches_tracked": np.array(7),
    } | changes
    return {prefix + name: array for name, array in arrays.items() if array is not None}


def test_every_field_of_a_torch_layer(tmp_path):
    arrays = norm("module.layer1.0.bn1.")
    (record,) = open_model(write(tmp_path / "m.safetensors", arrays)).layers
    assert (record.name, record.kind, record.channels, record.axis) == ("module.layer1.0.bn1", "BatchNorm", 3, 1)
    assert (record.epsilon, record.epsilon_source, record.decay, record.momentum) == (None, "unknown", None, None)
    assert (record.averaging, record.ddof, record.mode, record.dtype) == ("unknown", 1, "by-call", "float32")
    assert (record.updates, record.updates_source, record.initial_weight) == (7, "num_batches_tracked", None)
    for ours, theirs in {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
                         "moving_variance": "running_var"}.items():  # fmt: skip
        np.testing.assert_array_equal(getattr(record, ours), arrays[f"module.layer1.0.bn1.{theirs}"])


def test_the_name_of_the_file_does_not_matter_and_eps_is_taken(tmp_path):
    path = write(tmp_path / "model.bin", norm())
    (record,) = open_model(path, epsilon=1e-3).layers
    assert (record.epsilon, record.epsilon_source) == (1e-3, "option")
    assert any("epsilon and momentum are unknown" in note for note in open_model(path).notes)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_types(tmp_path, dtype):
    arrays = norm(dtype=np.dtype(dtype if dtype != "bfloat16" else ml_dtypes.bfloat16))
    (record,) = open_model(write(tmp_path / "m.safetensors", arrays)).layers
    assert record.dtype == dtype
    np.testing.assert_array_equal(record.moving_variance, arrays["bn.running_var"])


def test_layers_are_in_natural_order_and_the_rest_is_named(tmp_path):
    arrays = norm("b.10.") | norm("b.9.") | norm("b.9.bn2.") | norm("b.9.bn.") | {"conv.weight": np.ones((2, 2), "f4")}
    model = open_model(write(tmp_path / "m.safetensors", arrays))
    assert [record.name for record in model.layers] == ["b.9", "b.9.bn", "b.9.bn2", "b.10"]
    assert model.other_layers == ("conv",)


def test_absent_parameters(tmp_path):
    (record,) = open_model(write(tmp_path / "m.safetensors", norm(weight=None, bias=None))).layers
    assert record.gamma is None
    assert record.beta is None


def test_counters(tmp_path):
    def read(counter, **changes):
        path = write(tmp_path / "m.safetensors", norm(num_batches_tracked=counter, **changes))
        return open_model(path).layers[0]

    assert read(np.array([3])).updates == 3
    moved = read(np.array(0))
    assert moved.updates is None
    assert "0 updates" in moved.updates_doubt
    assert "-4" in read(np.array(-4)).updates_doubt
    assert "float32" in read(np.array(1.5, "f4")).updates_doubt
    fresh = read(np.array(0), running_mean=np.zeros(3, "f4"), running_var=np.ones(3, "f4"))
    assert (fresh.updates, fresh.updates_doubt) == (0, None)


def test_without_a_counter_whether_it_is_frozen_is_not_known(tmp_path):
    model = open_model(write(tmp_path / "m.safetensors", norm("a.") | norm("b.", num_batches_tracked=None)))
    assert [record.mode for record in model.layers] == ["by-call", None]
    assert any(note.startswith("1 of 2") and "FrozenBatchNorm" in note for note in model.notes)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (norm(running_var=None), ["'bn'", "running_mean", "no running_var"]),
        (norm(running_mean=None), ["'bn'", "running_var", "no running_mean"]),
        (norm(running_var=np.ones(4, "f4")), ["'bn'", "one length", "running_var [4]"]),
        (norm(weight=np.ones((3, 3), "f4")), ["'bn'", "weight [3, 3]"]),
        (norm(running_mean=np.ones(3, "i8")), ["'bn'", "int64"]),
        (norm(n=0), ["'bn'", "[0]"]),
    ],
)
def test_half_a_batch_norm_is_reported(tmp_path, arrays, words):
    model = open_model(write(tmp_path / "m.safetensors", arrays | norm("whole.")))
    assert [record.name for record in model.layers] == ["whole"]
    (note,) = [note for note in model.notes if "half" in note]
    assert all(word in note for word in words), note


def test_many_halves_are_counted(tmp_path):
    arrays = {f"b{number}.running_mean": np.ones(2, "f4") for number in range(9)}
    notes = open_model(write(tmp_path / "m.safetensors", arrays)).notes
    assert len(notes) == 6
    assert "4 more" in notes[-1]


def test_keras_and_flax_names(tmp_path):
    four = [np.arange(2, dtype="f4") + i for i in range(4)]
    keras = dict(zip(("k/gamma:0", "k/beta:0", "k/moving_mean:0", "k/moving_variance:0"), four, strict=True))
    nnx = dict(zip(("n.scale", "n.bias", "n.mean", "n.var"), four, strict=True))
    linen = dict(zip(("params/l/scale", "params/l/bias", "batch_stats/l/mean", "batch_stats/l/var"), four, strict=True))
    model = open_model(write(tmp_path / "m.safetensors", keras | nnx | linen))
    assert [(r.name, r.axis, r.ddof, r.kind) for r in model.layers] == [
        ("l", -1, 0, "BatchNorm"),
        ("k", -1, None, "BatchNormalization"),
        ("n", -1, 0, "BatchNorm"),
    ]
    for record in model.layers:
        np.testing.assert_array_equal([record.gamma, record.beta, record.moving_mean, record.moving_variance], four)


def test_mean_and_var_alone_are_nothing(tmp_path):
    arrays = {"data.mean": np.ones(3, "f4"), "data.var": np.ones(3, "f4"), "x.mean": np.ones(2, "f4")}
    model = open_model(write(tmp_path / "m.safetensors", arrays))
    assert model.layers == ()
    assert model.notes == ()
    assert model.other_layers == ("data", "x")


def test_mlx_keeps_the_last_axis(tmp_path):
    path = write(tmp_path / "m.safetensors", norm(num_batches_tracked=None), {"format": "mlx"})
    assert [(r.axis, r.ddof) for r in open_model(path).layers] == [(-1, 0)]


def test_a_hint_is_a_sentence_and_no_number(tmp_path):
    model = open_model(write(tmp_path / "m.safetensors", norm("model.0.bn.")))
    assert model.layers[0].epsilon is None
    assert any("ultralytics" in note and "0.001" in note for note in model.notes)


def test_shards(tmp_path):
    write(tmp_path / "m-1.safetensors", norm("a."))
    write(tmp_path / "m-2.safetensors", norm("b.", running_mean=None) | {"a2.weight": np.ones(2, "f4")})
    write(tmp_path / "m-3.safetensors", {"b.running_mean": np.ones(3, "f4")})
    names = {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors", "b.running_mean": "m-3.safetensors"}
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    assert [record.name for record in open_model(path).layers] == ["a", "b"]
    for bad in ("../m-1.safetensors", "", 3, "none.safetensors"):
        path.write_text(json.dumps({"weight_map": {"x": bad, "y": "m-1.safetensors"}}))
        refused(path, "names")


def entry(**changes):
    return lambda entries: entries | {"bn.running_mean": entries["bn.running_mean"] | changes}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (lambda entries: {"x": 3}, ["'x'", "no array"]),
        (entry(data_offsets=[0, 1 << 60]), ["truncated", "bn.running_mean"]),
        (entry(data_offsets=[12, 0]), ["bn.running_mean"]),
        (entry(data_offsets=[-12, 0]), ["bn.running_mean"]),
        (entry(shape=[1 << 40]), ["contradicts"]),
        (entry(shape=[True]), ["shape"]),
        (entry(shape=[-3]), ["shape"]),
        (entry(shape="3"), ["no array"]),
        (entry(data_offsets=[0]), ["no array"]),
        (lambda entries: {f"{i}\x1b[31m": entries["bn.weight"] for i in range(100)}, ["overlap"]),
    ],
)
def test_bad_headers(tmp_path, header, words):
    refused(write(tmp_path / "m.safetensors", norm(), header=header), *words)


def test_bad_beginnings(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 39) + b"{}")
    refused(path, "claims")
    path.write_bytes(struct.pack("<Q", 1000) + b"{}")
    refused(path, "truncated")
    path.write_bytes(struct.pack("<Q", 3) + b"{x}")
    refused(path, "no JSON")
    path.write_bytes(struct.pack("<Q", 400_000) + b'{"a":' * 80_000)
    refused(path, "no JSON")


def test_a_large_file_costs_its_header(tmp_path):
    path = write(tmp_path / "m.safetensors", norm())
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + length])
    end = max(each["data_offsets"][1] for each in entries.values())
    entries["big.weight"] = {"dtype": "F32", "shape": [1 << 30], "data_offsets": [end, end + (4 << 30)]}
    text = json.dumps(entries).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text + data[8 + length :])
        stream.truncate(8 + len(text) + end + (4 << 30))  # 4 GB that take no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    assert len(open_model(path).layers) == 1
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_fuzz(tmp_path):
    data = write(tmp_path / "m.safetensors", norm("a.") | norm("b.", dtype="f8")).read_bytes()
    rng = random.Random(3)  # noqa: S311
    tally = outcomes(tmp_path / "f.safetensors", (mutated(data, rng) for _ in range(300)))
    assert tally["refused"] > 50
    assert tally["slowest"] < 2


def test_nothing_of_it_needs_a_package(in_subprocess, tmp_path):
    path = write(tmp_path / "m.safetensors", norm())
    code = f"""
import sys
from batchnorm.models import open_model
assert len(open_model({str(path)!r}).layers) == 1
assert not {{"torch", "safetensors", "onnx", "keras"}} & set(sys.modules)
"""
    in_subprocess(code)


def test_not_run(tmp_path):
    model = open_model(write(tmp_path / "m.safetensors", norm()))
    with pytest.raises(ModelFileError, match="weights and no graph"):
        model.run(np.ones((1, 3)))
