"""SavedModel folders of TensorFlow, Keras 3 and tf.keras, read without TensorFlow."""

import json
import random
import shutil
import struct

import numpy as np
import pytest

from batchnorm.models import open_model
from batchnorm.models.tensor_bundle import crc32c

from .fuzzing import mutated, outcomes
from .test_bad_files import refused

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


def same_arrays(record, want):
    for role in ROLES:
        if want[role] is None:
            assert getattr(record, role) is None, (record.name, role)
        else:
            np.testing.assert_array_equal(getattr(record, role), np.array(want[role], "f4"), f"{record.name} {role}")


@pytest.mark.parametrize("folder", ["exported", "saved"])
def test_what_keras_exports(tensorflow_files, folder):
    wanted = json.loads((tensorflow_files / "expected.json").read_text())
    found = open_model(tensorflow_files / folder)
    assert [record.name for record in found.layers] == ["full", "deep", "shared", "rows", "bare"]
    assert found.format == "savedmodel"
    assert not found.notes
    for record in found.layers:
        want = wanted[record.name]
        assert (record.epsilon, record.epsilon_source) == (want["epsilon"], "file")
        assert (record.axis, record.mode, record.dtype) == (want["axis"], "inference", "float32")
        assert (record.decay, record.updates, record.averaging) == (None, None, "unknown")
        same_arrays(record, want)


def test_the_fused_operator(tensorflow_files):
    want = json.loads((tensorflow_files / "modules.json").read_text())["fused"]
    (record,) = open_model(tensorflow_files / "fused").layers
    assert (record.name, record.kind, record.epsilon, record.axis) == ("stem/bn", "FusedBatchNormV3", 2e-3, -1)
    assert (record.mode, record.ddof) == ("inference", 1)
    same_arrays(record, want)


def test_a_graph_of_training_mode(tensorflow_files):
    """It normalises with the batch; the statistics that lie beside it belong to the same layer."""
    want = json.loads((tensorflow_files / "modules.json").read_text())["fused"]
    (record,) = open_model(tensorflow_files / "training").layers
    assert (record.name, record.mode, record.epsilon) == ("stem/bn", "training", 2e-3)
    same_arrays(record, want)


def test_written_out_with_the_moments_of_the_batch(tensorflow_files):
    """What normalises each row by itself beside it is no batch normalization."""
    want = json.loads((tensorflow_files / "modules.json").read_text())["live"]
    (record,) = open_model(tensorflow_files / "of_the_batch").layers
    assert (record.name, record.mode, record.epsilon, record.axis) == ("live", "training", 4e-3, -1)
    same_arrays(record, want)


def test_written_out_and_inside_a_branch(tensorflow_files):
    want = json.loads((tensorflow_files / "modules.json").read_text())
    first, branch = open_model(tensorflow_files / "out").layers
    assert (first.name, first.kind, first.epsilon, first.axis) == ("first", "batchnorm", 3e-3, -1)
    assert (branch.name, branch.epsilon) == ("cond/branch", 3e-3)
    same_arrays(first, want["first"])
    same_arrays(branch, want["branch"])


def test_without_batch_normalization(tensorflow_files):
    found = open_model(tensorflow_files / "plain")
    assert (found.layers, found.other_layers) == ((), ("dense",))


def test_what_tf_keras_saves(tf_keras_files):
    wanted = json.loads((tf_keras_files / "tf_keras.json").read_text())
    found = open_model(tf_keras_files / "tf_keras")
    assert [record.name for record in found.layers] == list(wanted)
    for record, want in zip(found.layers, wanted.values(), strict=True):
        assert (record.epsilon, record.decay, record.axis) == (want["epsilon"], want["momentum"], -1)
        same_arrays(record, want)
        frozen = record.name == "frozen"
        assert (record.mode, record.updates) == (("frozen", None) if frozen else ("inference", 8))
        assert record.updates_source == (None if frozen else "optimizer iterations")


def test_the_same_model_as_h5(tf_keras_files):
    folder, file = open_model(tf_keras_files / "tf_keras"), open_model(tf_keras_files / "tf_keras.h5")
    for one, other in zip(folder.layers, file.layers, strict=True):
        assert (one.name, one.epsilon, one.decay, one.updates) == (
            other.name,
            other.epsilon,
            other.decay,
            other.updates,
        )
        for role in ROLES:
            np.testing.assert_array_equal(getattr(one, role), getattr(other, role))


def test_tensorflow_is_not_imported(tensorflow_files, in_subprocess):
    code = f"""
import sys
from batchnorm.models import open_model
assert len(open_model({str(tensorflow_files / "exported")!r}).layers) == 5
assert not {{"tensorflow", "keras", "h5py", "google"}} & set(sys.modules)
"""
    in_subprocess(code)


def test_the_checksum_is_the_one_of_the_format():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C in its catalogue


@pytest.fixture
def copied(tensorflow_files, tmp_path):
    shutil.copytree(tensorflow_files / "exported", tmp_path / "m")
    shutil.copy(tensorflow_files / "expected.json", tmp_path)
    return tmp_path / "m"


def data_file(folder):
    (file,) = (folder / "variables").glob("variables.data-*")
    return file


