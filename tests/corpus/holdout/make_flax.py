"""Write the Flax files of the second part, live networks among them: ``python tests/corpus/holdout/make_flax.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import jax
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import save_file

from tests.corpus.holdout.flax_networks import Residual, Separable
from tests.corpus.holdout.samples import known, shapes
from tests.corpus.manifest import Entry, files, write

FILES = files("holdout")
ENTRIES = []
X, Y = known()["shapes"], shapes()[1]


def fit(model, *, steps=120, batch=48, scale=1.0):
    model.train()
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    rng = np.random.default_rng(0)
    for _ in range(steps):
        pick = rng.integers(0, len(X), batch)
        step(model, optimizer, X[pick] * np.float32(scale), Y[pick])
    model.eval()
    return model


def state(model):
    """The numbers under their paths."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.array(variable[...]) for path, variable in flat if path[-1] != "count"}


def keep(model, arch, name, what, rules=(), layer=None, least="note", *, live=None, run=None, beyond=None):
    """As safetensors; with ``live``, as the settings of a network that `live.py` builds and fills from the file."""
    arrays = model if isinstance(model, dict) else state(model)
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, FILES / f"{name}.safetensors")
    first, *also = rules or [None]
    run = dict(run or {})
    if live is not None:
        run |= {"live": [arch, live], "weights": f"{name}.safetensors"}
    file = f"live:{name}" if live is not None else f"{name}.safetensors"
    ENTRIES.append(Entry(file, arch, "flax", what, first, layer, None, run, also, least if first else "note", beyond))


def put(arrays, key, change):
    return {**arrays, key: change(arrays[key].copy())}


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    FILES.mkdir(exist_ok=True, parents=True)
    how = {"momentum": 0.9}
    residual, separable = fit(Residual(nnx.Rngs(0), **how)), fit(Separable(nnx.Rngs(0), **how))
    a, b = state(residual), state(separable)
    keep(a, "residual", "ok_x_residual", "NNX state")
    keep(b, "separable", "ok_x_separable", "NNX state")
    keep(a, "residual", "ok_x_residual_live", "live", live=how, run={"data": "shapes"})
    keep(b, "separable", "ok_x_separable_live", "live", live=how, run={"data": "shapes"})
    slow = {"momentum": 0.99}
    keep(a, "residual", "ok_x_slow_live", "live, .99 as by default", live=slow)
    half = {key: value.astype("float16") for key, value in b.items()}
    keep(half, "separable", "ok_x_half", "in float16")
    zero = fit(Residual(nnx.Rngs(1), zero=True, **how), steps=250)
    keep(
        zero, "residual", "ok_x_zero", "gamma began at 0 and learned", live=how | {"zero": True}, run={"data": "shapes"}
    )
    keep(a, "residual", "f_x_momentum", "torch's momentum .1", ["BN202"], "stem_bn", "warning", live={"momentum": 0.1})
    keep(a, "residual", "f_x_epsilon", "epsilon .5", ["BN206"], "stem_bn", "warning", live=how | {"epsilon": 0.5})
    keep(fit(Residual(nnx.Rngs(0), scale_input=1 / 255, **how)), "residual", "f_x_twice_scaled", "divided by 255 twice",
         ["BN103"], "stem_bn", "warning", live=how | {"scale_input": 1 / 255})  # fmt: skip
    keep(fit(Separable(nnx.Rngs(0), axis=1, **how)), "separable", "f_x_axis", "normalises over rows", ["BN203"],
         "dw_bn", "error", live=how | {"axis": 1}, beyond="a live NNX network tells no graph")  # fmt: skip
    keep(put(a, "block_bn2.var", lambda v: v - v.mean()), "residual", "f_x_negative", "variances below 0", ["BN102"],
         "block_bn2", "error")  # fmt: skip
    keep(
        put(b, "pw_bn.var", lambda v: v * np.inf),
        "separable",
        "f_x_infinite",
        "variances infinite",
        ["BN101"],
        "pw_bn",
        "error",
    )
    crossed = {**a, "block_bn1.mean": a["block_bn1.var"], "block_bn1.var": a["block_bn1.mean"]}
    keep(crossed, "residual", "f_x_exchanged", "mean and variance exchanged", ["BN207"], "block_bn1", "error")
    keep(crossed, "residual", "f_x_exchanged_live", "the same live", ["BN207"], "block_bn1", "error", live=how)
    lost = {**b, "dw_bn.mean": b["dw_bn.mean"] * 0, "dw_bn.var": b["dw_bn.var"] * 0 + 1}
    keep(lost, "separable", "f_x_reset", "one layer's statistics not restored", ["BN106"], "dw_bn", "error")
    keep(lost, "separable", "f_x_reset_live", "the same live", ["BN106"], "dw_bn", "error", live=how)
    keep(put(b, "pw_bn.scale", lambda g: g * (np.arange(len(g)) % 3 == 0)), "separable", "f_x_slim", "pruned",
         ["BN104"], "pw_bn", "warning")  # fmt: skip
    keep(fit(Residual(nnx.Rngs(0), momentum=0.99), steps=12), "residual", "f_x_12_steps", "12 steps at .99", ["BN401"],
         "stem_bn", "warning", live={"momentum": 0.99}, run={"data": "shapes"})  # fmt: skip
    keep(a, "residual", "f_x_fed_255", "fed 0..255", ["BN403"], "stem_bn", "error", live=how,
         run={"data": "shapes", "change": "times255"})  # fmt: skip
    tiny = {**b, "stem_bn.var": b["stem_bn.var"] * 1e-7}
    tiny = {key: value.astype("float16") for key, value in tiny.items()}
    keep(tiny, "separable", "f_x_half", "variances too small for float16", ["BN108"], "stem_bn", "error")
    write("flax", ENTRIES, "holdout")
    print(len(ENTRIES), "entries")
