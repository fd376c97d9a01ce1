"""Everything that cannot be answered: one line on stderr, status 2, nothing on stdout, nothing written."""

import hashlib
import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from .conftest import dense, norm

COMMANDS = ("list", "explain")


def snapshot(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).rglob("*") if path.is_file()}


def refused(outcome, *words):
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("batchnorm: ")
    assert outcome.err.count("\n") == 1, "one line"
    assert outcome.err.rstrip("\n").isprintable()
    assert len(outcome.err) < 1100
    for word in words:
        assert word in outcome.err


@pytest.fixture
def bad(run, tmp_path):
    """Both commands refuse a path, and leave everything beside it as it was."""

    def check(path, *words):
        before = snapshot(tmp_path)
        for command in COMMANDS:
            refused(run(command, path), *words)
        assert snapshot(tmp_path) == before

    return check


def test_missing(bad, tmp_path):
    bad(tmp_path / "none.keras", "none.keras", "no such file")
    bad("", "path is empty")


def test_empty(bad, tmp_path):
    (tmp_path / "empty.keras").touch()
    bad(tmp_path / "empty.keras", "empty")


def test_truncated(bad, make, tmp_path):
    data = make().read_bytes()
    for length in (1, 40, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.keras").write_bytes(data[:length])
        bad(tmp_path / "cut.keras", "cut.keras")


def test_renamed(bad, run, make, tmp_path):
    """What a file holds decides, not its name; a text file stays a text file."""
    (tmp_path / "notes.keras").write_text("dear diary")
    bad(tmp_path / "notes.keras", "no known format")
    (tmp_path / "model.h5").write_bytes(make().read_bytes())
    assert run("list", tmp_path / "model.h5").status == 0


def test_corrupt(bad, make):
    path = make()
    with zipfile.ZipFile(path) as archive:
        start = path.read_bytes().index(archive.read("model.weights.h5"))
    data = bytearray(path.read_bytes())
    data[start : start + 96] = bytes(96)
    path.write_bytes(data)
    bad(path)


def test_encrypted(bad, make):
    path = make()
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + flags] |= 1
    path.write_bytes(data)
    bad(path, "encrypted")


def test_folder_that_is_no_model(bad, tmp_path):
    (tmp_path / "\x1b[31mred\n").touch()
    bad(tmp_path, "no model", "config.json")


def test_zip_bomb_of_10_gigabytes(bad, tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(10_000_000))
        archive.filelist[-1].file_size = 10_000_000_000
    bad(path, "bomb")


def external(file):
    file["layers/batch_normalization/vars/9"] = h5py.ExternalLink("/etc/passwd", "/")


def missing(file):
    del file["layers/batch_normalization/vars/3"]


def wrong_shape(file):
    del file["layers/batch_normalization/vars/3"]
    file["layers/batch_normalization/vars/3"] = np.ones(4, "f4")


@pytest.mark.parametrize(
    ("edit", "words"), [(external, ["another file"]), (missing, ["'bn'", "3 of 4"]), (wrong_shape, ["'bn'", "[4]"])]
)
def test_hdf5_that_does_not_hold_the_layer(bad, make, edit, words):
    bad(make(edit=edit), *words)


def test_model_without_batch_normalization(run, make):
    path = make(dense("first"), dense("\x1b[31msecond"))
    listed = run("list", path)
    assert (listed.status, listed.err) == (0, "")
    assert "no batch normalization" in listed.out
    assert "first, \\x1b[31msecond" in listed.out
    refused(run("explain", path), "no batch normalization", "'first'", "second")


def test_unknown_layer(run, digits):
    refused(run("explain", digits, "--layer", "block_bm2"), "'block_bm2'", "'block_bn2'")
    refused(run("explain", digits, "--layer", "q" * 5000), "'stem_bn'", "'block_bn1'", "'block_bn2'")
    refused(run("explain", digits, "--x", "1,2"), "--layer", "'stem_bn'")


def test_ambiguous_tail(run, make):
    refused(run("explain", make("left/bn", "right/bn"), "--layer", "bn"), "2 layers", "'left/bn'", "'right/bn'")


def test_unknown_channel(run, digits, question):
    refused(run("explain", digits, "--layer", "stem_bn", "--channel", 16), "no channel 16", "0 to 15")
    refused(run("explain", question, "--channel", 1), "one channel, 0")
    assert run("explain", digits, "--layer", "stem_bn", "--channel", -1).status == 0


def test_x_of_the_wrong_shape_is_told_the_shape_wanted(run, make):
    path = make(norm("bn", axis=1))
    for x in ("1,2", "5", "[[1, 2]]", "[[[1], [2]]]"):
        refused(run("explain", path, "--x", x), "bn: x must be", "3 channels", "axis 1", "got")
    assert run("explain", path, "--x", "[[[1], [2], [3]]]").status == 0


