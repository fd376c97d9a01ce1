"""Files that cannot be read: one line each, in bounded time, whatever was done to them."""

import contextlib
import copy
import io
import json
import random
import resource
import struct
import time
import tracemalloc
import zipfile
import zlib

import h5py
import numpy as np
import pytest

from batchnorm.errors import ModelFileError
from batchnorm.models import open_model

from .fuzzing import mutated

SECONDS = 5.0


def refused(path, *words):
    started = time.process_time()
    with pytest.raises(ModelFileError) as caught:
        open_model(path)
    assert time.process_time() - started < SECONDS
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert "\n" not in message
    assert "\x1b" not in message
    said = message.replace(str(path), "")  # the path holds the name of the test
    for word in words:
        assert word in said, message


def norm_config(**changes):
    settings = {"name": "bn", "trainable": True, "axis": -1, "momentum": 0.99, "epsilon": 0.001} | changes
    layer = {"module": "keras.layers", "class_name": "BatchNormalization", "config": settings, "registered_name": None}
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "m", "layers": [layer]}}


def weights(arrays=None, edit=None):
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        group = file.create_group("layers/batch_normalization/vars")
        group.attrs["name"] = "bn"
        for number, array in enumerate([np.ones(3, "f4")] * 4 if arrays is None else arrays):
            group[str(number)] = array
        if edit is not None:
            edit(file)
    return memory.getvalue()


def keras_zip(path, config=None, data=None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("config.json", json.dumps(norm_config() if config is None else config))
        archive.writestr("model.weights.h5", weights() if data is None else data)
    return path


def test_the_hand_made_file_is_fine(tmp_path):
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        (record,) = open_model(keras_zip(tmp_path / "m.keras", compression=compression)).layers
        assert (record.name, record.channels, record.epsilon) == ("bn", 3, 0.001)


def test_missing_empty_and_unknown(tmp_path):
    refused(tmp_path / "none.keras", "no such file")
    (tmp_path / "empty.keras").touch()
    refused(tmp_path / "empty.keras", "empty")
    (tmp_path / "text.keras").write_text("hello\x1b[31m\n")
    refused(tmp_path / "text.keras", "no known format")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "folder", "config.json")


def test_a_head_and_nothing_behind_it(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3")
    refused(tmp_path / "m.tflite", "damaged")


def test_an_empty_saved_model(tmp_path):
    (tmp_path / "saved_model.pb").touch()
    refused(tmp_path, "saved_model.pb", "holds no graph")


def test_truncated(tmp_path):
    whole = keras_zip(tmp_path / "m.keras").read_bytes()
    path = tmp_path / "cut.keras"
    for length in (1, 10, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path)


def test_zip_without_config(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("\x1b[31m.txt", "x")
    refused(tmp_path / "m.keras", "config.json")


def test_weights_in_pickles(tmp_path):
    """Keras once wrote model.weights.npz, whose arrays are pickles; today's Keras does not load them either."""
    way_out = ("model.weights.npz, whose arrays are pickles", "model.save('model.keras')")
    np.savez(tmp_path / "model.weights.npz", a=np.array({"0": np.ones(3)}, object))
    (tmp_path / "config.json").write_text(json.dumps(norm_config()))
    refused(tmp_path, *way_out)
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name in ("config.json", "model.weights.npz"):
            archive.write(tmp_path / name, name)
    refused(tmp_path / "m.keras", *way_out)


def test_encrypted(tmp_path):
    path = keras_zip(tmp_path / "m.keras")
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + flags] |= 1
    path.write_bytes(data)
    refused(path, "encrypted")


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
def test_zip_bomb_of_10_gigabytes(tmp_path, member):
    """The member's entry claims 10 GB; what is stored is some kilobytes."""
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("config.json", "model.weights.h5"):
            if name != member:
                archive.writestr(name, "{}")
        archive.writestr(member, bytes(10_000_000))
        archive.filelist[-1].file_size = 10_000_000_000
    refused(path, "bomb")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ([1], ["list"]),
        (norm_config(epsilon="rm -rf"), ["'bn'", "epsilon"]),
        (norm_config(epsilon=10**400), ["'bn'", "epsilon"]),
        (norm_config(epsilon=float("nan")), ["'bn'", "epsilon"]),
        (norm_config(momentum=None), ["'bn'", "momentum"]),
        (norm_config(axis="all\n"), ["'bn'", "axis"]),
        (norm_config(name="\x1b[31m</script>\n" * 1000, epsilon=[]), ["epsilon"]),
        (norm_config(scale=True, name="other"), None),
    ],
)
def test_hostile_configs(tmp_path, config, words):
    path = keras_zip(tmp_path / "m.keras", config)
    if words is None:
        assert open_model(path).layers[0].name == "other"
    else:
        refused(path, *words)


