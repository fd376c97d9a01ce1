"""Every document is what its JSON Schema says, to the last key, and the schemas describe every key."""

import json
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import batchnorm as bn
from batchnorm.core.record import LayerRecord
from batchnorm.demo import demo
from batchnorm.doctor import ENGINES, doctor
from tests.analysis import cases

ROOT = Path(__file__).parents[2]
COMMANDS = ("list", "explain", "demo", "doctor", "diff", "fold", "freeze", "unfreeze", "recalibrate")
# The keys that the command line's contract promises, by the document they stand in.
RECORD = {
    "name", "kind", "channels", "axis", "dtype", "epsilon", "epsilon_source", "averaging", "decay", "momentum", "ddof",
    "mode", "updates", "updates_source", "initial_weight",
}  # fmt: skip
CHANNEL = {
    "channel", "gamma", "beta", "moving_mean", "moving_variance", "epsilon", "inv_std", "scale", "shift", "values",
    "truncated", "batch", "debiased",
}  # fmt: skip


def schema(command):
    return json.loads(resources.files("batchnorm.render").joinpath("schemas", f"{command}.json").read_text("utf-8"))


def valid(result, command):
    document = json.loads(result.to_json())
    jsonschema.Draft202012Validator(schema(command)).validate(document)
    return document


def nodes(node):
    yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


@pytest.mark.parametrize("command", COMMANDS)
def test_schemas_are_strict_and_describe_every_key(command):
    whole = schema(command)
    jsonschema.Draft202012Validator.check_schema(whole)
    for node in nodes(whole):
        if isinstance(node, dict) and isinstance(node.get("properties"), dict):
            assert node["additionalProperties"] is False
            optional = {"parameters"} if command == "list" else set()
            assert set(node["properties"]) - set(node["required"]) <= optional
            for name, said in node["properties"].items():
                assert said.get("description", "").endswith("."), name


def test_what_the_documents_share_is_described_alike():
    explain, listing, answer = schema("explain"), schema("list"), schema("demo")
    assert explain["$defs"] == answer["$defs"]
    inside = answer["properties"]["answer"]["properties"]
    assert inside["layers"] == explain["properties"]["layers"]
    of_explain = explain["properties"]["layers"]["items"]["properties"]
    of_list = listing["properties"]["layers"]["items"]["properties"]
    for name in RECORD | {"updates_doubt"}:
        assert of_explain[name] == of_list[name]


def test_every_promised_key_is_there():
    layer = valid(bn.explain(ROOT / "examples/question.keras", x=[1, 5], expect=[-1, 1]), "explain")["layers"][0]
    assert RECORD | {"parameters", "explained", "expected", "because", "remedies"} <= set(layer)
    assert set(layer["parameters"]) == {"gamma", "beta", "moving_mean", "moving_variance"}
    (channel,) = layer["explained"]
    assert set(channel) >= CHANNEL
    assert set(channel["values"][0]) >= {"index", "x", "y", "formula", "model_y", "difference"}
    assert set(channel["batch"]) >= {"count", "mean", "variance", "y"}
    assert set(channel["debiased"]) >= {"mean", "variance", "y"}
    assert set(layer["expected"][0]) >= {"reading", "y", "fits"}
    for arrays in (False, True):
        listed = valid(bn.list_layers(ROOT / "examples/digits.keras", arrays=arrays), "list")
        assert all(set(one) >= RECORD for one in listed["layers"])
        assert all(("parameters" in one) is arrays for one in listed["layers"])


def test_what_the_keys_mean():
    """The numbers of the original question, under the names a script would look for."""
    (layer,) = valid(bn.explain(ROOT / "examples/question.keras", x=[1, 5]), "explain")["layers"]
    assert (layer["epsilon"], layer["epsilon_source"]) == (0.001, "file")
    assert (layer["decay"], layer["momentum"], layer["ddof"]) == (0.99, 0.99, 0)
    assert (layer["updates"], layer["updates_source"]) == (10, "optimizer iterations")
    assert layer["initial_weight"] == pytest.approx(0.99**10)
    (channel,) = layer["explained"]
    assert channel["beta"] is None
    assert [value["index"] for value in channel["values"]] == [[0], [1]]
    assert channel["inv_std"] == pytest.approx((0.91000736 + 0.001) ** -0.5, rel=1e-12)
    assert channel["scale"] == pytest.approx(0.80644524 * channel["inv_std"], rel=1e-12)
    assert channel["shift"] == pytest.approx(-0.05885344 * channel["scale"], rel=1e-12)
    assert (channel["batch"]["count"], channel["batch"]["mean"], channel["batch"]["variance"]) == (2, 3, 4)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.__name__)
def test_explanations(case, monkeypatch):
    monkeypatch.chdir(ROOT)
    valid(case(), "explain")


def test_list_of_every_kind_of_record():
    damaged = cases.record(moving_variance=np.float32([np.nan, np.inf, -np.inf, 1]))
    absent = cases.record(gamma=None, beta=None, moving_mean=None, moving_variance=None, name="none")
    unknown = cases.record(epsilon=None, epsilon_source="unknown", momentum=None, decay=None, ddof=None, mode=None)
    several = LayerRecord(
        name="axes", kind="K", channels=4, channel_shape=(2, 2), axis=(1, 2), dtype="bfloat16", epsilon=0.0,
        epsilon_source="option", moving_mean=np.zeros((2, 2)), moving_variance=np.ones((2, 2)),
    ).with_updates(3, "option")  # fmt: skip
    doubted = cases.record(moving_variance=np.float32([0.1] * 4)).with_updates(3, "optimizer iterations")
    fake = cases.Fake(damaged, absent, unknown, several, doubted)
    document = valid(bn.list_layers(fake, arrays=True), "list")
    assert document["layers"][0]["parameters"]["moving_variance"] == ["nan", "inf", "-inf", 1.0]
    assert document["layers"][3]["axis"] == [1, 2]
    assert document["layers"][4]["updates_doubt"]


def test_what_json_cannot_hold_is_spelled():
    explained = valid(bn.explain_arrays([np.nan, np.inf, -np.inf, 1], None, None, [0.0], [1.0], 1e-3), "explain")
    values = explained["layers"][0]["explained"][0]["values"]
    assert [value["x"] for value in values] == ["nan", "inf", "-inf", 1.0]
    assert [value["y"] for value in values[:3]] == ["nan", "inf", "-inf"]


def test_demo_and_doctor():
    document = valid(demo(), "demo")
    assert next(iter(document)) == "schema"
    assert len(document["losses"]) == document["steps"]
    installed = valid(doctor(), "doctor")
    assert {engine["name"] for engine in installed["engines"]} == set(ENGINES)


def test_doctor_knows_the_extras_of_the_package():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {extra.name for extra in doctor().extras} == set(project["optional-dependencies"])


def test_doctor_names_what_is_missing(monkeypatch):
    import importlib.metadata

    def version(name, found=importlib.metadata.version):
        if name == "keras":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = doctor()
    engines = {engine.name: engine for engine in found.engines}
    assert (engines["keras-jax"].package, engines["keras-jax"].version) == ("keras", None)
    assert not next(extra for extra in found.extras if extra.name == "tensorflow").installed
    assert "pip install 'batchnorm[keras]'" in str(found)