def test_nan_in_x_shows(run, question):
    outcome = run("explain", question, "--x", "nan,1")
    assert (outcome.status, outcome.err) == (0, "")
    assert "The input holds nan" in outcome.out


@pytest.mark.parametrize(
    ("x", "word"),
    [
        ("[]", "no number"),
        ("[[], []]", "no number"),
        ("", "cannot read"),
        ("1,", "cannot read"),
        ("one,two", "cannot read"),
        ("[1, [2, 3]]", "one length"),
        ("[[1], [2, 3]]", "one length"),
        ("null", "no number"),
        ("[1, true]", "no number"),
        ('["1", "2"]', "no number"),
        ('{"a": 1}', "no number"),
        ("1e400", "beyond float64"),
        ("-1e400,1", "beyond float64"),
        ("9" * 400, "beyond float64"),
        ("[" * 100_000, "nested"),
        ("[" * 70 + "1" + "]" * 70, "regular"),
        ("x" * 100_000, "cannot read"),
        ("none.npy", "no file"),
    ],
)
def test_x_that_is_no_array_of_numbers(run, question, x, word):
    refused(run("explain", question, "--x", x), "--x", word)


def array_files():
    # Everything is written as bytes, so that a test names what it is about.
    def npy(array, **options):
        memory = io.BytesIO()
        np.save(memory, array, **options)
        return memory.getvalue()

    def npz(**arrays):
        memory = io.BytesIO()
        np.savez(memory, **arrays)
        return memory.getvalue()

    objects = np.array([{}, 1], dtype=object)
    plain = npy(np.ones(3))
    return [
        ("complex.npy", npy(np.array([1 + 2j])), "complex"),
        ("text.npy", npy(np.array(["a"])), "real numbers"),
        ("object.npy", npy(objects, allow_pickle=True), "no plain array"),
        ("object.npz", npz(a=objects), "holds Python objects"),
        ("empty.npy", npy(np.zeros((0, 1))), "empty array"),
        ("nothing.npy", b"", "no plain array"),
        ("cut.npy", plain[:-5], "no plain array"),
        ("huge.npy", plain.replace(b"(3,)", b"(3000000000000000,)")[: len(plain)], "no plain array"),
        ("garbage.npy", b"\x93NUMPY garbage", "no plain array"),
        ("garbage.npz", b"PK\x03\x04 garbage", "no plain array"),
        ("pickle.npy", b"\x80\x04cos\nsystem\n.", "no plain array"),
        ("two.npz", npz(a=[1.0], b=[2.0]), "a, b"),
        ("none.npz", npz(), "none"),
        ("member.npz", zipped("readme.txt", b"hello"), "no array"),
    ]


def zipped(name, data):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr(name, data)
    return memory.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "word"), array_files(), ids=lambda value: value if str(value).endswith((".npy", ".npz")) else ""
)
def test_array_files_that_are_none(run, question, tmp_path, name, data, word):
    (tmp_path / name).write_bytes(data)
    refused(run("explain", question, "--x", tmp_path / name), "--x", word)
    if name not in ("two.npz",):
        refused(run("explain", question, "--data", tmp_path / name), "--data", word)


def test_pickled_arrays_are_never_loaded(run, question, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    done = run("explain", question, "--x", tmp_path / "trap.npy")
    refused(done)
    assert "allow_pickle" not in done.err  # NumPy's advice, which would run it
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--x", "1,5", "--at", "2"], "outside the layer's input of shape (2,)"),
        (["--x", "1,5", "--at", "-3"], "outside"),
        (["--x", "1,5", "--at", "0,0"], "outside"),
        (["--x", "1,5", "--at", "first"], "not an index"),
        (["--x", "1,5", "--at", ""], "not an index"),
        (["--at", "0"], "pass --x or --data"),
        (["--x", "1,5", "--limit", "0"], "at least 1"),
        (["--x", "1,5", "--limit", "many"], "integer"),
        (["--mode", "training"], "pass --x or --data"),
        (["--mode", "both"], "inference"),
        (["--expect", "1,2"], "pass --x"),
        (["--x", "1,5", "--expect", "1,2,3"], "2 outputs shown; got 3"),
        (["--x", "1,5", "--expect", "nan,1"], "finite"),
        (["--x", "1,5", "--data", "x.npy"], "no file"),
        (["--x", "1,5", "--updates", "-1"], "negative"),
        (["--x", "1,5", "--eps", "-1"], "negative"),
        (["--x", "1,5", "--eps", "nan"], "finite"),
        (["--x", "1,5", "--format", "yaml"], "markdown"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_options_that_cannot_be_used(run, question, options, word):
    refused(run("explain", question, *options), word)


def test_x_and_data_at_once(run, question, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1, 1, 2, 1)))
    refused(run("explain", question, "--x", "1,5", "--data", tmp_path / "x.npy"), "not both")


def test_no_such_command(run):
    refused(run("schema", "list"), "schema")
    refused(run("explain"), "MODEL")