def test_deeply_nested_json(tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", '{"config":' * 100_000 + "1" + "}" * 100_000)
        archive.writestr("model.weights.h5", weights())
    refused(path)
    deep = norm_config()
    for _ in range(300):
        deep = {"class_name": "Sequential", "config": {"layers": [deep]}}
    refused(keras_zip(path, deep))


def test_code_in_a_config_is_only_a_name(tmp_path):
    config = norm_config()
    config["config"]["layers"].append(
        {"module": "os", "class_name": "system", "config": {"name": "lambda", "function": "import os"}}
    )
    assert len(open_model(keras_zip(tmp_path / "m.keras", config)).layers) == 1


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([], ["'bn'", "moving_variance", "0 of 4"]),
        ([np.ones(3, "f4")] * 3, ["'bn'", "3 of 4"]),
        ([np.ones(3, "f4")] * 3 + [np.ones(4, "f4")], ["'bn'", "moving_variance [4]"]),
        ([np.ones((3, 3), "f4")] * 3 + [np.ones(3, "f4")], ["'bn'"]),
        ([np.ones((), "f4")] * 4, ["'bn'"]),
        ([np.ones(0, "f4")] * 4, ["'bn'"]),
        ([np.ones(3, "i4")] * 4, ["'bn'", "int32"]),
        ([np.array([b"x", b"y"])] * 4, ["'bn'"]),
    ],
)
def test_wrong_arrays(tmp_path, arrays, words):
    refused(keras_zip(tmp_path / "m.keras", data=weights(arrays)), *words)


def edit_external(file):
    file["layers/batch_normalization/vars/9"] = h5py.ExternalLink("/etc/passwd", "/")


def edit_external_root(file):
    file["other"] = h5py.ExternalLink("/etc/passwd", "/")


def edit_soft(file):
    del file["layers/batch_normalization/vars/3"]
    file["layers/batch_normalization/vars/3"] = h5py.SoftLink("/layers/batch_normalization/vars/2")


def edit_storage(file):
    del file["layers/batch_normalization/vars/3"]
    file["layers/batch_normalization/vars"].create_dataset(
        "3", (3,), "f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
    )


def edit_virtual(file):
    del file["layers/batch_normalization/vars/3"]
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (3,))
    file["layers/batch_normalization/vars"].create_virtual_dataset("3", layout)


def edit_huge(file):
    for number in range(4):
        del file[f"layers/batch_normalization/vars/{number}"]
        file["layers/batch_normalization/vars"].create_dataset(str(number), (1 << 40,), "f4", chunks=(1 << 20,))


def edit_compressed(file):
    group = file["layers/batch_normalization/vars"]
    del group["0"]
    group.create_dataset("0", (1 << 26,), "f4", chunks=(1 << 26,), compression=1)[:] = 0


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (edit_external, ["another file"]),
        (edit_external_root, ["another file"]),
        (edit_soft, ["is a link to"]),
        (edit_storage, ["another file"]),
        (edit_virtual, []),
        (edit_huge, ["claims"]),
        (edit_compressed, ["claim"]),
    ],
)
def test_links_and_bombs_inside_hdf5(tmp_path, edit, words):
    refused(keras_zip(tmp_path / "m.keras", data=weights(edit=edit)), *words)


def test_chunked_and_compressed_vectors_are_read(tmp_path):
    def edit(file):
        for number in range(4):
            del file[f"layers/batch_normalization/vars/{number}"]
            file["layers/batch_normalization/vars"].create_dataset(
                str(number), data=np.arange(3, dtype="f4") + number, chunks=(2,), compression=4, shuffle=True
            )

    (record,) = open_model(keras_zip(tmp_path / "m.keras", data=weights(edit=edit))).layers
    np.testing.assert_array_equal(record.moving_variance, [3, 4, 5])


def test_groups_that_contain_themselves(tmp_path):
    def edit(file):
        file["layers/again"] = file["layers"]
        file["again"] = file["/"]

    path = tmp_path / "m.weights.h5"
    path.write_bytes(weights(edit=edit))
    assert len(open_model(path).layers) == 1


def test_hdf5_of_another_program(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["x"] = np.ones(3)
    refused(tmp_path / "m.h5", "no Keras layout")


@pytest.mark.parametrize("name", ["../up.h5", "/etc/passwd", "", "..", 3, ["a/b"], None])
def test_shards_elsewhere(tmp_path, name):
    path = tmp_path / "m.weights.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": {"/vars": name}}))
    refused(path, "no file beside it")


def test_missing_shard(tmp_path):
    path = tmp_path / "m.weights.json"
    path.write_text(json.dumps({"weight_map": {"/vars": "m_00000.weights.h5"}}))
    refused(path, "m_00000.weights.h5", "No such file")


