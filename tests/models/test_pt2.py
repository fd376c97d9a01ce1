"""``.pt2``: what torch.export writes, read without PyTorch."""

import copy
import io
import json
import random
import zipfile

import numpy as np
import pytest

from batchnorm.models import open_model

from .fuzzing import mutated, outcomes
from .test_bad_files import ODD, places, refused

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


def edited(source, target, **changes):
    """A copy of an archive with some members made anew: ``changes`` map the end of a name to a function of bytes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            for end, change in changes.items():
                if name.endswith(end.replace("__", "/").replace("_json", ".json")):
                    data = change(data)
            if data is not None:
                new.writestr(name, data)
    return target


def in_json(change):
    def apply(data):
        document = json.loads(data)
        return json.dumps(change(document) or document).encode()

    return apply


@pytest.mark.parametrize("file", ["net.pt2", "decomposed.pt2"])
def test_what_torch_exports(torch_files, file):
    wanted = json.loads((torch_files / "expected.json").read_text())
    found = open_model(torch_files / file)
    assert [record.name for record in found.layers] == list(wanted)
    assert found.format == "pt2"
    for record, want in zip(found.layers, wanted.values(), strict=True):
        assert record.kind == want["kind"]
        assert (record.epsilon, record.epsilon_source, record.axis, record.ddof) == (want["epsilon"], "file", 1, 1)
        assert (record.mode, record.dtype) == ("inference", "float32")
        assert (record.updates, record.updates_source) == (want["updates"], "num_batches_tracked")
        if want["momentum"] is None:
            assert (record.averaging, record.decay, record.momentum) == ("cumulative", None, 0.0)
            assert record.initial_weight is None
        else:
            assert (record.averaging, record.momentum) == ("exponential", want["momentum"])
            assert record.decay == round(1 - want["momentum"], 12)
            assert record.initial_weight == pytest.approx(record.decay**7)
        for role in ROLES:
            if want[role] is None:
                assert getattr(record, role) is None
            else:
                np.testing.assert_array_equal(getattr(record, role), np.array(want[role], "f4"))
        assert "write_torch_files.py:" in record.source


@pytest.mark.parametrize("file", ["train.pt2", "train_decomposed.pt2"])
def test_training_mode_and_no_instance_norm(torch_files, file):
    (record,) = open_model(torch_files / file).layers
    assert (record.name, record.mode, record.momentum, record.decay) == ("bn", "training", 0.2, 0.8)
    assert (record.updates, record.averaging) == (0, "exponential")


def test_without_running_statistics(torch_files):
    (record,) = open_model(torch_files / "batch.pt2").layers
    assert (record.mode, record.moving_mean, record.ddof, record.channels) == ("batch-statistics", None, None, 3)
    np.testing.assert_array_equal(record.gamma, [1, 1, 1])


def test_a_layer_called_twice_is_there_once_and_branches_are_looked_into(torch_files):
    shared, branch = open_model(torch_files / "branching.pt2").layers
    assert (shared.name, branch.name, branch.epsilon) == ("shared", "branch", 0.5)
    np.testing.assert_array_equal(branch.moving_variance, [1, 1, 1])


def test_parts_of_one_storage(torch_files):
    (record,) = open_model(torch_files / "views.pt2").layers
    np.testing.assert_array_equal(record.moving_mean, [3, 5, 7])
    np.testing.assert_array_equal(record.moving_variance, [21, 22, 23])


def test_nothing_is_imported_and_sample_inputs_stay_closed(torch_files, tmp_path, in_subprocess):
    path = edited(torch_files / "net.pt2", tmp_path / "m.any", **{"sample_inputs__model.pt": lambda data: b"no pickle"})
    code = f"""
