"""A file is written whole or not at all."""

import os

import pytest

from batchnorm.core.output import check_same_format, replacing
from batchnorm.errors import ArgumentError


def test_it_gets_its_name_when_the_block_ends(tmp_path):
    with replacing(tmp_path / "m.keras") as temporary:
        temporary.write_bytes(b"new")
        assert not (tmp_path / "m.keras").exists()
        assert temporary.suffix == ".keras"
    assert [each.name for each in tmp_path.iterdir()] == ["m.keras"]


def test_an_error_leaves_nothing(tmp_path):
    (tmp_path / "m.keras").write_bytes(b"old")

    def interrupted():
        with replacing(tmp_path / "m.keras", force=True) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [each.name for each in tmp_path.iterdir()] == ["m.keras"]
    assert (tmp_path / "m.keras").read_bytes() == b"old"


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "m.keras").write_bytes(b"old")
    with pytest.raises(ArgumentError, match=r"m\.keras exists; pass --force"), replacing(tmp_path / "m.keras"):
        pytest.fail("the block must not begin")
    source = tmp_path / "m.keras"
    with (
        pytest.raises(ArgumentError, match="is the input"),
        replacing(source, source=tmp_path / "." / "m.keras", force=True),
    ):
        pytest.fail("the block must not begin")
    with replacing(source, force=True) as temporary:
        temporary.write_bytes(b"new")
    assert source.read_bytes() == b"new"


def test_a_folder_is_never_replaced(tmp_path):
    """Whatever a user keeps in it would be gone."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis").touch()
    with (
        pytest.raises(ArgumentError, match="is a folder, which is never replaced"),
        replacing(tmp_path / "results", force=True),
    ):
        pytest.fail("the block must not begin")
    assert [each.name for each in (tmp_path / "results").iterdir()] == ["thesis"]
    with replacing(tmp_path / "new") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["file"]


def test_a_folder_that_is_not_there(tmp_path):
    with (
        pytest.raises(ArgumentError, match=r"cannot write .*No such file"),
        replacing(tmp_path / "none" / "m") as temporary,
    ):
        temporary.write_bytes(b"")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe stands for what is neither file nor folder")
def test_a_device_is_never_replaced(tmp_path):
    """Renaming over /dev/null, as root, would leave an ordinary file in its place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (
        pytest.raises(ArgumentError, match="is a device or pipe, which is never"),
        replacing(pipe, force=True),
    ):
        pytest.fail("the block must not begin")
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("path", "source", "fits"),
    [
        ("a.keras", "m.keras", True),
        ("a.KERAS", "m.keras", True),
        ("a.onnx", "m.keras", False),
        ("a.pth", "m.pt", True),
        ("a.h5", "m.weights.h5", True),
        ("a.h5", "m.keras", False),
        ("a", "m.keras", True),
        ("a.onnx", "Sequential", True),
    ],
)
def test_a_name_of_another_format_is_refused(path, source, fits):
    if fits:
        check_same_format(path, source)
    else:
        with pytest.raises(ArgumentError, match=rf"{path} must end in \.keras, as the model does"):
            check_same_format(path, source)
