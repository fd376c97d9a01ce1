"""Folding ONNX models, exported programs and live PyTorch modules, each with its proof; freezing ONNX models."""

import io
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import batchnorm as bn
from batchnorm.errors import ArgumentError, ModelFileError, NoBatchNorm

torch = pytest.importorskip("torch", reason="live modules and exported programs are PyTorch's")
onnx = pytest.importorskip("onnx", reason="ONNX models are edited with it")
pytest.importorskip("onnxruntime", reason="the proof runs in it")
nn = torch.nn
SCHEMA = json.loads((Path(bn.__file__).parent / "render" / "schemas" / "fold.json").read_text("utf-8"))


def trained(model, seed=0):
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return model.eval()


class Block(nn.Module):
    """A residual block: the addition takes what a batch normalization gives, and what came in."""

    def __init__(self, channels):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.c2, self.b2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.b2(self.c2(torch.relu(self.b1(self.c1(x))))))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def mobile():
    """Depthwise and pointwise convolutions, as MobileNet has them."""
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    for _ in range(2):
        layers += [nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
        layers += [nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Kinds(nn.Module):
    """Every rank; grouped, transposed, transposed and grouped with unequal channels; dense after and before."""

    def __init__(self):
        super().__init__()
        self.c1, self.n1 = nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6)
        self.c3, self.n3 = nn.Conv3d(4, 6, 3, padding=1), nn.BatchNorm3d(6, affine=False)
        self.t2, self.m2 = nn.ConvTranspose2d(4, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.t1, self.m1 = nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6)
        self.first, self.valid = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2)
        self.dense, self.after = nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.before, self.last = nn.BatchNorm1d(5), nn.Linear(5, 3, bias=False)

    def forward(self, x1, x2, x3, flat):
        two = torch.relu(self.m2(self.t2(x2)))
        flat = self.last(self.before(torch.tanh(self.after(self.dense(flat)))))
        return self.n1(self.c1(x1)), self.m1(self.t1(x1)), self.valid(self.first(two)), self.n3(self.c3(x3)), flat


INPUTS = {"x1": (8, 4, 9), "x2": (8, 4, 6, 6), "x3": (8, 4, 5, 5, 5), "flat": (8, 5)}
KINDS = {
    "n1": ("c1", "after"), "m1": ("t1", "after"), "m2": ("t2", "after"), "first": ("valid", "before"),
    "n3": ("c3", "after"), "after": ("dense", "after"), "before": ("last", "before"),
}  # fmt: skip
NETWORKS = {"resnet": (ResNet, 5, (8, 3, 8, 8)), "mobile": (mobile, 5, (8, 3, 8, 8))}


def kinds_data():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype("f4") for name, shape in INPUTS.items()}


def exported(model, folder, form, arguments):
    place = folder / f"model.{form}"
    if form == "pt2":
        torch.export.save(torch.export.export(model, arguments), place)
    else:
        how = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False, "dynamo": False}
        names = list(INPUTS)[: len(arguments)] if len(arguments) > 1 else ["x"]
        torch.onnx.export(model, arguments, place, input_names=names, **how)
    return place