import sys
from batchnorm.models import open_model
assert len(open_model({str(path)!r}).layers) == 5
assert not {{"torch", "pickle"}} & set(sys.modules) - {{"pickle"}}
"""
    in_subprocess(code)


def test_the_older_layout_keeps_its_weights_in_a_pickle(torch_files, tmp_path):
    with zipfile.ZipFile(torch_files / "net.pt2") as archive:
        graph = archive.read("net/models/model.json")
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", graph)
        archive.writestr("serialized_state_dict.pt", b"\x80\x02")
    found = open_model(tmp_path / "m.pt2")
    assert [record.epsilon for record in found.layers] == [1e-5, 1e-3, 1e-5, 1e-5, 1e-5]
    assert all(record.moving_mean is None for record in found.layers)
    assert any("pickle" in note for note in found.notes)


def test_pickled_weights_stay_closed(torch_files, tmp_path):
    def pickled(document):
        document["config"]["stem.2.running_mean"]["use_pickle"] = True

    path = edited(torch_files / "net.pt2", tmp_path / "m.pt2", weights_config_json=in_json(pickled))
    found = open_model(path)
    assert found.layers[0].moving_mean is None
    assert found.layers[0].moving_variance is not None
    assert any(note.startswith("1 of 5") for note in found.notes)


def test_big_endian(torch_files, tmp_path):
    path = edited(
        torch_files / "views.pt2",
        tmp_path / "m.pt2",
        byteorder=lambda data: b"big",
        weights__weight_2=lambda data: np.frombuffer(data, "<f4").astype(">f4").tobytes(),
    )
    (record,) = open_model(path).layers
    assert record.moving_variance.dtype == np.dtype("<f4")


def metadata(**changes):
    def change(document):
        document["config"]["stem.2.running_var"]["tensor_meta"].update(changes)

    return {"weights_config_json": in_json(change)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (metadata(sizes=[{"as_int": 5}]), ["'stem.2'", "one length"]),
        (metadata(sizes=[{"as_int": 2}, {"as_int": 2}]), ["'stem.2'", "one length"]),
        (metadata(sizes=[{"as_int": -4}]), ["sizes"]),
        (metadata(sizes=[{"as_int": 1 << 60}]), ["no size"]),
        (metadata(sizes=[]), ["one length"]),
        (metadata(strides=[{"as_int": 9}]), ["should hold"]),
        (metadata(strides=[{"as_int": -1}]), ["should hold"]),
        (metadata(storage_offset={"as_int": 1 << 40}), ["should hold"]),
        (metadata(storage_offset="x"), ["damaged"]),
        (metadata(dtype=5), ["should hold"]),
        ({"models__model_json": in_json(lambda d: d["schema_version"].update(major=9))}, ["version 9", "newer"]),
        ({"models__model_json": in_json(lambda d: d["schema_version"].update(major="x"))}, ["schema version 'x'"]),
        ({"models__model_json": lambda data: b"[]"}, ["damaged"]),
        ({"models__model_json": lambda data: b"{" * 300_000}, ["damaged"]),
        ({"models__model_json": lambda data: None}, ["without a graph"]),
        ({"weights__weight_2": lambda data: None}, ["weight_2"]),
        ({"weights_config_json": lambda data: b"[]"}, ["damaged"]),
    ],
)
def test_damaged(torch_files, tmp_path, changes, words):
    refused(edited(torch_files / "net.pt2", tmp_path / "m.pt2", **changes), *words)


def test_arguments_of_wrong_types(torch_files, tmp_path):
    def with_argument(name, value):
        def change(document):
            nodes = document["graph_module"]["graph"]["nodes"]
            norm = next(node for node in nodes if "batch_norm" in node["target"])
            next(each for each in norm["inputs"] if each["name"] == name)["arg"] = value

        return edited(torch_files / "net.pt2", tmp_path / "m.pt2", models__model_json=in_json(change))

    refused(with_argument("eps", {"as_float": "Infinity"}), "eps is 'Infinity'")
    refused(with_argument("momentum", {"as_float": True}), "momentum is True")
    refused(with_argument("training", {"as_bool": 1}), "training is 1")
    refused(with_argument("running_mean", {"as_tensor": {"name": 3}}), "3 is no name")
    records = open_model(with_argument("running_mean", {"as_tensor": {"name": "computed"}})).layers
    assert records[0].moving_mean is None


def test_fuzz_of_bytes(torch_files, tmp_path):
    data = (torch_files / "views.pt2").read_bytes()
    rng = random.Random(4)  # noqa: S311
    tally = outcomes(tmp_path / "m.pt2", (mutated(data, rng) for _ in range(200)))
    assert tally["opened"] + tally["refused"] == 200
    assert tally["slowest"] < 2


def test_fuzz_of_the_graph(torch_files, tmp_path):
    rng = random.Random(6)  # noqa: S311
    with zipfile.ZipFile(torch_files / "branching.pt2") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    graphs = [name for name in members if name.endswith(("models/model.json", "weights_config.json"))]

    def damaged(number):
        name = graphs[number % len(graphs)]
        document = json.loads(members[name])
        for _ in range(rng.choice((1, 1, 3))):
            container, key = rng.choice(places(document, []))
            other, at = rng.choice(places(document, []))
            container[key] = copy.deepcopy(rng.choice((*ODD, other[at])))
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w") as archive:
            for each, data in members.items():
                archive.writestr(each, json.dumps(document) if each == name else data)
        return memory.getvalue()

    tally = outcomes(tmp_path / "m.pt2", (damaged(number) for number in range(200)))
    assert tally["opened"] > 30
    assert tally["refused"] > 20
    assert tally["slowest"] < 2
