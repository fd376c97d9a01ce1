"""What the tests of the two trained models share: their files, and what verify says of them."""

import json
from pathlib import Path

import jsonschema

import batchnorm as bn

SCRIPTS = Path(__file__).parent / "scripts"
SCHEMAS = Path(bn.__file__).parent / "render" / "schemas"
CHANGED = "mid_bn"
NAMES = ("stem_bn", "branch_bn", "mid_bn", "head_bn")
KINDS = (
    "epsilon", "decay", "momentum-convention", "ddof", "gamma", "beta", "moving_mean", "moving_variance",
    "swapped gamma/beta", "swapped mean/variance", "axis", "mode", "dtype", "dtype bfloat16",
)  # fmt: skip
SILENT = ("decay", "momentum-convention")
"""Inference does not use them."""


def file(folder, what, suffix):
    """The file of a copy."""
    return folder / f"{what.replace('/', '-').replace(' ', '_')}{suffix}"


def load(folder, what, suffix):
    """That file, read."""
    return bn.load(file(folder, what, suffix), trust=True)


def kind_of(what):
    """How diff calls a fault."""
    return what.split(" bf")[0]


def verified(folder):
    """The documents that the script wrote, each valid."""
    found = json.loads((folder / "verified.json").read_text())
    schema = json.loads((SCHEMAS / "verify.json").read_text("utf-8"))
    for part in found.values():
        for document in part.values():
            jsonschema.validate(document, schema)
    return found


def assert_every_engine_agrees(document, layers):
    """All engines ran, none is over its bound, and each saw every layer."""
    assert document["agrees"]
    for engine in [*document["engines"], *filter(None, [document["model_run"]])]:
        assert engine["status"] == "agrees", engine
        assert engine["share_of_bound"] <= 1
        assert len(engine["layers"]) == layers
    assert [engine["name"] for engine in document["engines"]] == [
        "reference", "numpy", "keras-tensorflow", "keras-jax", "keras-torch", "keras-ops", "tf.nn", "torch", "jax",
        "flax", "onnxruntime",
    ]  # fmt: skip


def differences(found):
    """What diff names, by the first model's layer; an epsilon that a file does not hold is nothing known to differ."""
    return {
        pair.a: [one.what for one in pair.differences if one.max_output_change is not None]
        for pair in found.pairs
        if any(one.max_output_change is not None for one in pair.differences)
    }
