"""What is printed: text that stays text, JSON alone on stdout, options that mean what they say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

import batchnorm as bn

HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "two\nlines\r\x07\x00\x08",
    "[red]x[/red] [link=file:///x]y[/link] :smile:",
    "</script><script>alert(1)</script>",
    "```\n# heading\n~~~",
    "n" * 10_000,
    "\u202ereversed\u200b\ud800",
    "\u540d\u524d" * 100,
)


@pytest.fixture(params=HOSTILE, ids=range(len(HOSTILE)))
def hostile(request, make):
    return make(request.param), request.param


def harmless(text):
    assert all(c.isprintable() for c in text.replace("\n", ""))
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    return text


def test_hostile_names_stay_text(run, hostile):
    path, name = hostile
    # A folder with a long name folds, too; the file is called by a short one.
    listed, explained = run("list", path), run("explain", path, "--x", "1,2,3")
    verdicts = run("explain", path)
    for outcome in (listed, explained, verdicts):
        assert (outcome.status, outcome.err) == (0, "")
        assert len(harmless(outcome.out).splitlines()) < 80, "a name of any length leaves room for the answer"
    start = re.sub(r"\s", "", name.encode("unicode_escape").decode() if not name.isprintable() else name)[:20]
    shown = re.sub(r"\s", "", explained.out)
    assert start in shown


def test_hostile_names_in_json_markdown_and_html(run, hostile):
    path, name = hostile
    document = json.loads(run("list", path, "--json").out)
    assert document["layers"][0]["name"] == name, "a script gets the name as it is"
    fenced = run("explain", path, "--format", "markdown").out
    assert harmless(fenced).startswith("```text\n")
    assert fenced.count("```") == 2
    page = bn.list_layers(path)._repr_html_()
    assert "<script" not in page
    assert "</script" not in page
    assert page.count("<") == 2, "<pre> and </pre>"


def test_hostile_names_in_messages(run, make):
    path = make(*HOSTILE)
    for arguments in (["--layer", "zzz"], ["--x", "1"], ["--layer", "\x1b[31mred\x1b[0m", "--x", "1"]):
        outcome = run("explain", path, *arguments)
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err.count("\n") == 1
        assert outcome.err[:-1].isprintable()
        assert len(outcome.err) < 1100


def test_hostile_paths(run, make, tmp_path):
    path = make(file="\x1b[31m[red]model\n.keras")
    outcome = run("list", path)
    assert outcome.status == 0
    assert "\x1b" not in outcome.out
    gone = run("list", tmp_path / "\x1b[2Jnone\n.keras")
    assert (gone.status, gone.err.count("\n")) == (2, 1)
    assert "\x1b" not in gone.err


@pytest.mark.parametrize("command", ["list", "explain", "demo", "doctor"])
@pytest.mark.parametrize("spelled", [["--json"], ["--format", "json"]])
def test_json_alone_on_stdout(run, question, command, spelled):
    model = [question] if command in ("list", "explain") else []
    outcome = run(command, *model, *spelled)
    assert (outcome.status, outcome.err) == (0, "")
    assert json.loads(outcome.out)["schema"] == f"batchnorm/{command}/1"


@pytest.mark.parametrize("command", ["list", "explain", "demo", "doctor"])
def test_text_fits_80_columns(run, digits, command):
    model = [digits] if command in ("list", "explain") else []
    outcome = run(command, *model)
    assert (outcome.status, outcome.err) == (0, "")
    harmless(outcome.out)
    assert run(command, *model, "--wide").status == 0


def test_wide_has_the_rest(run, digits):
    narrow, wide = run("list", digits).out, run("list", digits, "--wide").out
    assert "median" in wide
    assert "< 10 epsilon" in wide
    assert "by-call" in wide
    assert "median" not in narrow


def test_values_that_begin_with_a_minus(run, question):
    document = json.loads(run("explain", question, "--x", "-1,5", "--expect", "-1,1", "--at", "-2", "--json").out)
    (layer,) = document["layers"]
    assert [value["x"] for value in layer["explained"][0]["values"]] == [-1]
    joined = run("explain", question, "--x=-1,5", "--expect=-1,1", "--at=-2", "--json").out
    assert json.loads(joined) == document


@pytest.mark.parametrize(
    ("x", "values"),
    [
        ("5", [5]),
        ("-5", [-5]),
        ("[5]", [5]),
        ("1,5", [1, 5]),
        (" 1 , 5 ", [1, 5]),
        ("[1, 5]", [1, 5]),
        ("[[1], [5]]", [1, 5]),
        ("[[[[1], [5]]]]", [1, 5]),
        ("1e-36,2.5E3", [1e-36, 2500]),
    ],
)
def test_x_as_typed(run, question, x, values):
    document = json.loads(run("explain", question, "--x", x, "--json").out)
    assert [value["x"] for value in document["layers"][0]["explained"][0]["values"]] == values


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u1", "?", ">f4"])
def test_x_as_a_file(run, question, tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.array([1, 0.1], dtype))
    np.savez(tmp_path / "x.npz", x=np.array([1, 0.1], dtype))
    document = json.loads(run("explain", question, "--x", tmp_path / "x.npy", "--json").out)
    second = 0.1 if "f" in dtype else float(np.array(0.1).astype(dtype))
    assert [value["x"] for value in document["layers"][0]["explained"][0]["values"]] == [1, second]
    assert json.loads(run("explain", question, "--x", tmp_path / "x.npz", "--json").out) == document


def test_at_limit_and_channel(run, digits, tmp_path):
    x = np.arange(2 * 3 * 3 * 16, dtype="f4").reshape(2, 3, 3, 16)
    np.save(tmp_path / "x.npy", x)
    base = ["explain", digits, "--layer", "stem_bn", "--x", tmp_path / "x.npy", "--json"]
    (layer,) = json.loads(run(*base, "--at", "1,2,0").out)["layers"]
    assert len(layer["explained"]) == 16
    for channel in layer["explained"]:
        (value,) = channel["values"]
        assert value["index"] == [1, 2, 0, channel["channel"]]
        assert value["x"] == x[tuple(value["index"])]
    (layer,) = json.loads(run(*base, "--channel", "3", "--limit", "4").out)["layers"]
    (channel,) = layer["explained"]
    assert (channel["channel"], len(channel["values"]), channel["truncated"]) == (3, 4, 14)
    (layer,) = json.loads(run(*base, "--limit", "4").out)["layers"]
    assert (len(layer["explained"]), layer["channels_truncated"]) == (4, 12)


def test_training_mode(run, question):
    outcome = run("explain", question, "--x", "1,5", "--mode", "training", "--json")
    (layer,) = json.loads(outcome.out)["layers"]
    (channel,) = layer["explained"]
    assert layer["explain_mode"] == "training"
    gives = 0.80644524 * 2 / 4.001**0.5
    assert [value["y"] for value in channel["values"]] == pytest.approx([-gives, gives], rel=1e-14)
    assert channel["moving_mean"] == 0.05885344, "the stored one still"


def test_updates_that_contradict_the_statistics(run, question):
    (layer,) = json.loads(run("explain", question, "--x", "1,5", "--updates", "5", "--json").out)["layers"]
    assert (layer["updates"], layer["initial_weight"]) == (None, None)
    assert "0.951" in layer["updates_doubt"]
    assert any(layer["updates_doubt"] in sentence for sentence in layer["because"])
    (layer,) = json.loads(run("explain", question, "--x", "1,5", "--updates", "1000", "--json").out)["layers"]
    assert (layer["updates"], layer["updates_source"], layer["updates_doubt"]) == (1000, "option", None)


def test_eps_fills_a_gap_and_overrides_nothing(run, question):
    document = json.loads(run("explain", question, "--x", "1,5", "--eps", "0.1", "--json").out)
    assert document["layers"][0]["epsilon"] == 0.001
    assert document["notes"] == ["The epsilon given (0.1) was not used: the model holds its own, 0.001."]
    for command in ("list", "explain"):
        assert "0.1) was not used" in run(command, question, "--eps", "0.1").out


def test_eps_where_the_file_holds_none(run, make, tmp_path):
    import zipfile

    with zipfile.ZipFile(make()) as archive:
        (tmp_path / "m.weights.h5").write_bytes(archive.read("model.weights.h5"))
    (layer,) = json.loads(run("explain", tmp_path / "m.weights.h5", "--x", "1,2,3", "--json").out)["layers"]
    assert layer["epsilon_source"] == "unknown"
    assert all(value["y"] is None for channel in layer["explained"] for value in channel["values"])
    document = json.loads(run("explain", tmp_path / "m.weights.h5", "--x", "1,2,3", "--eps", "0.5", "--json").out)
    (layer,) = document["layers"]
    assert (layer["epsilon"], layer["epsilon_source"]) == (0.5, "option")
    assert not any("was not used" in note for note in document["notes"])


def test_overflow_is_no_noise_on_stderr(run, question):
    outcome = run("explain", question, "--x", "1e308,-1e308", "--json")
    assert (outcome.status, outcome.err) == (0, "")


MODULE = """
import numpy as np
import batchnorm as bn

