"""Folding what users have and tests had not: guessed shapes, wrappers, odd outputs, casts, biases, files in the way."""

import dataclasses
import errno
import warnings
from pathlib import Path

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.errors import ArgumentError
from tests.api.test_fold import NORM, conv_norm, model_of, saved, trained, vectors

torch = pytest.importorskip("torch", reason="live modules are PyTorch's")
onnx = pytest.importorskip("onnx", reason="ONNX models are edited with it")
pytest.importorskip("onnxruntime", reason="the proof runs in it")
nn = torch.nn


@dataclasses.dataclass
class Outputs:
    logits: object
    hidden: object = None


class Answering(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return Outputs(self.b(self.c(x)))


def test_a_guessed_shape_is_said():
    """On (N, L, C) with as many places as channels the folded module is another one, and nothing but data can tell."""
    model = trained(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)))
    guessed = bn.fold(model)
    assert guessed.holds
    assert "guessed, (N, 5)" in guessed.notes[0]
    assert not bn.fold(model, data=np.ones((4, 5), "f4")).notes
    refused = bn.fold(model, data=np.ones((4, 5, 5), "f4")).refused
    assert "it normalises axis 1 of 3" in refused[0].why
    assert not bn.fold(trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))).notes


def test_a_dataclass_of_outputs():
    found = bn.fold(trained(Answering()))
    assert found.holds
    assert found.proof.inputs[0].outputs[0].max_y > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_a_wrapped_module_says_what_to_give():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    for wrapped, way in ((nn.DataParallel(model), "model.module"), (torch.compile(model), "model._orig_mod")):
        found = bn.fold(wrapped)
        assert found.result is None
        assert found.refused[0].why.endswith(f"give the module inside, {way}")


def test_a_lazy_module_stays_lazy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of a feature in development
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4))
    x = np.ones((8, 3, 6, 6), "f4")
    with bn.testing.assert_unchanged(model):
        with pytest.raises(ArgumentError, match=r"parameter '0\.weight' has no values yet"):
            bn.recalibrate(model, x)
        found = bn.fold(model, data=x)
    assert "has no values yet" in found.refused[0].why


def test_data_that_are_not_finite_are_named(tmp_path):
    place = saved(conv_norm(), tmp_path / "m.onnx")
    x = np.ones((40, 3, 6, 6), "f4")
    x[37, 0, 0, 0] = np.nan
    for data in (x, [x[:30], x[30:]], {"x": x}):
        with pytest.raises(ArgumentError, match="a NaN or an infinity in sample 37"):
            bn.fold(place, tmp_path / "out.onnx", data=data)
    assert not (tmp_path / "out.onnx").exists()


def test_less_than_a_whole_batch_says_how_much(tmp_path):
    place = saved(conv_norm(shape=(8, 3, 6, 6)), tmp_path / "m.onnx")
    with pytest.raises(ArgumentError, match="no whole batch: the model takes 8 at a time"):
        bn.fold(place, tmp_path / "out.onnx", data=np.ones((5, 3, 6, 6), "f4"))
    assert bn.fold(place, tmp_path / "out.onnx", data=np.ones((17, 3, 6, 6), "f4")).proof.inputs[1].samples == 16


@pytest.mark.parametrize(("to", "folds"), [(1, True), (10, True), (6, False)], ids=["float32", "float16", "int32"])
def test_a_cast_is_a_mere_name_between_floats(tmp_path, to, folds):
    node = onnx.helper.make_node
    nodes = [node("Conv", ["x", "w"], ["a"], name="conv"), node("Cast", ["a"], ["h"], to=to),
             node("Cast", ["h"], ["f"], to=1), node("BatchNormalization", ["f", *NORM], ["y"], name="bn")]  # fmt: skip
    weights = {"w": np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype("f4")} | vectors(4)
    found = bn.fold(saved(model_of(nodes, weights), tmp_path / "m.onnx"), tmp_path / "out.onnx")
    assert found.holds is folds
    if folds:  # through 16 bits the network rounds in them, whatever its weights are
        assert (found.proof.tolerance > 1e-3) is (to == 10)
    else:
        assert "another operation" in found.refused[0].why


