"""Folding and freezing Keras models: each kind of layer, each reason to refuse, live and as files."""

import json
import zipfile
from pathlib import Path

import jsonschema
import pytest

import batchnorm as bn
from tests.running import script

SCRIPT = Path(__file__).with_name("fold_with_keras.py")
SCHEMAS = Path(bn.__file__).parent / "render" / "schemas"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("keras", reason="the models are Keras' own")
    pytest.importorskip("torch", reason="the backend it runs on here")
    target = tmp_path_factory.mktemp("fold_keras")
    script(SCRIPT, target)
    return target


@pytest.fixture(scope="module")
def found(folder):
    return json.loads((folder / "found.json").read_text())


def test_every_kind_of_layer(found):
    one = found["every_kind"]
    assert not one["refused"]
    after = {f"bn_{key}{rank}": [f"{key}{rank}", "after"] for rank in (1, 2, 3) for key in ("plain", "strided", "up")}
    after |= {f"bn_{key}{rank}": [f"{key}{rank}", "after"] for rank in (1, 2) for key in ("depth", "apart")}
    after |= {"bn_dense": ["dense", "after"], "bn_before": ["behind", "before"]}
    assert one["folded"] == after
    assert not one["left"]


@pytest.mark.parametrize("name", ["every_kind", "refusing", "nested", "sequential"])
def test_live_and_as_a_file(found, name):
    one = found[name]
    for each in (one, one["file"]):
        document = each["document"]
        jsonschema.validate(document, json.loads((SCHEMAS / "fold.json").read_text("utf-8")))
        proof = document["proof"]
        assert proof["holds"]
        assert proof["tolerance"] == 1e-5
        assert proof["max_rel"] <= 1e-5
        assert proof["inputs"][0]["samples"] == 8
    assert one["folded"] == one["file"]["folded"]
    assert one["refused"] == one["file"]["refused"]
    assert one["document"]["output"] is None
    assert one["file"]["document"]["output"].endswith("_folded.keras")
    assert sorted(each.rpartition("/")[2] for each in one["refused"]) == one["left"]
    assert one["loads"]


def test_each_refusal_has_its_reason(found):
    refused = found["refusing"]["refused"]
    reasons = {
        "two_consumers": "second consumer: add", "activation_inside": "acts applies relu", "pad_between": "a padding",
        "before_padded": "the border would see the shift", "of_shared": "twice is shared", "shared": "it is shared",
        "trains": "training mode", "over/timed": "TimeDistributed",
    }  # fmt: skip
    assert set(refused) == set(reasons)
    for name, why in reasons.items():
        assert why in refused[name], name
    assert set(found["refusing"]["folded"]) == {"folds"}


def test_nested_and_sequential(found):
    # A model that is called twice is shared; what it holds stays.
    assert set(found["nested"]["folded"]) == {"t/bn", "end"}
    assert set(found["nested"]["refused"]) == {"body/bn"}
    assert found["sequential"]["folded"] == {"first": ["d", "before"], "bn": ["d", "after"]}
    assert set(found["h5"]) == {"first", "bn"}


def test_a_proof_that_fails_writes_nothing(found):
    far = found["far"]
    assert not found["far_written"]
    proof = far["document"]["proof"]
    assert not proof["holds"]
    assert proof["max_rel"] > 1e-5
    assert far["document"]["output"] is None
    assert "standard deviations from 0" in far["document"]["notes"][0]
    assert "'bn'" in far["document"]["notes"][0] or " bn:" in far["document"]["notes"][0]


def test_outputs_that_tell_nothing_prove_nothing(found):
    proof = found["dead"]["document"]["proof"]
    assert not proof["holds"]
    assert not proof["inputs"][0]["tells"]
    assert "--data" in found["dead"]["document"]["notes"][0]


def test_half_precision_has_the_bound_of_its_type(found):
    proof = found["half"]["document"]["proof"]
    assert proof["holds"]
    assert 1e-3 < proof["tolerance"] < 0.02
    assert proof["tolerance"] == proof["bound"]