print("chatter that must not reach stdout")

def make():
    layer = bn.BatchNormalization(name="own")
    layer(np.arange(24, dtype="f4").reshape(8, 3), training=True)
    return layer

layer = make()
unbuilt = bn.BatchNormalization()
number = 3
kind = dict

def wants(something):
    return something

def fails():
    raise RuntimeError("inside the factory")

def batches():
    for part in np.split(np.arange(24, dtype="f4").reshape(8, 3), 4):
        yield part, None

named = [{"x": np.ones((2, 3))}, {"x": np.ones((1, 3))}]
ragged = [np.ones((2, 3)), np.ones((2, 4))]
nothing = []
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's own module in the current folder, under a name of its own."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_raises.py").write_text("raise ValueError('at import')")
    (tmp_path / f"{name}_lacks.py").write_text("import no_such_module_of_anyone")
    (tmp_path / f"{name}_prefix.py").write_text(f"import {name}_p")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_live_layers(run, own):
    for named in ("layer", "make"):
        outcome = run("explain", f"{own}:{named}", "--x", "[[1, 2, 3]]", "--json")
        document = json.loads(outcome.out)
        assert document["model"] == {"path": "own", "format": "numpy", "sha256": None}
        assert document["layers"][0]["updates"] == 1
        assert document["layers"][0]["updates_source"] == "num_batches_tracked"
    assert "chatter" not in outcome.out


