"""`batchnorm.flax.convert` and its neighbours: NNX models swapped, Linen variables read and written."""

import numpy as np
import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
from flax import linen, nnx

import batchnorm.flax as bn
from batchnorm.errors import NoBatchNorm


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(3, 2, shape).astype(np.float32))


class Model(nnx.Module):
    """Norms as an attribute, shared, in a list, in a dict, in a Sequential."""

    def __init__(self, rngs):
        self.first = nnx.BatchNorm(3, momentum=0.8, epsilon=1e-3, rngs=rngs)
        self.shared = self.first
        self.many = nnx.List([nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, use_bias=False, rngs=rngs)])
        self.named = nnx.Dict(norm=nnx.BatchNorm(3, use_scale=False, rngs=rngs))
        self.seq = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.relu)

    def __call__(self, x):
        x = self.first(x)
        for layer in self.many:
            x = layer(x)
        return self.shared(self.seq(self.named["norm"](x)))


PATHS = {"first", "many/1", "named/norm", "seq/layers/1"}


def trained(seed=0):
    model = Model(nnx.Rngs(seed))
    for step in range(3):
        model(normal(8, 3, seed=step))
    return model


def norms(model, kind):
    return {"/".join(map(str, path)): m for path, m in nnx.iter_modules(model) if type(m) is kind}


def test_every_layer_is_swapped_and_the_outputs_stay():
    theirs = trained()
    before = nnx.to_pure_dict(nnx.state(theirs))
    ours = bn.convert(theirs, guard=False)
    assert not norms(ours, nnx.BatchNorm)
    assert set(norms(ours, bn.BatchNorm)) == PATHS
    assert ours.shared is ours.first
    assert set(norms(theirs, nnx.BatchNorm)) == PATHS  # the original is as it was
    assert jax.tree.all(jax.tree.map(np.array_equal, before, nnx.to_pure_dict(nnx.state(theirs))))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, nnx.to_pure_dict(nnx.state(ours))))
    assert (ours.first.momentum, ours.first.epsilon, ours.many[1].bias) == (0.8, 1e-3, None)
    for mode in ("eval", "train"):
        for model in (ours, theirs):
            getattr(model, mode)()
        np.testing.assert_allclose(ours(normal(8, 3)), theirs(normal(8, 3)), atol=1e-5)


def test_the_copy_has_variables_of_its_own():
    theirs = trained()
    before = theirs.first.mean[...]
    bn.convert(theirs)(normal(8, 3))
    assert (theirs.first.mean[...] == before).all()


def test_a_lone_layer_and_a_stack_of_layers():
    assert type(bn.convert(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))) is bn.BatchNorm
    stack = nnx.vmap(lambda rngs: nnx.BatchNorm(3, rngs=rngs))(nnx.Rngs(0).split(4))
    ours = bn.convert(stack, statistics="debiased")
    assert ours.remaining.shape == ours.skipped_updates.shape == (4, 3)
    y = nnx.vmap(lambda m, x: m(x))(ours, normal(4, 8, 3))
    np.testing.assert_allclose(y.mean(1), np.zeros((4, 3)), atol=1e-5)


def test_options_beyond_flax_and_debiased_weights_count_as_free_of_the_start():
    theirs = trained()
    ours = bn.convert(theirs, statistics="debiased", ddof=1, virtual_batch_size=4)
    assert (ours.first.ddof, ours.first.virtual_batch_size) == (1, 4)
    assert ours.first.remaining[...].tolist() == [0, 0, 0]
    theirs.eval(), ours.eval()
    np.testing.assert_allclose(ours(normal(8, 3)), theirs(normal(8, 3)), atol=1e-5)
    fresh = bn.convert(Model(nnx.Rngs(0)), statistics="debiased")
    assert fresh.first.remaining[...].tolist() == [1, 1, 1]  # still the initial mean 0 and variance 1


