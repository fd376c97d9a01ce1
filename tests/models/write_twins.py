"""Writes one Keras model and copies with one constant changed each, as .keras and .h5; diffs live ones as well."""

import json
import sys
from pathlib import Path

import keras
import ml_dtypes
import numpy as np

import batchnorm as bn

L = keras.layers
CHANNELS = 6


def build(**changed):
    """Three batch normalizations between convolutions; ``changed`` are arguments of the second."""
    settings = {"epsilon": 1e-3, "momentum": 0.99, "axis": -1} | changed
    call = settings.pop("call", {})
    inp = keras.Input((CHANNELS, CHANNELS, CHANNELS), name="image")
    x = inp
    for name, own in (("first", {}), ("second", settings), ("third", {})):
        x = L.Conv2D(CHANNELS, 3, padding="same", name=f"conv_{name}")(x)
        x = L.BatchNormalization(name=name, **own)(x, **(call if name == "second" else {}))
    return keras.Model(inp, x)


def fill(model):
    rng = np.random.default_rng(0)
    for variable in model.variables:
        low, high = (0.5, 2) if "variance" in variable.path or "gamma" in variable.path else (0.1, 1)
        variable.assign(rng.uniform(low, high, variable.shape).astype("float32"))
    return model


def arrays(layer):
    return {role: keras.ops.convert_to_numpy(getattr(layer, role)) for role in ROLES}


ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


def swap(one, other):
    return lambda v: {one: v[other], other: v[one]}


def through(dtype):
    return lambda v: {role: values.astype(dtype).astype("float32") for role, values in v.items()}


BUILT = {
    "epsilon": {"epsilon": 1e-5},
    "decay": {"momentum": 0.9},
    "momentum-convention": {"momentum": 0.01},
    "axis": {"axis": 1},
    "mode": {"call": {"training": True}},
}
EDITED = {
    "ddof": lambda v: {"moving_variance": v["moving_variance"] * np.float32(32 / 31)},
    "gamma": lambda v: {"gamma": v["gamma"] + np.float32(0.25)},
    "beta": lambda v: {"beta": v["beta"] * np.float32(1.5)},
    "moving_mean": lambda v: {"moving_mean": v["moving_mean"][::-1]},
    "moving_variance": lambda v: {"moving_variance": v["moving_variance"] ** 2},
    "swapped gamma/beta": swap("gamma", "beta"),
    "swapped mean/variance": swap("moving_mean", "moving_variance"),
    "dtype": through(np.float16),
    "dtype bfloat16": through(ml_dtypes.bfloat16),
}


def twin(what):
    model = fill(build(**BUILT.get(what, {})))
    if what in EDITED:
        layer = model.get_layer("second")
        for role, values in EDITED[what](arrays(layer)).items():
            getattr(layer, role).assign(values)
    return model


def main(folder):
    base = fill(build())
    live = {}
    for suffix in ("keras", "h5"):
        base.save(folder / f"base.{suffix}")
    for what in (*BUILT, *EDITED):
        model = twin(what)
        stem = what.replace("/", "-")
        for suffix in ("keras", "h5"):
            model.save(folder / f"{stem}.{suffix}")
        found = bn.diff(base, model)
        live[what] = [(pair.a, one.what) for pair in found.pairs for one in pair.differences]
    live["same"] = bn.diff(base, folder / "base.keras").changes_output
    (folder / "live.json").write_text(json.dumps(live))
    base.save_weights(folder / "base.weights.h5")
    np.save(folder / "x.npy", x := np.random.default_rng(1).normal(size=(20, *[CHANNELS] * 3)).astype("float32"))
    (folder / "verified.json").write_text(json.dumps(verified(folder, base, x)))


def verified(folder, base, x):
    """What verify says of each copy beside the base, and that it leaves a live model as it was."""
    found = {}
    with bn.testing.assert_unchanged(base, folder):
        for what in (*BUILT, *EDITED):
            one = bn.verify(base, folder / f"{what.replace('/', '-')}.keras", data=x)
            first = one.comparison.first_diverging
            found[what] = None if first is None else [first.a, first.cause, first.why]
        found["same"] = bn.verify(base, folder / "base.h5", data=x).agrees
        found["run"] = bn.verify(base, data=x, engines=["numpy"], batch_size=3).model_run.status
        found["epsilon"].append(
            bn.verify(folder / "base.keras", folder / "epsilon.h5").comparison.first_diverging.cause
        )
        for wrong in (x[:, :2], np.zeros((0, 6, 6, 6))):
            try:
                bn.verify(base, data=wrong, engines=["numpy"])
            except bn.ArgumentError as error:
                found.setdefault("refused", []).append(str(error))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