def test_data_from_an_iterable_of_batches(run, own, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(24, dtype="f4").reshape(8, 3))
    whole = json.loads(run("explain", f"{own}:layer", "--data", tmp_path / "x.npy", "--json").out)
    parts = json.loads(run("explain", f"{own}:layer", "--data", f"{own}:batches", "--json").out)
    assert parts == whole
    assert whole["layers"][0]["because"][0].startswith("On this data training and inference mode differ")
    value = whole["layers"][0]["explained"][0]["values"][0]
    assert value["model_y"] == pytest.approx(value["y"], rel=1e-6)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("{}:unbuilt", ["no weights yet"]),
        ("{}:number", ["type int"]),
        ("{}:kind", ["type dict"]),
        ("{}:wants", ["wants arguments"]),
        ("{}:absent", ["no 'absent'"]),
        ("{}_absent:layer", ["no module"]),
        ("a:b:c", ["no such file"]),
    ],
)
def test_objects_that_are_no_model(run, own, model, words):
    outcome = run("explain", model.format(own))
    assert (outcome.status, outcome.out) == (2, "")
    line = outcome.err.replace("chatter that must not reach stdout\n", "")
    assert line.count("\n") == 1
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("data", "word"), [("ragged", "do not go together"), ("nothing", "no sample"), ("number", "int")]
)
def test_iterables_that_are_no_data(run, own, data, word):
    outcome = run("explain", f"{own}:layer", "--data", f"{own}:{data}")
    assert (outcome.status, outcome.out) == (2, "")
    assert word in outcome.err


def test_errors_of_a_users_module_keep_their_traceback(run, own):
    with pytest.raises(ValueError, match="at import"):
        run("list", f"{own}_raises:x")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_anyone"):
        run("list", f"{own}_lacks:x")
    with pytest.raises(ModuleNotFoundError, match=f"{own}_p"):
        run("list", f"{own}_prefix:x")
    with pytest.raises(RuntimeError, match="inside the factory"):
        run("list", f"{own}:fails")


def test_str_is_plain_whatever_the_surroundings(monkeypatch, question):
    plain = str(bn.explain(question, x=[1, 5]))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(bn.explain(question, x=[1, 5])) == plain
    assert "\x1b" not in plain


def test_golden_answer_through_the_command(run, question, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    golden = (root / "tests/analysis/golden/question.txt").read_text("utf-8")
    assert run("explain", "examples/question.keras", "--x", "1,5", "--expect", "-1,1").out == golden
