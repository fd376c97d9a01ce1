"""Whatever a file holds and whoever asks: an answer that fits its schema and 80 columns, or one of our own errors."""

import json
from importlib import resources

import jsonschema
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import batchnorm as bn
from batchnorm.core.record import LayerRecord
from batchnorm.errors import BatchnormError

from .cases import Fake

SCHEMAS = {
    name: jsonschema.Draft202012Validator(
        json.loads(resources.files("batchnorm.render").joinpath("schemas", f"{name}.json").read_text("utf-8"))
    )
    for name in ("list", "explain")
}
NUMBER = st.one_of(
    st.sampled_from([0.0, 1.0, -0.7, 1e-36, 1e30, np.nan, np.inf, -np.inf, 0.91, 1e-5]), st.floats(-9, 9)
)
EPSILON = st.sampled_from([None, 1e-3, 1e-5, 0.0, 0.5, -1e-3])
DECAY = st.sampled_from([None, 0.99, 0.9, 0.0, 1.0, 0.5, 1 - 1e-9])


@st.composite
def records(draw):
    channels = draw(st.integers(1, 4))
    array = st.lists(NUMBER, min_size=channels, max_size=channels).map(np.float32)
    epsilon, decay, untouched = draw(EPSILON), draw(DECAY), draw(st.booleans())
    statistics = draw(st.booleans()) or untouched
    return LayerRecord(
        name=draw(st.sampled_from(["bn", "a/b", "", "\x1b[31m" * 30, "n" * 500])),
        kind="BatchNormalization",
        channels=channels,
        axis=draw(st.sampled_from([-1, 1, 3])),
        dtype="float32",
        epsilon=epsilon,
        epsilon_source="unknown" if epsilon is None else "file",
        averaging=draw(st.sampled_from(["exponential", "cumulative", "unknown"])),
        decay=decay,
        momentum=draw(st.sampled_from([decay, None, None if decay is None else 1 - decay])),
        ddof=draw(st.sampled_from([0, 1, None])),
        mode=draw(st.sampled_from(["by-call", "inference", "training", "frozen", "batch-statistics", None])),
        gamma=draw(st.none() | array),
        beta=draw(st.none() | array),
        moving_mean=np.zeros(channels, "f4") if untouched else draw(array) if statistics else None,
        moving_variance=np.ones(channels, "f4") if untouched else draw(array) if statistics else None,
    ).with_updates(draw(st.sampled_from([None, 0, 1, 10, 459, 10**6])), "optimizer iterations")


@st.composite
def requests(draw, channels):
    shape = draw(st.sampled_from([(), (channels,), (3, channels), (2, 2, 2, channels), (2, channels, 1), (5,)]))
    x = draw(st.none() | st.lists(NUMBER, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    x = None if x is None else np.array(x).reshape(shape)
    return {
        "x": x,
        "mode": draw(st.sampled_from(["inference", "training"])),
        "expect": None if x is None or draw(st.booleans()) else np.full(shape, draw(st.floats(-2, 2))),
        "channel": draw(st.sampled_from([None, None, 0, -1, 7])),
        "at": draw(st.sampled_from([None, None, (0,), (1,), (0, 0)])),
        "limit": draw(st.sampled_from([1, 2, 20])),
        "updates": draw(st.sampled_from([None, None, 0, 10])),
        "epsilon": draw(st.sampled_from([None, None, 1e-3])),
    }


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_an_answer_or_one_of_our_errors(data):
    several = data.draw(st.lists(records(), min_size=1, max_size=2))
    model = Fake(*several)
    asked = data.draw(requests(several[0].channels))
    listing = bn.list_layers(model)
    SCHEMAS["list"].validate(json.loads(listing.to_json()))
    fits(str(listing))
    try:
        found = bn.explain(model, layer=data.draw(st.sampled_from([None, several[0].name])), **asked)
    except BatchnormError:
        return
    SCHEMAS["explain"].validate(json.loads(found.to_json()))
    fits(str(found))
    for layer in found.layers:
        assert layer.because, "always a reason"


def fits(text):
    assert max(map(len, text.splitlines())) <= 80, text
    assert text.replace("\n", "").isprintable()