def checked(found, folded):
    document = json.loads(found.to_json())
    jsonschema.validate(document, SCHEMA)
    assert {each["layer"]: (each["into"], each["where"]) for each in document["folded"]} == folded
    assert document["proof"]["holds"]
    assert document["proof"]["max_rel"] <= 1e-5
    return document


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporters'
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["live", "pt2", "onnx"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, form, tmp_path):
    build, norms, shape = NETWORKS[name]
    model, x = trained(build()), torch.randn(shape)
    wanted = model(x).detach().numpy()
    if form == "live":
        with bn.testing.assert_unchanged(model):
            found = bn.fold(model)
        again = found.result(x).detach().numpy()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in found.result.modules())
    else:
        place = exported(model, tmp_path, form, (x,))
        with bn.testing.assert_unchanged(place):
            found = bn.fold(place, tmp_path / f"out.{form}")
        read = bn.load(tmp_path / f"out.{form}")
        assert not read.layers
        again, _ = read.run(x.numpy())
    assert len(found.folded) == norms
    assert not found.refused
    assert found.proof.holds
    # Two networks of 5 folded operations, each rounded as the proof says.
    np.testing.assert_allclose(again, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_kind_of_operation(tmp_path):
    model, data = trained(Kinds()), kinds_data()
    arguments = tuple(map(torch.from_numpy, data.values()))
    checked(bn.fold(model), KINDS)
    checked(bn.fold(model, data=data), KINDS)
    checked(bn.fold(exported(model, tmp_path, "pt2", arguments), tmp_path / "out.pt2"), KINDS)
    loaded = torch.export.load(tmp_path / "out.pt2")
    assert "n1.running_mean" not in loaded.state_dict  # what nothing uses is gone
    found = bn.fold(exported(model, tmp_path, "onnx", arguments), tmp_path / "out.onnx", data=data)
    onnx.checker.check_model(tmp_path / "out.onnx")
    assert len(found.folded) == 6
    # A Linear without a bias is exported as the product with a Transpose of its weight.
    assert [each.why for each in found.refused] == ["the kernel of /last/MatMul is no stored constant"]
    assert found.proof.holds
    left = sorted(each.name for each in onnx.load(tmp_path / "out.onnx").graph.initializer)
    assert [name for name in left if "running" in name] == ["before.running_mean", "before.running_var"]


class Refusing(nn.Module):
    """What the peers fold wrongly, and more."""

    def __init__(self):
        super().__init__()
        self.shared, self.b1, self.b2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.seq, self.over = nn.Linear(8, 3), nn.BatchNorm1d(3)
        self.hooked, self.b3 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.hooked.register_forward_hook(lambda *_: None)
        self.used, self.b4 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.tied, self.b5 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.tied_too = nn.Conv2d(3, 3, 1)
        self.tied_too.weight = self.tied.weight
        self.weighted, self.b6 = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)
        self.batch, self.b7 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        self.ok, self.b8 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = torch.relu(self.b1(self.shared(x)) + self.b2(self.shared(x + 1)))
        x = torch.relu(self.b3(self.hooked(x)))
        x = torch.relu(self.b4(self.used(x))) * self.used.weight.sum()
        x = torch.relu(self.b5(self.tied(x)) + self.tied_too(x))
        x = torch.relu(self.b7(self.batch(torch.relu(self.b6(self.weighted(x))))))
        return self.over(self.seq(x[:, 0])) + self.b8(self.ok(x)).mean()


def test_each_refusal_of_a_live_module():
    model = trained(Refusing())
    found = bn.fold(model, data=np.ones((4, 3, 3, 8), "f4"))
    reasons = {
        "b1": "shared is shared", "b2": "shared is shared", "b3": "has hooks", "b4": "used is shared",
        "b5": "tied is shared", "b6": "weighted is", "b7": "statistics of each batch",
        "over": "axis 1 of 3, and the channels of seq lie on axis 2",
    }  # fmt: skip
    refused = {each.layer: each.why for each in found.refused}
    assert set(refused) == {*reasons, "b6"}
    for name, why in reasons.items():
        if name != "b6":
            assert why in refused[name], name
    assert [each.layer for each in found.folded] == ["b8"]
    assert found.proof.holds