@pytest.mark.parametrize("shape", [(4, 1), (4, 4)])
def test_a_bias_that_is_not_one_number_a_channel(tmp_path, shape):
    node, rng = onnx.helper.make_node, np.random.default_rng(0)
    nodes = [node("Gemm", ["x", "w", "b"], ["a"], name="g"),
             node("BatchNormalization", ["a", *NORM], ["y"], name="bn")]  # fmt: skip
    weights = {"w": rng.normal(size=(3, 4)).astype("f4"), "b": rng.normal(size=shape).astype("f4")} | vectors(4)
    found = bn.fold(saved(model_of(nodes, weights, shape=(4, 3)), tmp_path / "m.onnx"), tmp_path / "out.onnx")
    assert f"the bias of g has shape {shape}" in found.refused[0].why


def external(folder, data):
    """An ONNX model whose arrays lie in a file of another name beside it."""
    onnx.save(conv_norm(), folder / "m.onnx", save_as_external_data=True, location=data, size_threshold=0)
    return folder / "m.onnx"


def test_the_data_of_the_input_are_not_written_over(tmp_path):
    place = external(tmp_path, "out.onnx.data")
    with bn.testing.assert_unchanged(tmp_path), pytest.raises(ArgumentError, match="is the input"):
        bn.fold(place, tmp_path / "out.onnx", force=True)


@pytest.mark.parametrize("what", ["recalibrate", "freeze"])
def test_a_full_disk_leaves_no_copied_data(tmp_path, monkeypatch, what):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    model = conv_norm() if what == "recalibrate" else conv_norm(opset=15)
    if what == "freeze":
        model.graph.node[1].attribute.append(onnx.helper.make_attribute("training_mode", 1))
        model.graph.node[1].output.extend(["m2", "v2"])
    place = tmp_path / "here" / "m.onnx"
    onnx.save(model, place, save_as_external_data=True, location="m.bin", size_threshold=0)
    own = Path.write_bytes

    def full(self, data):
        if self.parent.name == "there":
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    out = tmp_path / "there" / "o.onnx"
    more = {} if what == "freeze" else {"data": np.random.default_rng(0).normal(size=(8, 3, 6, 6)).astype("f4")}
    with pytest.raises(ArgumentError, match="No space left on device"):
        getattr(bn, what)(place, out=out, **more)
    assert not list((tmp_path / "there").iterdir())


def test_data_outside_the_models_folder_are_not_copied(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    place = external(tmp_path / "here", "m.bin")
    model = onnx.load(place, load_external_data=False)
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("training_mode", 1))
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../here/m.bin"
    place.write_bytes(model.SerializeToString())
    with pytest.raises(bn.BatchnormError):
        bn.freeze(place, tmp_path / "there" / "o.onnx")
    assert not list((tmp_path / "there").iterdir())


class Heads(nn.Module):
    """Two outputs, of which one is ten million times the other."""

    def __init__(self):
        super().__init__()
        self.c, self.b, self.large = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return self.b(self.c(x)), 1e7 * self.large(x)


def test_a_large_output_hides_nothing_in_a_small_one(monkeypatch):
    """A fold that is wrong by half in one head passed while the other was large: each output has its own size."""
    from batchnorm.analysis import folding

    monkeypatch.setattr(folding.Linear, "then", lambda self, affine: self)
    found = bn.fold(trained(Heads()))
    assert not found.holds
    assert found.result is None
    assert found.proof.max_rel > 0.1
    assert found.proof.max_rel == found.proof.share(found.proof.inputs[0])


class Masked(nn.Module):
    """Scores of which some are cut off for good, as attention does it."""

    def __init__(self):
        super().__init__()
        self.c, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return torch.cat([self.b(self.c(x)), torch.full((8, 1, 6, 6), -torch.inf)], 1)


def test_infinities_that_both_models_give_are_no_difference():
    found = bn.fold(trained(Masked()), data=np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype("f4"))
    assert found.holds
    assert 0 < found.proof.max_rel <= 1e-5