def test_many_links_into_one_long_name(tmp_path):
    """2500 links whose names are tails of one of 300 kB: 750 MB, if they were all read."""
    memory = io.BytesIO()
    long = b"z" * 300_000
    with h5py.File(memory, "w") as file:
        group = file.create_group("layers")
        group[long] = np.ones(1)
        for number in range(2500):
            group[f"{number:05d}"] = h5py.SoftLink("/")
    data = bytearray(memory.getvalue())
    start = data.rfind(b"HEAP", 0, data.find(long))
    segment = struct.unpack_from("<Q", data, start + 24)[0]
    patched, at = 0, -1
    while (at := data.find(b"SNOD", at + 1)) >= 0:
        for number in range(struct.unpack_from("<H", data, at + 6)[0]):
            entry = at + 8 + 40 * number
            if struct.unpack_from("<Q", data, entry)[0] < len(data) - segment:
                data[entry : entry + 8] = struct.pack("<Q", data.find(long) - segment + patched)
                patched += 1
    assert patched > 2000
    (tmp_path / "m.weights.h5").write_bytes(data)
    tracemalloc.start()
    try:
        refused(tmp_path / "m.weights.h5", "loop")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def newer_structures(data):
    memory = io.BytesIO()
    with h5py.File(io.BytesIO(data)) as source, h5py.File(memory, "w", libver="latest") as target:
        for name in source:
            source.copy(name, target)
    return memory.getvalue()


def zipped(config, data):
    """The archive with right checksums, so that the damage reaches the reader."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", data)
    assert zlib.crc32(data) >= 0
    return memory.getvalue()


def fuzz(keras_files, folder, count, seed):
    """Opens damaged copies of real files; returns how many opened, how many were refused, and the slowest."""
    rng = random.Random(seed)  # noqa: S311
    with zipfile.ZipFile(keras_files / "nested.keras") as archive:
        config, inner = archive.read("config.json"), archive.read("model.weights.h5")
    sources = [
        (".keras", lambda data: zipped(config, data), inner),
        (".keras", lambda data: data, (keras_files / "nested.keras").read_bytes()),
        (".weights.h5", lambda data: data, (keras_files / "functional.weights.h5").read_bytes()),
        (".h5", lambda data: data, (keras_files / "nested.h5").read_bytes()),
        (".weights.h5", lambda data: data, newer_structures((keras_files / "nested.weights.h5").read_bytes())),
    ]
    tally = {"opened": 0, "refused": 0, "slowest": 0.0}
    for number in range(count):
        suffix, wrap, data = sources[number % len(sources)]
        path = folder / f"fuzzed{suffix}"
        path.write_bytes(wrap(mutated(data, rng)))
        started = time.process_time()
        outcome = "refused"
        with contextlib.suppress(ModelFileError):
            open_model(path)
            outcome = "opened"
        tally[outcome] += 1
        tally["slowest"] = max(tally["slowest"], time.process_time() - started)
    return tally


def test_damaged_files_open_or_are_refused(keras_files, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally = fuzz(keras_files, tmp_path, 160, seed=1)
    assert tally["opened"] + tally["refused"] == 160
    assert tally["refused"] > 20
    assert tally["slowest"] < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024


ODD = (None, True, -1, 10**400, 1e308, float("nan"), "", "x\x1b[31m\n", [], {}, [[]], [None], {"class_name": 3},
       {"class_name": [], "config": []}, {"config": {"axis": 0, "epsilon": 1, "momentum": 0}})  # fmt: skip


def places(value, found, depth=0):
    """Every (container, key) of a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        places(inner, found, depth + 1)
    return found


def fuzz_config(config, weights, path, count, seed):
    rng = random.Random(seed)  # noqa: S311
    tally = {"opened": 0, "refused": 0}
    for _ in range(count):
        document = json.loads(config)
        for _ in range(rng.choice((1, 1, 2, 4))):
            container, key = rng.choice(places(document, []))
            other, at = rng.choice(places(document, []))
            container[key] = copy.deepcopy(rng.choice((*ODD, other[at])))
        path.write_bytes(zipped(json.dumps(document), weights))
        outcome = "refused"
        with contextlib.suppress(ModelFileError):
            for record in open_model(path).layers:
                assert record.name is not None
            outcome = "opened"
        tally[outcome] += 1
    return tally


@pytest.mark.parametrize("name", ["nested", "wrapped", "shared_across"])
def test_odd_configs_open_or_are_refused(keras_files, tmp_path, name):
    with zipfile.ZipFile(keras_files / f"{name}.keras") as archive:
        config, inner = archive.read("config.json"), archive.read("model.weights.h5")
    tally = fuzz_config(config, inner, tmp_path / "m.keras", 60, seed=5)
    assert tally["opened"] > 5
    assert tally["refused"] >= 1