def test_parts_that_are_missing(copied, tmp_path):
    shutil.move(data_file(copied), tmp_path / "aside")
    refused(copied, "holds no variables/variables.data-00000-of-00001", "Copy the whole folder")
    (copied / "variables" / "variables.index").unlink()
    refused(copied, "holds no variables/variables.index")
    shutil.rmtree(copied / "variables")
    refused(copied, "the folder holds no variables", "Copy the whole folder")
    (copied / "saved_model.pb").unlink()
    refused(copied, "a folder that holds no model")


def test_a_graph_that_is_a_folder_or_unreadable(copied):
    (copied / "saved_model.pb").unlink()
    (copied / "saved_model.pb").mkdir()
    refused(copied, "cannot be read")


def test_a_byte_of_the_weights_changed(copied):
    file = data_file(copied)
    whole = file.read_bytes()
    data = bytearray(whole)
    for at in range(0, len(data), 7):
        data[at] ^= 16
    file.write_bytes(data)
    refused(copied, "variables/variables.data-00000-of-00001", "damaged")
    mean = json.loads((copied.parent / "expected.json").read_text())["full"]["moving_mean"]
    data = bytearray(whole)
    data[whole.index(np.array(mean, "f4").tobytes())] ^= 1
    file.write_bytes(data)
    refused(copied, "fails its checksum")


def test_weights_cut_off(copied):
    file = data_file(copied)
    file.write_bytes(file.read_bytes()[:20])
    refused(copied, "ends before")


def test_a_compressed_or_damaged_index(copied):
    file = copied / "variables" / "variables.index"
    whole = file.read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 8):
        changed = bytearray(whole)
        changed[at] ^= 255
        file.write_bytes(changed)
        refused(copied, "variables.index is damaged")
    for length in (0, 10, 47, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(copied, "variables.index is damaged")


def test_truncated_graphs(copied):
    file = copied / "saved_model.pb"
    whole = file.read_bytes()
    for length in (1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(copied, "saved_model.pb is damaged")


def field(number, content):
    assert number < 16
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + length + content


def long(number, content):
    """A field of up to 2 MB."""
    size = len(content)
    return bytes([number << 3 | 2, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + content


def calls(function, number=0):
    """A node that runs a function."""
    attribute = field(5, field(1, b"f") + field(2, field(10, field(1, function))))
    return field(1, b"call_%d_" % number + function) + field(2, b"PartitionedCall") + attribute


def test_functions_that_call_themselves(tmp_path):
    body = field(1, field(1, b"again")) + field(3, calls(b"again"))
    graph = field(1, calls(b"again")) + field(2, field(1, body))
    (tmp_path / "saved_model.pb").write_bytes(field(2, field(2, graph)))
    refused(tmp_path, "call each other without end")


def test_functions_that_expand_without_end(tmp_path):
    bodies = b""
    for number in range(40):
        name, inner = f"f{number}".encode(), f"f{number + 1}".encode()
        nodes = b"".join(field(3, calls(inner, each)) for each in range(8))
        bodies += field(1, field(1, field(1, name)) + nodes)
    graph = field(1, calls(b"f0")) + long(2, bodies)
    (tmp_path / "saved_model.pb").write_bytes(long(2, long(2, graph)))
    refused(tmp_path, "call each other without end")


def test_a_size_that_contradicts_the_shape(copied):
    """The index claims a tensor of 2**60 numbers: refused by its size, and nothing is allocated."""
    file = copied / "variables" / "variables.index"
    whole = bytearray(file.read_bytes())
    # A shape of one dimension of four, as the index writes it: field 2 { field 2 { field 1: 4 } }.
    shape = bytes([0x12, 4, 0x12, 2, 8, 4])
    assert whole.count(shape) > 3
    whole = whole.replace(shape, shape[:-1] + bytes([100]))
    file.write_bytes(resealed(bytes(whole)))
    refused(copied, "size that contradicts its shape")


def resealed(index):
    """The index with its only block's checksum made anew."""
    handle = index[-48:]
    first, at = leb(handle, 0)
    size, at = leb(handle, at)
    block, at = leb(handle, at)
    length, _ = leb(handle, at)
    entries = index[block : block + length]
    out = bytearray(index)
    # The block that lists the blocks names where the first one lies.
    shared, cut = leb(entries, 0)
    own, cut = leb(entries, cut)
    _, cut = leb(entries, cut)
    offset, cut = leb(entries, cut + own)
    size, _ = leb(entries, cut)
    value = crc32c(index[offset : offset + size + 1])
    masked = (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    out[offset + size + 1 : offset + size + 5] = struct.pack("<I", masked)
    assert shared == 0
    assert first >= 0
    return bytes(out)


def leb(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


@pytest.mark.parametrize(
    "part", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_fuzz(tensorflow_files, tmp_path, part):
    source = tensorflow_files / "fused"
    shutil.copytree(source, tmp_path / "m")
    data = (source / part).read_bytes()
    rng = random.Random(len(part))  # noqa: S311

    class Part:
        """Where the damage goes; what is opened is the folder."""

        def write_bytes(self, damaged):
            (tmp_path / "m" / part).write_bytes(damaged)

        def __fspath__(self):
            return str(tmp_path / "m")

    tally = outcomes(Part(), (mutated(data, rng) for _ in range(200)))
    assert tally["opened"] + tally["refused"] == 200
    assert tally["refused"] > 20
    assert tally["slowest"] < 3