def test_given_data_and_layers_left_out(found):
    one = found["data"]
    assert set(one["folded"]) == {"bn"}
    assert one["refused"] == {"first": "it was left out as asked"}
    assert [(each["source"], each["samples"]) for each in one["document"]["proof"]["inputs"]] == [
        ("random", 32), ("data", 70),
    ]  # fmt: skip


def test_a_class_of_the_users_own_is_left_alone(found):
    assert set(found["custom"]["folded"]) == {"fine"}
    assert "class of its own" in found["custom"]["refused"]["of_custom"]


def test_classes_that_keras_cannot_find_again_are_those_of_the_live_model(found):
    assert found["unregistered"]["folded"] == {"bn": ["c", "after"]}


def test_a_live_layer_of_several_axes(found):
    assert found["axes"]["[3]"]["axes"] == [3, 3]
    assert list(found["axes"]["[3]"]["folded"].values()) == [["c", "after"]]
    assert found["axes"]["[1, 3]"]["axes"] == [[1, 3], [1, 3]]
    (why,) = found["axes"]["[1, 3]"]["refused"].values()
    assert "24 channels" in why or "several axes" in why


def test_layers_of_this_package(found):
    assert set(found["ours"]["folded"]) == {"ours"}
    assert set(found["ours"]["refused"]) == {"acts"}
    assert found["ours"]["document"]["proof"]["holds"]


@pytest.mark.parametrize("name", ["masking", "unnamed", "keyed", "without_input", "batch"])
def test_inputs_of_every_sort(found, name):
    one = found["odd"][name]
    assert set(one["folded"]) == {"bn"}
    assert one["document"]["proof"]["holds"]


def test_a_batch_of_another_length_than_the_first(found):
    assert [each["samples"] for each in found["odd"]["batch"]["document"]["proof"]["inputs"]] == [10, 10]
    assert found["samples"] == 10


def test_a_nested_model_that_is_fed_by_itself_is_shared(found):
    assert "it is shared" in found["odd"]["fed_by_itself"]["refused"]["body/bn"]


def test_quantised_kernels_are_called_that(found):
    assert found["odd"]["quantised"]["refused"]["bn"] == "d is quantised"


@pytest.mark.parametrize(("policy", "least"), [("mixed_float16", 1e-3), ("mixed_bfloat16", 1e-2)])
def test_mixed_precision_has_the_bound_of_what_computes(found, policy, least):
    """The weights are float32, and so is the output; what lies between rounds in 16 bits."""
    proof = found["odd"][policy]["document"]["proof"]
    assert set(found["odd"][policy]["folded"]) == {"one", "two"}
    assert proof["holds"]
    assert least < proof["tolerance"] == proof["bound"] < 20 * least


def test_freezing_a_file_changes_one_flag(folder, found):
    one = found["frozen"]
    jsonschema.validate(one, json.loads((SCHEMAS / "freeze.json").read_text("utf-8")))
    assert one["changed"] == ["body/bn", "t/bn", "end"]
    assert found["trainable"] == [False] * 3
    with zipfile.ZipFile(folder / "n.keras") as old, zipfile.ZipFile(folder / "frozen.keras") as new:
        assert old.namelist() == new.namelist()
        changed = [name for name in old.namelist() if old.read(name) != new.read(name)]
        assert changed == ["config.json"]
        before, after = (json.dumps(json.loads(file.read("config.json"))) for file in (old, new))
        assert after.count('"trainable": false') - before.count('"trainable": false') == 3
        assert len(after) - len(before) == 3
    jsonschema.validate(found["thawed"], json.loads((SCHEMAS / "unfreeze.json").read_text("utf-8")))
    assert found["thawed"]["changed"] == one["changed"]
    assert found["same"]  # thawed again it is the file that it was, to the byte
    assert found["again"]["changed"] == []
    assert not found["none"]


def test_freezing_live_models(found):
    assert found["live"]["changed"] == ["first", "bn"]
    assert found["kept"]
    assert found["live_again"]["changed"] == ["first", "bn"]
    (left,) = found["inside"]["unchanged"]
    assert "a model around it is frozen" in left["why"]