def test_where_torchs_own_fusion_is_wrong():
    """The figures are the peer's; ours refuses, or is right to rounding."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

    x = torch.randn(8, 3, 6, 6)
    model = trained(nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.BatchNorm2d(3)))
    wanted = model(x).detach()
    theirs = fuse_conv_bn_eval(model[0], model[1], transpose=False)(x).detach()
    assert float((theirs - wanted).abs().max()) > 0.1
    assert float((bn.fold(model).result(x).detach() - wanted).abs().max() / wanted.abs().max()) < 1e-5
    grouped = trained(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)))
    with pytest.raises(RuntimeError):
        fuse_conv_bn_eval(grouped[0], grouped[1], transpose=True)
    assert bn.fold(grouped).holds
    plain = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)))
    assert bn.fold(plain).holds
    x = torch.randn(8, 5, 5)
    sequence = trained(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)))
    wanted = sequence(x).detach()
    theirs = fuse_linear_bn_eval(sequence[0], sequence[1])(x).detach()
    assert float((theirs - wanted).abs().max()) > 0.1
    assert not bn.fold(sequence, data=x.numpy()).folded


def test_a_live_module_whose_inputs_cannot_be_told():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.b(self.c(torch.sin(x)))

    model = trained(Odd())
    with pytest.raises(ArgumentError, match="not known; give some with --data"):
        bn.fold(model)
    assert bn.fold(model, data=np.ones((2, 3, 4, 4), "f4")).holds
    with pytest.raises(ArgumentError, match=r"bn\.fold\(module\)\.result"):
        bn.fold(model, "out.pt2")


def test_a_module_that_cannot_be_traced():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.b(self.c(x)) if x.sum() > 0 else x

    found = bn.fold(trained(Deciding()))
    assert found.proof is found.result is None
    assert "shows no graph: forward cannot be traced" in found.refused[0].why


def model_of(nodes, weights, opset=17, shape=("n", 3, 6, 6), ir=10, out="y", inputs=("x",), as_inputs=False, more=()):
    helper = onnx.helper
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in inputs]
    held = [onnx.numpy_helper.from_array(np.asarray(each), name) for name, each in weights.items()]
    if as_inputs:
        given += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in held]
    outs = [helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, [f"o{at}" for at in range(len(shape))])]
    outs += [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["channels"]) for name in more]
    graph = helper.make_graph(nodes, "g", given, outs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def vectors(channels, seed=0, dtype="f4"):
    rng = np.random.default_rng(seed)
    return {
        "gamma": rng.uniform(0.5, 2, channels).astype(dtype), "beta": rng.normal(size=channels).astype(dtype),
        "mean": rng.normal(size=channels).astype(dtype), "var": rng.uniform(0.5, 2, channels).astype(dtype),
    }  # fmt: skip


NORM = ["gamma", "beta", "mean", "var"]


def conv_norm(**how):
    node = onnx.helper.make_node
    nodes = [node("Conv", ["x", "w"], ["a"], name="conv"), node("BatchNormalization", ["a", *NORM], ["y"], name="bn")]
    return model_of(nodes, {"w": np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype("f4")} | vectors(4), **how)


def saved(model, place):
    onnx.save(model, place)
    return place


def test_an_old_onnx_model_lists_its_initializers_as_inputs(tmp_path):
    place = saved(conv_norm(opset=8, ir=3, as_inputs=True), tmp_path / "old.onnx")
    found = bn.fold(place, tmp_path / "out.onnx")
    assert found.holds
    model = onnx.load(tmp_path / "out.onnx")
    assert {each.name for each in model.graph.input} == {"x"} | {each.name for each in model.graph.initializer}
    assert [each.name for each in model.graph.output] == ["y"]


def test_matmul_with_and_without_an_add(tmp_path):
    node = onnx.helper.make_node
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(3, 4)).astype("f4"), "b": rng.normal(size=4).astype("f4")} | vectors(4)
    last = node("BatchNormalization", ["a", *NORM], ["y"], name="bn")
    for nodes in (
        [node("MatMul", ["x", "w"], ["m"], name="mm"), node("Add", ["m", "b"], ["a"]), last],
        [node("MatMul", ["x", "w"], ["a"], name="mm"), last],
    ):
        place = saved(model_of(nodes, weights, shape=("n", 3)), tmp_path / "m.onnx")
        found = bn.fold(place, tmp_path / "out.onnx", force=True)
        assert [(each.layer, each.into) for each in found.folded] == [("bn", "mm")]
        assert found.holds
        kinds = [each.op_type for each in onnx.load(tmp_path / "out.onnx").graph.node]
        assert kinds == ["MatMul", "Add"]
    # On three axes batch normalization means the second, and the product the last.
    weights = {"w": rng.normal(size=(4, 4)).astype("f4")} | vectors(4)
    nodes = [node("MatMul", ["x", "w"], ["a"], name="mm"), last]
    place = saved(model_of(nodes, weights, shape=("n", 4, 4)), tmp_path / "m.onnx")
    found = bn.fold(place, tmp_path / "none.onnx")
    assert "axis 1 of 3" in found.refused[0].why
    assert not (tmp_path / "none.onnx").exists()


def test_half_precision_and_quantised_onnx(tmp_path):
    node, rng = onnx.helper.make_node, np.random.default_rng(1)
    cast = [node("Cast", ["x"], ["h"], to=10), node("Conv", ["h", "w"], ["a"], name="conv"),
            node("BatchNormalization", ["a", *NORM], ["n"], name="bn"), node("Cast", ["n"], ["y"], to=1)]  # fmt: skip
    weights = {"w": rng.normal(size=(4, 3, 3, 3)).astype("f2")} | vectors(4, dtype="f2")
    found = bn.fold(saved(model_of(cast, weights), tmp_path / "h.onnx"), tmp_path / "out.onnx")
    assert found.holds
    assert found.proof.tolerance == found.proof.bound > 1e-3
    quantised = [node("DequantizeLinear", ["q", "s"], ["w"]), node("Conv", ["x", "w"], ["a"], name="conv"),
                 node("BatchNormalization", ["a", *NORM], ["y"], name="bn")]  # fmt: skip
    weights = {"q": rng.integers(-9, 9, (4, 3, 3, 3)).astype("i1"), "s": np.float32(0.1)} | vectors(4)
    found = bn.fold(saved(model_of(quantised, weights), tmp_path / "q.onnx"), tmp_path / "no.onnx")
    assert "no stored constant" in found.refused[0].why


def test_external_data_stay_external(tmp_path):
    place = tmp_path / "big.onnx"
    onnx.save(conv_norm(), place, save_as_external_data=True, location="big.data", size_threshold=0)
    with bn.testing.assert_unchanged(place, tmp_path / "big.data"):
        found = bn.fold(place, tmp_path / "out.onnx")
    assert found.holds
    assert sorted(each.name for each in tmp_path.iterdir()) == ["big.data", "big.onnx", "out.onnx", "out.onnx.data"]
    assert not bn.load(tmp_path / "out.onnx").layers
    assert bn.load(tmp_path / "out.onnx").run(np.ones((1, 3, 6, 6), "f4"))[0].shape == (1, 4, 4, 4)


def test_what_a_branch_takes_is_a_second_consumer(tmp_path):
    node = onnx.helper.make_node
    outs = [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)]
    branch = onnx.helper.make_graph([node("Neg", ["a"], ["z"])], "b", [], outs)
    model = conv_norm()
    condition = onnx.numpy_helper.from_array(np.array(True), "yes")
    model.graph.initializer.append(condition)
    model.graph.node.append(node("If", ["yes"], ["z2"], name="if", then_branch=branch, else_branch=branch))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z2", onnx.TensorProto.FLOAT, None))
    found = bn.fold(saved(model, tmp_path / "if.onnx"), tmp_path / "out.onnx")
    assert "second consumer: if" in found.refused[0].why


def test_a_live_onnx_model_is_folded_into_a_copy():
    model = conv_norm()
    before = model.SerializeToString()
    found = bn.fold(model)
    assert model.SerializeToString() == before
    assert [each.op_type for each in found.result.graph.node] == ["Conv"]
    assert found.holds


def test_bad_input(tmp_path):
    place = saved(conv_norm(), tmp_path / "m.onnx")
    bare = model_of([onnx.helper.make_node("Relu", ["x"], ["y"])], {})
    cases = (
        (ArgumentError, "never overwritten", lambda: bn.fold(place, place, force=True)),
        (ArgumentError, "give its path with -o", lambda: bn.fold(place)),
        (ArgumentError, r"must end in \.onnx", lambda: bn.fold(place, tmp_path / "out.keras")),
        (ArgumentError, "cannot write", lambda: bn.fold(place, tmp_path / "no" / "out.onnx")),
        (ArgumentError, "the model wants", lambda: bn.fold(place, tmp_path / "o.onnx", data=np.ones((2, 5)))),
        (ArgumentError, "at least one", lambda: bn.fold(place, tmp_path / "o.onnx", data=[])),
        (NoBatchNorm, "no batch normalization", lambda: bn.fold(saved(bare, tmp_path / "b.onnx"), tmp_path / "o.onnx")),
        (bn.UnknownLayer, "no batch normalization 'z'", lambda: bn.fold(place, tmp_path / "o.onnx", skip=["z"])),
    )
    for kind, why, call in cases:
        with bn.testing.assert_unchanged(place), pytest.raises(kind, match=why):
            call()
    damaged = tmp_path / "d.onnx"
    damaged.write_bytes(place.read_bytes()[:200])
    with pytest.raises(ModelFileError):
        bn.fold(damaged, tmp_path / "o.onnx")
    state = io.BytesIO()
    torch.save(nn.BatchNorm1d(2).state_dict(), state)
    (tmp_path / "s.pt").write_bytes(state.getvalue())
    with pytest.raises(ArgumentError, match=r"models are not folded; what is: \.onnx, \.keras"):
        bn.fold(tmp_path / "s.pt", tmp_path / "o.pt", epsilon=1e-5)
    assert not any(each.name.startswith((".", "o.")) for each in tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    from batchnorm.api import folding

    place = saved(conv_norm(), tmp_path / "m.onnx")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folding, "proved", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bn.fold(place, tmp_path / "o.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_a_wrong_fold_is_not_written(tmp_path, monkeypatch):
    """The proof is what stands between a fault of ours and a file."""
    from batchnorm.analysis import folding

    place = saved(conv_norm(), tmp_path / "m.onnx")
    monkeypatch.setattr(folding.Linear, "then", lambda self, affine: self._with(self.kernel * 1.001, self.bias))
    found = bn.fold(place, tmp_path / "o.onnx")
    assert not found.holds
    assert found.output is None
    assert "nothing was written" in found.notes[-1]
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("opset", [6, 9, 15])
def test_freezing_an_onnx_model(opset, tmp_path):
    """From training mode, with all its outputs, to inference: attributes and outputs of the node, nothing else."""
    outputs = {6: ["n", "m2", "v2", "sm", "sv"], 9: ["n", "m2", "v2", "sm", "sv"], 15: ["n", "m2", "v2"]}[opset]
    how = {6: {"is_test": 0}, 9: {}, 15: {"training_mode": 1}}[opset]
    node = onnx.helper.make_node
    nodes = [node("BatchNormalization", ["x", *NORM], outputs, name="bn", **how), node("Relu", ["n"], ["y"])]
    model = model_of(nodes, vectors(3), opset=opset, more=("m2",))
    place = saved(model, tmp_path / "t.onnx")
    with bn.testing.assert_unchanged(place):
        found = bn.freeze(place, tmp_path / "i.onnx")
    assert found.changed == ("bn",)
    (layer,) = bn.load(tmp_path / "i.onnx").layers
    assert layer.mode == "inference"
    after = onnx.load(tmp_path / "i.onnx")
    onnx.checker.check_model(after)
    assert list(after.graph.initializer) == list(model.graph.initializer)
    assert [each for each in after.graph.node if each.op_type == "Relu"] == [nodes[1]]
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype("f4")
    held = {name: value.reshape(1, 3, 1, 1) for name, value in vectors(3).items()}
    wanted = held["gamma"] * (x - held["mean"]) / np.sqrt(held["var"] + 1e-5) + held["beta"]
    if opset > 6:
        got, _ = bn.load(tmp_path / "i.onnx").run(x)
        # Float32: a handful of roundings of numbers below 10.
        np.testing.assert_allclose(got["y"], np.maximum(wanted, 0), atol=5e-6)
        np.testing.assert_array_equal(got["m2"], vectors(3)["mean"])  # the moving mean stays what it was
    assert bn.freeze(tmp_path / "i.onnx", tmp_path / "none.onnx").changed == ()
    assert not (tmp_path / "none.onnx").exists()
    with pytest.raises(ArgumentError, match="holds no training"):
        bn.unfreeze(place, tmp_path / "u.onnx")


def test_freezing_where_the_batchs_own_statistics_are_used(tmp_path):
    node = onnx.helper.make_node
    nodes = [node("BatchNormalization", ["x", *NORM], ["y", "m", "v", "sm", "sv"], name="bn")]
    place = saved(model_of(nodes, vectors(3), opset=9, more=("sm",)), tmp_path / "t.onnx")
    found = bn.freeze(place, tmp_path / "i.onnx")
    assert not found.changed
    assert "the batch's own statistics (sm)" in found.unchanged[0].why
    assert found.output is None


def test_freezing_where_a_branch_takes_the_new_mean(tmp_path):
    """A branch sees what is around it, by name: without the moving mean under that name the graph would be broken."""
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    branch = onnx.helper.make_graph([node("Neg", ["m"], ["z"])], "b", [], [info("z", onnx.TensorProto.FLOAT, None)])
    nodes = [node("BatchNormalization", ["x", *NORM], ["y", "m", "v"], name="bn", training_mode=1),
             node("If", ["yes"], ["minus"], then_branch=branch, else_branch=branch)]  # fmt: skip
    weights = vectors(3) | {"yes": np.array(True)}
    found = bn.freeze(saved(model_of(nodes, weights, more=("minus",)), tmp_path / "t.onnx"), tmp_path / "i.onnx")
    assert found.changed == ("bn",)
    got, _ = bn.load(tmp_path / "i.onnx").run(np.ones((2, 3, 6, 6), "f4"))
    np.testing.assert_array_equal(got["minus"], -vectors(3)["mean"])


def test_freezing_keeps_external_data_where_they_are(tmp_path):
    node = onnx.helper.make_node
    nodes = [node("BatchNormalization", ["x", *NORM], ["y"], name="bn", training_mode=1)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    place = tmp_path / "a" / "t.onnx"
    model = model_of(nodes, vectors(3))
    onnx.save(model, place, save_as_external_data=True, location="t.data", size_threshold=0)
    for folder in ("a", "b"):
        assert bn.freeze(place, tmp_path / folder / "i.onnx").changed == ("bn",)
        assert (tmp_path / folder / "t.data").read_bytes() == (tmp_path / "a" / "t.data").read_bytes()
        assert bn.load(tmp_path / folder / "i.onnx").layers[0].moving_mean is not None
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "t.data").write_bytes(b"mine")
    with pytest.raises(ArgumentError, match="in the way"):
        bn.freeze(place, tmp_path / "c" / "i.onnx")
    assert [each.name for each in (tmp_path / "c").iterdir()] == ["t.data"]


def test_freezing_live_torch_modules():
    from batchnorm.torch import convert

    model = convert(trained(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))))
    found = bn.freeze(model)
    assert found.changed == ("1",)
    assert not model.train()[1].training
    assert bn.freeze(model).unchanged[0].why == "it is frozen already"
    assert bn.unfreeze(model).changed == ("1",)
    assert model.train()[1].training
    with pytest.raises(ArgumentError, match="convert"):
        bn.freeze(nn.Sequential(nn.BatchNorm1d(3)))
    with pytest.raises(ArgumentError, match="in place"):
        bn.freeze(model, "out.pt")
    with pytest.raises(NoBatchNorm):
        bn.freeze(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="a dict is not changed"):
        bn.freeze({})
