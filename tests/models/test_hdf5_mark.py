"""The mark of an .h5 file without the HDF5 library: what that library reads of it afterwards."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.models.hdf5 import Hdf5File
from batchnorm.models.hdf5_mark import mark_hdf5

h5py = pytest.importorskip("h5py", reason="what reads and writes HDF5 elsewhere")
ROOT = Path(__file__).parents[2]
NAME, TEXT = "batchnorm.recalibrated", '{"one-pass": ["77e1c61e8f0b2a35"]}'
LONG = '{"one-pass": ["' + "77e1c61e8f0b2a35" * 3000 + '"]}'


def written(place, **options):
    """Groups, arrays, links and attributes of every kind that Keras writes, some in blocks behind the header."""
    with h5py.File(place, "w", **options) as file:
        file.attrs["keras_version"], file.attrs["backend"] = "2.15.0", b"tensorflow"
        layer = file.create_group("model_weights/bn/bn")
        layer["gamma:0"], layer["moving_mean:0"] = np.arange(5, dtype="f4"), np.zeros(5, "f4")
        layer.attrs["weight_names"] = [b"bn/gamma:0", b"bn/moving_mean:0"]
        file.create_group("optimizer_weights")
        file.attrs["model_config"] = "{" + "x" * 3000 + "}"  # does not fit the header that the group began with
        file.attrs["numbers"] = np.arange(12.0).reshape(3, 4)
        file["again"] = file["model_weights/bn"]


def content(place, without=NAME):
    """Everything that h5py sees in a file but for one attribute."""
    found = {}

    def visit(path, item):
        if isinstance(item, h5py.Dataset):
            found[path] = item[()].tobytes()
        for key, value in item.attrs.items():
            if (path, key) != ("", without):
                found[path, key] = np.asarray(value).tolist()

    with h5py.File(place) as file:
        visit("", file)
        file.visititems(visit)
    return found


def stored(place):
    """The attribute as h5py reads it, and as this package does."""
    with h5py.File(place) as file:
        value = file.attrs[NAME]
        theirs = value.decode() if isinstance(value, bytes) else value
    with place.open("rb") as stream:
        ours = Hdf5File(stream, place.stat().st_size, str(place)).root.attribute(NAME)
    return theirs, ours.decode() if isinstance(ours, bytes) else ours


@pytest.mark.parametrize(
    "layout", [{}, {"libver": ("earliest", "v108")}, {"libver": "latest"}, {"userblock_size": 512}]
)
@pytest.mark.parametrize(
    "text", [TEXT, LONG, '{"one-pass": ["' + "a" * 70_000 + '"]}'], ids=["short", "long", "longest"]
)
def test_an_attribute_more_and_nothing_else(tmp_path, layout, text):
    place = tmp_path / "model.h5"
    written(place, **layout)
    before = content(place)
    assert ("", "model_config") in before
    for each in (text, TEXT):  # the second takes the place of the first
        mark_hdf5(place, NAME, each)
        assert stored(place) == (each, each)
        assert content(place) == before
    with h5py.File(place, "r+") as file:  # and the library goes on writing
        file.attrs["more"], file["more"] = "of it", np.ones(1000)
        file.create_group("optimizer_weights/more")
    assert stored(place) == (TEXT, TEXT)
    assert {key: value for key, value in content(place).items() if "more" not in str(key)} == before


def test_damage_is_an_error_and_no_crash(tmp_path):
    """Bytes of the superblock and of the root's header in all sorts of ways: never anything but our own error."""
    place, damaged = tmp_path / "model.h5", tmp_path / "damaged.h5"
    written(place)
    whole = place.read_bytes()
    (root,) = np.frombuffer(whole[64:72], "<u8")
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(400):
        data = bytearray(whole)
        spots = rng.integers(0, 120, rng.integers(1, 4)) + (24 if trial % 2 else int(root))
        for spot in spots:
            data[spot] = rng.integers(0, 256)
        damaged.write_bytes(data)
        if data[24:32] != bytes(8):
            continue  # another base is another layout, which is h5py's
        try:
            mark_hdf5(damaged, NAME, TEXT)
        except bn.ModelFileError as error:
            refused += "the header of its root group is damaged" in str(error)
    assert refused > 20


CODE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "h5py":
            raise ModuleNotFoundError("No module named 'h5py'", name="h5py")
sys.meta_path.insert(0, Missing())
from pathlib import Path
import batchnorm as bn
before, after, newest = map(Path, sys.argv[1:])
assert bn.load(before).layers[0].updates == 10
bn.recalibrate(before, debias=True, out=after)
(layer,) = bn.load(after).layers
assert (layer.updates, layer.recalibrated) == (None, "debias")
from batchnorm.models.hdf5_mark import mark_hdf5
try:
    mark_hdf5(newest, "name", "text")
except bn.MissingExtra as error:
    print(error)
"""


def keras_file(place):
    """What Keras 2 writes of a batch normalization after ten steps."""
    norm = {
        "class_name": "BatchNormalization",
        "config": {"name": "bn", "axis": [1], "momentum": 0.99, "epsilon": 1e-3},
    }
    start = {"class_name": "InputLayer", "config": {"name": "i", "batch_input_shape": [None, 2]}}
    config = {"class_name": "Sequential", "config": {"name": "net", "layers": [start, norm]}}
    with h5py.File(place, "w") as file:
        import json

        file.attrs["model_config"], file.attrs["keras_version"] = json.dumps(config), "2.15.0"
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [b"bn"]
        group = weights.create_group("bn")
        names = ["gamma", "beta", "moving_mean", "moving_variance"]
        group.attrs["weight_names"] = [f"bn/{name}:0".encode() for name in names]
        for name, value in zip(names, (1, 0, 0.5, 0.95), strict=True):
            group[f"bn/{name}:0"] = np.full(2, value, "f4")
        file["optimizer_weights/SGD/iteration:0"] = 10
        file["optimizer_weights"].attrs["weight_names"] = [b"SGD/iteration:0"]


def test_debiasing_a_file_needs_no_h5py(tmp_path):
    before, after, newest = (tmp_path / f"{name}.h5" for name in ("before", "after", "newest"))
    keras_file(before)
    written(newest, libver="latest")
    command = [sys.executable, "-c", CODE, before, after, newest]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "needs h5py, which is not installed. Install it with: pip install 'batchnorm[keras]'" in done.stdout
    kept, changed = content(before), content(after)
    assert kept.keys() == changed.keys()
    assert {path for path, value in kept.items() if changed[path] != value} == {
        "model_weights/bn/bn/moving_mean:0", "model_weights/bn/bn/moving_variance:0"
    }  # fmt: skip