def test_what_holds_no_batch_norm_is_refused():
    for function, who in ((bn.convert, "convert"), (bn.freeze, "freeze"), (bn.unfreeze, "unfreeze")):
        with pytest.raises(ValueError, match=f"^{who}: module must be a flax.nnx.Module; got int"):
            function(3)
    with pytest.raises(NoBatchNorm, match="freeze: there is no batch normalization in Linear"):
        bn.freeze(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


def test_what_cannot_be_swapped_is_named():
    class Special(nnx.BatchNorm):
        pass

    model = nnx.Sequential(Special(3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match=r"convert: subclasses .* left as they are: \['layers/0'\]"):
        ours = bn.convert(model)
    assert [type(layer) for layer in ours.layers] == [Special, bn.BatchNorm]
    with pytest.raises(ValueError, match=r"convert: the layer at 'layers/0': BatchNorm: epsilon must be positive"):
        bn.convert(nnx.Sequential(nnx.BatchNorm(3, epsilon=0.0, rngs=nnx.Rngs(0))))


def linen_layer(**options):
    layer = linen.BatchNorm(use_running_average=False, **options)
    x = normal(8, 4, 3)
    variables = layer.init(jax.random.key(0), x)
    _, after = layer.apply(variables, x, mutable=["batch_stats"])
    return layer, {**variables, **after}, x


@pytest.mark.parametrize("options", [{}, {"axis": 1, "momentum": 0.9}, {"axis": (1, 2)}, {"use_scale": False}])
def test_a_linen_layer_is_read_and_written(options):
    layer, variables, x = linen_layer(**options)
    ours = bn.convert(layer, variables=variables)
    expected = layer.clone(use_running_average=True).apply(variables, x)
    np.testing.assert_allclose(ours(x, use_running_average=True), expected, atol=1e-6)
    expected, after = layer.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(ours(x), expected, atol=1e-5)
    back = bn.to_linen(ours)
    assert jax.tree.structure(back) == jax.tree.structure({"params": dict(variables.get("params", {})), **after})
    np.testing.assert_allclose(back["batch_stats"]["var"], after["batch_stats"]["var"], rtol=1e-5)


def test_a_linen_model_by_names():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.BatchNorm(use_running_average=False, name="first")(x)
            x = linen.BatchNorm(use_running_average=False, use_bias=False, name="many_1")(linen.Dense(3)(x))
            x = linen.BatchNorm(use_running_average=False, use_scale=False)(x)
            return linen.BatchNorm(use_running_average=False)(x)

    net = Net()
    variables = net.init(jax.random.key(0), normal(8, 3))
    _, after = net.apply(variables, normal(8, 3), mutable=["batch_stats"])
    variables = {**variables, **after}
    names = {"named/norm": "BatchNorm_0", "seq/layers/1": "BatchNorm_1"}
    ours = bn.convert(Model(nnx.Rngs(0)), variables=variables, names=names)
    stats = variables["batch_stats"]
    np.testing.assert_array_equal(ours.many[1].var[...], stats["many_1"]["var"])
    np.testing.assert_array_equal(ours.named["norm"].mean[...], stats["BatchNorm_0"]["mean"])
    written = bn.to_linen(ours, names | {"many/1": "many_1"})
    assert jax.tree.structure(written["batch_stats"]) == jax.tree.structure(dict(stats))
    assert jax.tree.all(jax.tree.map(np.array_equal, written["batch_stats"], dict(stats)))
    assert set(written["params"]["many_1"]) == {"scale"}


def test_debiased_statistics_are_written_for_linen_without_their_start():
    ours = bn.BatchNorm(3, statistics="debiased", rngs=nnx.Rngs(0))
    ours(normal(8, 3))
    y = linen.BatchNorm(use_running_average=True).apply(bn.to_linen(ours), normal(8, 3))
    np.testing.assert_allclose(y, ours(normal(8, 3), use_running_average=True), atol=1e-5)


def test_from_linen_refuses_what_does_not_fit_and_changes_nothing():
    ours = bn.convert(trained())
    before = nnx.to_pure_dict(nnx.state(ours))
    good = bn.to_linen(ours)
    short = {"params": good["params"], "batch_stats": {**good["batch_stats"], "seq": {"layers": {"1": {}}}}}
    with pytest.raises(
        ValueError, match=r"from_linen: no batch_stats for the layer 'seq/layers/1'; there are .*'first'"
    ):
        bn.from_linen(ours, short)
    wide = jax.tree.map(lambda a: jnp.ones((5,)), good)
    with pytest.raises(ValueError, match=r"from_linen: scale of the layer 'first' must have shape \(3,\); got \(5,\)"):
        bn.from_linen(ours, wide)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, nnx.to_pure_dict(nnx.state(ours))))
    with pytest.raises(ValueError, match=r"convert: a Linen layer holds no weights. Pass variables="):
        bn.convert(linen.BatchNorm())