class Doubling(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


class Inherited(nn.BatchNorm2d):
    pass


class FrozenBatchNorm2d(nn.Module):
    """As torchvision and detectron2 have it."""

    def __init__(self, channels):
        super().__init__()
        self.eps = 1e-5
        for name, value in (("weight", 2.0), ("bias", 1.0), ("running_mean", 0.5), ("running_var", 3.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


def with_another_forward():
    norm = nn.BatchNorm2d(4)
    norm.forward = torch.relu
    return norm


def activated(activation):
    import batchnorm.torch

    return batchnorm.torch.BatchNormAct2d(4, activation=activation)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Doubling(4), "of a class of its own (Doubling)"),
        (with_another_forward, "its forward replaced"),
        (lambda: activated("silu"), "applies silu itself"),
        (lambda: activated(None), None),
        (lambda: Inherited(4), None),
        (lambda: FrozenBatchNorm2d(4), None),
    ],
    ids=["own forward", "replaced forward", "activation", "no activation", "inherited", "frozen"],
)
def test_one_odd_layer_does_not_keep_the_others_from_being_folded(make, why):
    """What a class does beside its statistics is refused by name, and not found out by the proof of the whole."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), make(), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    found = bn.fold(trained(model))
    assert found.holds
    assert [each.layer for each in found.folded] == (["4"] if why else ["1", "4"])
    assert why is None or why in found.refused[0].why


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.b = nn.Conv2d(3, 3, 3, padding=1), activated(None).__class__(3, activation=None)

    def forward(self, x):
        return self.b(self.c(x), x)


def test_a_residual_that_the_layer_adds_is_no_part_of_its_statistics():
    found = bn.fold(trained(Residual()))
    assert found.result is None
    assert "called with more than its input (x)" in found.refused[0].why


class Asked(nn.Module):
    """Asks its batch normalization for more than its output."""

    def __init__(self):
        super().__init__()
        self.c, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.b(self.c(x)) / self.b.running_var.mean()


def test_a_copy_that_cannot_run_is_a_refusal():
    found = bn.fold(trained(Asked()))
    assert found.result is None
    assert not found.holds
    assert "no attribute 'running_var'" in found.notes[0]
    assert "--skip" in found.notes[0]


def test_a_convolution_of_one_tap_can_pad_all_the_same(tmp_path):
    """auto_pad adds nothing to one tap; pads that are written down do, and what they add is 0 and not the shift."""
    node, weights = onnx.helper.make_node, {"w": np.ones((4, 3, 1, 1), "f4")} | vectors(3)
    for given, folds in ({"pads": [1, 1, 1, 1]}, False), ({"auto_pad": "SAME_UPPER"}, True):
        nodes = [node("BatchNormalization", ["x", *NORM], ["a"], name="bn"),
                 node("Conv", ["a", "w"], ["y"], name="c", **given)]  # fmt: skip
        found = bn.fold(saved(model_of(nodes, weights), tmp_path / "m.onnx"), tmp_path / "out.onnx")
        assert found.holds is folds
        assert folds or "the border would see the shift" in found.refused[0].why


class Rounding(nn.Module):
    def __init__(self, to):
        super().__init__()
        self.c, self.b, self.to_type = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), to

    def forward(self, x):
        return self.b(self.c(x).to(self.to_type).to(torch.float32))


@pytest.mark.parametrize("form", ["live", "pt2"])
def test_a_cast_to_whole_numbers_is_no_mere_name(form, tmp_path):
    for to, folds in (torch.float64, True), (torch.int32, False), (torch.float16, True):
        model, x = trained(Rounding(to)), torch.randn(8, 3, 8, 8)
        if form == "live":
            found = bn.fold(model)
        else:
            torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
            found = bn.fold(tmp_path / "m.pt2", tmp_path / "out.pt2", force=True)
        assert found.holds is folds
        assert folds or "another operation (to" in found.refused[0].why


class Overwriting(nn.Module):
    """What feeds the batch normalization is written over before the convolution that it feeds."""

    def __init__(self, how):
        super().__init__()
        self.b, self.c, self.d, self.how = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Dropout(), how
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = x * 1
        y = self.b(x)
        z = self.d(x)
        z = {"module": self.relu, "method": lambda z: z.clamp_(min=0), "argument": lambda z: torch.relu_(z),
             "other": torch.relu}[self.how](z)  # fmt: skip
        return self.c(y) + z


@pytest.mark.parametrize("form", ["live", "pt2"])
@pytest.mark.parametrize("how", ["module", "method", "argument", "other"])
def test_what_works_in_place_on_what_feeds_it_keeps_it_where_it_is(how, form, tmp_path):
    model, x = trained(Overwriting(how)), torch.randn(8, 3, 6, 6)
    if form == "live":
        found = bn.fold(model, data=x.numpy())
    else:
        torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
        found = bn.fold(tmp_path / "m.pt2", tmp_path / "out.pt2", data=x.numpy())
    assert found.holds is (how == "other")
    assert how == "other" or "works in place on what feeds it, and c" in found.refused[0].why
