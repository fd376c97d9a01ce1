"""Records of files that the installed Keras wrote, against what the live models say of themselves."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest

from batchnorm.core.protocols import Model
from batchnorm.models import open_model

VARIANTS = ("functional", "sequential", "nested", "shared", "shared_across", "wrapped", "unknown_time", "renorm",
            "mixed", "halves", "no_norm", "counter_lost", "custom", "subclassed", "hostile")  # fmt: skip
LEGACY = ("functional", "sequential", "nested", "shared", "wrapped", "renorm", "no_norm")
AMBIGUOUS = ("no_scale", "no_center")
ARRAYS = ("gamma", "beta", "moving_mean", "moving_variance")


def wanted(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def same_arrays(record, arrays):
    for role in ARRAYS:
        got, want = getattr(record, role), arrays[role]
        assert (got is None) == (want is None), (record.name, role)
        if got is not None:
            np.testing.assert_array_equal(got.astype(np.float64), np.array(want), err_msg=f"{record.name} {role}")


def same(record, want):
    for key in ("name", "kind", "channels", "axis", "dtype", "epsilon", "decay", "mode", "updates"):
        assert getattr(record, key) == want[key], (record.name, key)
    assert record.momentum == want["decay"]
    assert record.epsilon_source == ("unknown" if want["epsilon"] is None else "file")
    assert record.updates_source == (None if want["updates"] is None else "optimizer iterations")
    if "doubt" in want:
        assert want["doubt"] in record.updates_doubt
    else:
        assert record.updates_doubt is None
    same_arrays(record, want["arrays"])


@pytest.mark.parametrize("name", VARIANTS)
def test_keras_file(keras_files, name):
    model = open_model(keras_files / f"{name}.keras")
    assert isinstance(model, Model)
    assert model.format == "keras"
    expected = wanted(keras_files, name)
    assert sorted(record.name for record in model.layers) == sorted(want["name"] for want in expected)
    by_name = {record.name: record for record in model.layers}
    for want in expected:
        same(by_name[want["name"]], want)


@pytest.mark.parametrize("name", LEGACY)
def test_legacy_h5_says_the_same(keras_files, name):
    model = open_model(keras_files / f"{name}.h5")
    assert model.format == "hdf5"
    expected = wanted(keras_files, name)
    assert [record.name for record in model.layers] == [want["name"] for want in expected]
    for record, want in zip(model.layers, expected, strict=True):
        same(record, want)


def test_legacy_h5_does_not_lose_custom_layers_silently(keras_files):
    model = open_model(keras_files / "custom.h5")
    assert {record.name for record in model.layers} >= {"sync", "bn"}
    assert any("'block'" in note for note in model.notes)


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_alone(keras_files, name):
    model = open_model(keras_files / f"{name}.weights.h5")
    assert model.format == "weights.h5"
    by_name = {record.name: record for record in model.layers}
    for want in wanted(keras_files, name):
        record = by_name[want["name"]]
        assert (record.epsilon, record.decay, record.updates, record.mode) == (None, None, None, None)
        if want["name"] not in AMBIGUOUS:
            same_arrays(record, want["arrays"])
    assert len(by_name) == len(wanted(keras_files, name))
    assert "no config" in model.notes[0]


def test_three_arrays_are_called_ambiguous(keras_files):
    model = open_model(keras_files / "functional.weights.h5")
    for name in AMBIGUOUS:
        assert any(name in note and "gamma or beta" in note for note in model.notes)


@pytest.mark.parametrize("name", ["unzipped", "sharded.weights.json"])
def test_folder_and_shards(keras_files, name):
    model = open_model(keras_files / name)
    by_name = {record.name: record for record in model.layers}
    for want in wanted(keras_files, "functional"):
        if want["name"] not in AMBIGUOUS or name == "unzipped":
            same_arrays(by_name[want["name"]], want["arrays"])


def test_names_across_shards(keras_files):
    """The name of a nested model lies in one shard, its layers in others."""
    model = open_model(keras_files / "nested_sharded.weights.json")
    assert model.format == "weights.json"
    assert len(list(keras_files.glob("nested_sharded_*.h5"))) > 2
    by_name = {record.name: record for record in model.layers}
    for want in wanted(keras_files, "nested"):
        same_arrays(by_name[want["name"]], want["arrays"])


def test_folder_with_sharded_weights(keras_files, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(keras_files / "unzipped" / "config.json", folder)
    shutil.copy(keras_files / "sharded.weights.json", folder / "model.weights.json")
    for shard in keras_files.glob("sharded_*.weights.h5"):
        shutil.copy(shard, folder)
    model = open_model(folder)
    for record, want in zip(model.layers, wanted(keras_files, "functional"), strict=True):
        same(record, want)


def test_epsilon_fills_only_what_the_file_lacks(keras_files):
    for record in open_model(keras_files / "functional.weights.h5", epsilon=1e-3).layers:
        assert (record.epsilon, record.epsilon_source) == (1e-3, "option")
    assert open_model(keras_files / "functional.keras", epsilon=0.5).layers[0].epsilon == 1e-5


def test_initial_variance_is_what_the_initializer_gave(keras_files):
    records = {record.name: record for record in open_model(keras_files / "functional.keras").layers}
    assert records["odd_start"].initial_variance == 2.5
    assert records["full"].initial_variance == 1.0


def test_a_loss_scaling_optimizer_is_a_lower_bound(keras_files):
    assert any("lower bound" in note for note in open_model(keras_files / "mixed.keras").notes)


def test_other_layers_are_named_where_there_is_no_batch_norm(keras_files):
    for name in ("no_norm.keras", "no_norm.h5", "no_norm.weights.h5"):
        assert open_model(keras_files / name).other_layers == ("only",)


def test_subclassed_model_says_what_is_unknown(keras_files):
    (note,) = open_model(keras_files / "subclassed.keras").notes
    assert "epsilon, momentum and axis are unknown" in note


@pytest.mark.parametrize("name", ["functional.keras", "functional.weights.h5", "functional.h5"])
def test_content_decides_not_the_name(keras_files, tmp_path, name):
    renamed = tmp_path / "model.onnx"
    shutil.copy(keras_files / name, renamed)
    assert open_model(renamed).layers[0].name == "full"


def test_reading_imports_no_framework(keras_files):
    script = (
        "import sys; from batchnorm.models import open_model\n"
        f"for name in ('functional.keras', 'functional.h5', 'subclassed.weights.h5', 'sharded.weights.json'):\n"
        f"    assert open_model(r'{keras_files}/' + name).layers\n"
        "heavy = {'keras', 'tensorflow', 'torch', 'jax', 'h5py'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_the_file_is_not_touched(keras_files):
    path = keras_files / "functional.keras"
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    open_model(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def rewritten(data, edit, **options):
    """The same HDF5 content, written once more."""
    memory = io.BytesIO()
    with h5py.File(io.BytesIO(data)) as source, h5py.File(memory, "w", **options) as target:
        for name in source:
            source.copy(name, target)
        edit(target)
    return memory.getvalue()


def rezipped(source, target, edit, metadata=None, **options):
    with zipfile.ZipFile(source) as archive:
        config, weights = archive.read("config.json"), archive.read("model.weights.h5")
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("metadata.json", json.dumps(metadata or {}))
        archive.writestr("model.weights.h5", rewritten(weights, edit, **options))
    return open_model(target)


def drop_names(file):
    found = []
    file.visititems(lambda name, member: found.append(member) if name.endswith("vars") else None)
    for group in found:
        del group.attrs["name"]


def old_paths(file):
    drop_names(file)
    for path in ("layers/functional/layers/sequential/layers", "layers/functional/layers", "layers/sequential/layers",
                 "layers/sequential_1/layers", "layers"):  # fmt: skip
        if path in file:
            file.move(path, path.removesuffix("layers") + "_layer_checkpoint_dependencies")


@pytest.mark.parametrize("edit", [drop_names, old_paths, lambda file: None])
@pytest.mark.parametrize("options", [{}, {"libver": "latest"}])
def test_files_of_other_versions(keras_files, tmp_path, edit, options):
    """Before 3.9 no group had a name; 2.12 called the groups otherwise; other tools write HDF5's newer structures."""
    model = rezipped(keras_files / "nested.keras", tmp_path / "m.keras", edit, **options)
    for record, want in zip(model.layers, wanted(keras_files, "nested"), strict=True):
        same(record, want)


def test_tf_keras_wrote_this_format_too(keras_files, tmp_path):
    """Its TimeDistributed folded time into the batch, and a baked training=False was kept in fit."""
    metadata = {"keras_version": "2.15.0"}
    model = rezipped(keras_files / "wrapped.keras", tmp_path / "m.keras", lambda file: None, metadata)
    assert [record.updates for record in model.layers] == [2, 2]
    model = rezipped(keras_files / "shared.keras", tmp_path / "m.keras", lambda file: None, metadata)
    assert "training=False" in model.layers[-1].updates_doubt
    assert {record.ddof for record in model.layers} == {None}
