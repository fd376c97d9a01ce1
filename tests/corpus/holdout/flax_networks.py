"""Networks of the second part in Flax, which the manifest's settings build anew."""

import jax.numpy as jnp
from flax import nnx


def norm(channels, rngs, *, momentum=0.9, epsilon=1e-5, **how):
    return nnx.BatchNorm(channels, momentum=momentum, epsilon=epsilon, rngs=rngs, **how)


class Residual(nnx.Module):
    """One block beside its shortcut."""

    def __init__(self, rngs, zero=False, scale_input=1.0, **how):
        last = {"scale_init": nnx.initializers.zeros} if zero else {}
        self.scale_input = scale_input
        self.stem = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.stem_bn = norm(8, rngs, **how)
        self.block1 = nnx.Conv(8, 8, (3, 3), use_bias=False, rngs=rngs)
        self.block_bn1 = norm(8, rngs, **how)
        self.block2 = nnx.Conv(8, 8, (3, 3), use_bias=False, rngs=rngs)
        self.block_bn2 = norm(8, rngs, **how | last)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem_bn(self.stem(x * self.scale_input)))
        y = nnx.relu(self.block_bn1(self.block1(x)))
        return self.head(nnx.relu(x + self.block_bn2(self.block2(y))).mean((1, 2)))


class Separable(nnx.Module):
    """A depthwise and a pointwise convolution; ``axis`` is that of the layer between."""

    def __init__(self, rngs, axis=-1, **how):
        self.stem = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.stem_bn = norm(8, rngs, **how)
        self.dw = nnx.Conv(8, 8, (3, 3), feature_group_count=8, use_bias=False, rngs=rngs)
        self.dw_bn = norm(8 if axis == -1 else 10, rngs, **how | {"axis": axis})
        self.pw = nnx.Conv(8, 12, (1, 1), use_bias=False, rngs=rngs)
        self.pw_bn = norm(12, rngs, **how)
        self.head = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem_bn(self.stem(x)))
        x = nnx.relu(self.dw_bn(self.dw(x)))
        return self.head(nnx.relu(self.pw_bn(self.pw(x))).mean((1, 2)))


def live(arch, settings, arrays):
    """A network in inference mode, filled from a file's arrays."""
    model = {"residual": Residual, "separable": Separable}[arch](nnx.Rngs(0), **settings)
    state = nnx.state(model)
    flat = nnx.to_flat_state(state)
    held = [(path, variable.replace(jnp.asarray(arrays[".".join(map(str, path))])) if path[-1] != "count" else variable)
            for path, variable in flat]  # fmt: skip
    nnx.update(model, nnx.from_flat_state(held))
    model.eval()
    return model
