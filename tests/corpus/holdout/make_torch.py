"""Write the PyTorch, ONNX and safetensors files of the second part: ``python tests/corpus/holdout/make_torch.py``."""

import copy
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from tests.corpus.holdout.torch_networks import DATA, KNOWN, Aside, build, fit, made, norms
from tests.corpus.manifest import Entry, files, write

FILES = files("holdout")
ENTRIES = []
RAW = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False, "dynamo": False}


def keep(net, arch, name, what, rules=(), layer=None, least="note", *, ending, run=None, data=None, beyond=None,
         dynamo=False, optimize=False, **export):  # fmt: skip
    """Save a network by its framework's own way; ``layer`` is a module's name."""
    target = FILES / f"{name}{ending}"
    example = torch.from_numpy(KNOWN[data or DATA[arch]][:3])
    example = example.to(next(net.parameters()).dtype)
    if ending in (".pt", ".pth", ".ckpt"):
        torch.save(export.pop("wrap", lambda state: state)(net.state_dict()), target)
    elif ending == ".safetensors":
        save_file(net.state_dict(), target)
    elif ending == ".pt2":
        program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
        torch.export.save(program, target)
    elif dynamo:
        torch.onnx.export(net, (example,), target, input_names=["x"], dynamo=True, external_data=False, verbose=False,
                          optimize=optimize,
                          dynamic_shapes=({0: torch.export.Dim("n", min=2)},), **export)  # fmt: skip
    else:
        free = {"dynamic_axes": {"x": {0: "n"}}} if export.pop("free", True) else {}
        torch.onnx.export(net, (example,), target, input_names=["x"], **RAW | free | export)
    note(target.name, arch, what, rules, found(net, target, layer), least, run, beyond)


def note(file, arch, what, rules, layer, least, run=None, beyond=None, framework="torch"):
    first, *also = rules or [None]
    ENTRIES.append(
        Entry(file, arch, framework, what, first, layer, None, run or {}, also, least if first else "note", beyond)
    )


def found(net, target, layer):
    """The name that the file has for a module."""
    import batchnorm as bn

    if layer is None:
        return None
    names = [record.name for record in bn.load(target).layers]
    fitting = [name for name in names if name == layer or f"/{layer}/" in name.replace(".", "/") + "/"]
    if fitting:
        return layer if layer in fitting else fitting[0]
    own = list(norms(net))
    return names[own.index(layer)] if len(names) == len(own) else None


def changed(net, layer, **arrays):
    other = copy.deepcopy(net)
    with torch.no_grad():
        for name, value in arrays.items():
            held = getattr(norms(other)[layer], name)
            held.copy_(value(held.clone()) if callable(value) else torch.as_tensor(value).expand_as(held))
    return other


def setting(net, layer, **settings):
    other = copy.deepcopy(net)
    for name, value in settings.items():
        setattr(norms(other)[layer], name, value)
    return other


def sound():
    nets = {arch: made(arch) for arch in ("efficient", "unet", "recurrent", "mlp", "siamese")}
    for arch, net in nets.items():
        if arch == "siamese":
            continue  # two unlike inputs share its statistics: no sound network, as the data show
        run = {"data": DATA[arch]}
        keep(net, arch, f"ok_t_{arch}", "exported program", ending=".pt2", run=run)
        keep(net, arch, f"ok_t_{arch}", "ONNX of the older exporter", ending=".onnx", run=run)
        keep(net, arch, f"ok_t_{arch}_dynamo", "ONNX of the newer exporter", ending=".onnx", run=run, dynamo=True)
    keep(nets["unet"], "unet", "ok_t_folded_dynamo", "ONNX, folded by the newer exporter", ending=".onnx", dynamo=True,
         optimize=True)  # fmt: skip
    keep(nets["unet"], "unet", "ok_t_folded", "ONNX, folded by the exporter", ending=".onnx", do_constant_folding=True,
         training=torch.onnx.TrainingMode.EVAL)  # fmt: skip
    unet, efficient = nets["unet"], nets["efficient"]
    keep(unet, "unet", "ok_t_checkpoint", "state dict under a key, beside an optimizer", ending=".pth",
         wrap=lambda s: {"epoch": 3, "model": s, "optimizer": {"state": {0: {"step": torch.tensor(9.0)}}}})  # fmt: skip
    keep(unet, "unet", "ok_t_lightning", "a trainer's checkpoint", ending=".ckpt",
         wrap=lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()}, "global_step": 120})  # fmt: skip
    keep(unet, "unet", "ok_t_compiled", "names under _orig_mod.", ending=".pt",
         wrap=lambda s: {f"_orig_mod.{k}": v for k, v in s.items()})  # fmt: skip
    keep(unet, "unet", "ok_t_frozen", "frozen, no counters", ending=".pt",
         wrap=lambda s: {k: v for k, v in s.items() if "num_batches" not in k})  # fmt: skip
    keep(efficient.half(), "efficient", "ok_t_half", "ONNX in float16", ending=".onnx")
    keep(efficient.bfloat16(), "efficient", "ok_t_bfloat16", "state dict in bfloat16", ending=".pt")
    efficient.float()
    more_sound(nets)
    return nets


def more_sound(nets):
    averaged = torch.optim.swa_utils.AveragedModel(nets["mlp"])
    fit(nets["mlp"], "wine", steps=10)
    averaged.update_parameters(nets["mlp"])
    wine = torch.from_numpy(KNOWN["wine"])
    torch.optim.swa_utils.update_bn(wine[torch.randperm(len(wine))].split(16), averaged)
    keep(averaged.module.eval(), "mlp", "ok_t_swa", "averaged weights, statistics of 12 batches by update_bn",
         ending=".pt2", run={"data": "wine"})  # fmt: skip
    keep(averaged.eval(), "mlp", "ok_t_swa", "the same as a state dict", ending=".pt")
    torch.optim.swa_utils.update_bn(wine[:160].split(16), averaged)
    keep(averaged.module.eval(), "mlp", "f_t_sorted", "update_bn over batches of one class each", ["BN401"], "1",
         "warning", ending=".pt2", run={"data": "wine"})  # fmt: skip
    keep(made("unet", norm={"momentum": None}), "unet", "ok_t_cumulative", "momentum=None", ending=".pt2")
    keep(made("efficient", norm={"eps": 1e-3, "momentum": 0.03}, train={"steps": 400}), "efficient", "ok_t_yolo",
         "epsilon 1e-3, momentum .03", ending=".onnx", run={"data": "shapes_chw"}, dynamo=True)  # fmt: skip
    keep(made("mlp", first=True, data="wine_raw"), "mlp", "ok_t_raw", "raw columns into the first layer", ending=".pt2",
         data="wine_raw", run={"data": "wine_raw"})  # fmt: skip
    projector = nn.Sequential(*build("mlp")[:-1], nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8, affine=False))
    keep(fit(projector, "wine"), "mlp", "ok_t_projector", "a last normalization without gamma and beta", ending=".onnx",
         run={"data": "wine"})  # fmt: skip
    keep(build("recurrent").eval(), "recurrent", "ok_t_new", "never trained", ending=".pt2")
    keep(build("recurrent").eval(), "recurrent", "ok_t_new", "never trained", ending=".pt")
    tuned = copy.deepcopy(nets["unet"])
    for layer in norms(tuned).values():
        layer.eval().requires_grad_(False)
    keep(
        tuned, "unet", "ok_t_frozen_all", "all layers frozen after training", ending=".pt2", run={"data": "shapes_chw"}
    )
    zero = build("efficient")
    for block in (zero[1], zero[2]):
        nn.init.zeros_(block.project[1].weight)
    keep(fit(zero, "shapes_chw", steps=250), "efficient", "ok_t_zero_gamma", "gamma began at 0 and learned",
         ending=".onnx", run={"data": "shapes_chw"}, dynamo=True)  # fmt: skip
    clock = setting(made("mlp", norm={"momentum": 0.01}, train={"steps": 700}), "1", momentum=0.01)
    keep(clock, "mlp", "ok_t_slow", "momentum .01, 700 steps", ending=".pt2", run={"data": "wine"})
    thin = changed(nets["unet"], "deep.1", weight=lambda g: g * (torch.arange(16) > 3))
    keep(thin, "unet", "ok_t_thin", "4 of 16 channels pruned", ending=".onnx")
    loud = KNOWN["waves_cf"] * np.float32(12) - np.float32(40)
    keep(made("recurrent", train={"x": loud}), "recurrent", "ok_t_decibel", "levels around -40 dB", ending=".pt2")


def configured(nets):
    keep(setting(nets["unet"], "up_bn", momentum=0.99), "unet", "f_t_momentum", "momentum .99 in one layer", ["BN202"],
         "up_bn", ending=".pt2")  # fmt: skip
    keep(setting(nets["efficient"], "1.dw.1", eps=0.5), "efficient", "f_t_epsilon", "epsilon .5 in one layer",
         ["BN206"], "1.dw.1", "warning", ending=".onnx", dynamo=True)  # fmt: skip
    gone = changed(setting(nets["mlp"], "1", eps=0.0), "1", running_var=lambda v: v * 1e-7)
    keep(gone, "mlp", "f_t_no_epsilon", "epsilon 0 and tiny variances", ["BN206"], "1", "warning", ending=".pt2")
    for ending, how in ((".pt2", {}), (".onnx", {}), (".onnx", {"dynamo": True})):
        over = made("recurrent", over="time")
        keep(over, "recurrent", "f_t_axis" + "_dynamo" * len(how), "normalises over time behind a convolution",
             ["BN203"], "conv_bn", "error", ending=ending, **how)  # fmt: skip
    for arch, ending, how in (
        ("unet", ".pt2", {}),
        ("efficient", ".onnx", {}),
        ("recurrent", ".onnx", {"dynamo": True}),
    ):
        training = {} if how else {"training": torch.onnx.TrainingMode.TRAINING}
        extra = training if ending == ".onnx" else {}
        extra = extra | (
            {"beyond": "the newer exporter writes nodes of inference mode: the file is sound"} if how else {}
        )
        keep(copy.deepcopy(nets[arch]).train(), arch, f"f_t_train_{arch}", "exported in training mode", ["BN204",
             "BN205"], None, "warning", ending=ending, **how, **extra)  # fmt: skip
    for ending, how in ((".pt2", {}), (".onnx", {"dynamo": True}), (".onnx", {"free": False})):
        bare = made("unet", norm={"track_running_stats": False})
        keep(bare, "unet", "f_t_untracked" + "_dynamo" * ("dynamo" in how), "no running statistics", ["BN205", "BN204"],
             None, "warning", ending=ending, **how)  # fmt: skip
    for ending, how in ((".pt2", {}), (".onnx", {}), (".onnx", {"dynamo": True})):
        tag = "_dynamo" * len(how)
        keep(nets["siamese"], "siamese", f"f_t_shared{tag}", "one normalization behind two convolutions", ["BN303"],
             None, ending=ending, **how)  # fmt: skip
        if ending == ".pt2":
            keep(nets["siamese"], "siamese", "f_t_shared_data", "the same, with data", ["BN303"], "shared", "warning",
                 ending=ending, run={"data": "shapes_chw"})  # fmt: skip
        keep(made("recurrent", twice=True), "recurrent", f"f_t_twice{tag}", "normalised twice", ["BN304"], "again",
             ending=ending, **how)  # fmt: skip
        keep(
            made("unet", bias=True),
            "unet",
            f"f_t_bias{tag}",
            "biases before",
            ["BN301"],
            "deep.1",
            ending=ending,
            **how,
        )
    keep(
        made("mlp", bias=True),
        "mlp",
        "f_t_bias_mlp",
        "biases before, dense",
        ["BN301"],
        "4",
        ending=".onnx",
        dynamo=True,
    )
    keep(made("recurrent", dropout=0.5), "recurrent", "f_t_dropout", "dropout before the weights", ["BN302"], "fc_bn",
         ending=".pt2")  # fmt: skip
    both = fit(Aside(), "shapes_chw")
    for tag, dynamo in (("", False), ("_dynamo", True)):
        keep(both, "aside", f"f_t_unused{tag}", "an output taken off", ["BN305"], "aux.1", ending=".onnx",
             data="shapes_chw", dynamo=dynamo)  # fmt: skip
        target = FILES / f"f_t_unused{tag}.onnx"
        model = onnx.load(target)
        del model.graph.output[1]
        onnx.save(model, target)


def numbers(nets):
    hurt = copy.deepcopy(nets["efficient"])
    bad = KNOWN["shapes_chw"].copy()
    bad[7, 1, 3, 3] = np.nan
    hurt.train()(torch.from_numpy(bad[:16]))
    keep(
        hurt.eval(),
        "efficient",
        "f_t_nan_batch",
        "one NaN in one batch",
        ["BN101"],
        "0.1",
        "error",
        ending=".safetensors",
    )
    keep(
        hurt.eval(),
        "efficient",
        "f_t_nan_batch",
        "the same in ONNX",
        ["BN101"],
        None,
        "error",
        ending=".onnx",
        dynamo=True,
    )
    start, end = made("unet", train={"steps": 25}), nets["unet"]
    merged = copy.deepcopy(end)
    merged.load_state_dict({k: (b + 2 * (b - start.state_dict()[k])).to(b.dtype) for k, b in end.state_dict().items()})
    worst = min(norms(merged), key=lambda name: float(norms(merged)[name].running_var.min()))
    assert float(norms(merged)[worst].running_var.min()) < 0
    for ending in (".pt", ".pt2", ".onnx"):
        keep(
            merged,
            "unet",
            "f_t_extrapolated",
            "weights and buffers extrapolated",
            ["BN102"],
            worst,
            "error",
            ending=ending,
        )
    part = build("unet")
    part.load_state_dict(
        {k: v for k, v in nets["unet"].state_dict().items() if not k.startswith("out.1")}, strict=False
    )
    for ending in (".pt", ".safetensors", ".onnx"):
        keep(part.eval(), "unet", "f_t_renamed", "loaded with strict=False under another name", ["BN106"], "out.1",
             "error", ending=ending)  # fmt: skip
    keep(made("efficient", train={"scale": 1 / 255}), "efficient", "f_t_twice_scaled", "images divided by 255 twice",
         ["BN103"], "0.1", "warning", ending=".pt2")  # fmt: skip
    stamps = KNOWN["wine"].copy()
    stamps[:, 2] = stamps[:, 2] * 3600 + 1.7e9
    keep(made("mlp", first=True, train={"x": stamps}), "mlp", "f_t_timestamps", "a time in seconds among the columns",
         ["BN109"], "0", "warning", ending=".onnx", dynamo=True)  # fmt: skip
    for arch, layer, ending in (("efficient", "1.expand.1", ".onnx"), ("recurrent", "fc_bn", ".pt2")):
        keep(changed(nets[arch], layer, weight=lambda g: g * (torch.arange(len(g)) % 4 == 0)), arch, f"f_t_slim_{arch}",
             "three gammas of four pruned", ["BN104"], layer, "warning", ending=ending)  # fmt: skip
    dead = changed(nets["unet"], "down.1", weight=0.0)
    keep(dead, "unet", "f_t_dead", "a layer of zero gammas", ["BN104"], "down.1", "warning", ending=".safetensors")
    loud = changed(nets["unet"], "deep.1", weight=lambda g: torch.where(torch.arange(16) == 5, g * 1e4, g))
    keep(
        loud,
        "unet",
        "f_t_loud",
        "one gamma 10000 times too large",
        ["BN105"],
        "deep.1",
        "warning",
        ending=".onnx",
        dynamo=True,
    )
    shrunk = changed(nets["mlp"], "1", running_var=lambda v: torch.where(torch.arange(16) == 3, v * 1e-6, v))
    keep(shrunk, "mlp", "f_t_shrunk", "one variance a millionth", ["BN105", "BN103", "BN110"], "1", ending=".pt2")
    hot = build("mlp", first=False)
    hot = fit(hot, "wine_raw", steps=60, scale=40.0, rate=1e-3).half()
    keep(
        hot,
        "mlp",
        "f_t_overflow",
        "variances over 65504 saved in float16",
        ["BN108", "BN101"],
        "1",
        "error",
        ending=".pt",
    )
    keep(hot.float(), "mlp", "f_t_overflow", "the same, cast back", ["BN101", "BN108"], "1", "error", ending=".pt2")
    stalled = made("unet", norm={"momentum": 0.001}, train={"steps": 60}).bfloat16()
    keep(stalled, "unet", "f_t_stalled", "bfloat16 buffers that an update of .001 cannot move", ["BN108", "BN107"],
         "deep.1", ending=".pt2")  # fmt: skip
    swapped = copy.deepcopy(nets["efficient"])
    layer = norms(swapped)["2.project.1"]
    layer.running_mean, layer.running_var = layer.running_var.clone(), layer.running_mean.clone()
    for ending, how in ((".onnx", {"dynamo": True}), (".safetensors", {}), (".pt2", {})):
        keep(swapped, "efficient", "f_t_exchanged", "mean and variance exchanged", ["BN207"], "2.project.1", "error",
             ending=ending, **how)  # fmt: skip
    short = made("efficient", norm={"momentum": 0.01}, train={"steps": 40})
    keep(short, "efficient", "f_t_40_steps", "40 steps at .01", ["BN107"], "1.dw.1", "warning", ending=".pt2")
    keep(short, "efficient", "f_t_40_steps", "the same as a state dict", ["BN107"], "1.dw.1", "warning", ending=".pt",
         beyond="the file holds no momentum")  # fmt: skip
    keep(made("recurrent", train={"steps": 8}), "recurrent", "f_t_8_steps", "8 steps at .1", ["BN107"], "conv_bn",
         "warning", ending=".pt2")  # fmt: skip


def ranks(nets):
    for arch, ending, how in (("efficient", ".safetensors", {}), ("recurrent", ".ckpt", {
            "wrap": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}}), ("unet", ".onnx",
            {"dynamo": True})):  # fmt: skip
        pair = [copy.deepcopy(nets[arch]) for _ in range(2)]
        for rank, net in enumerate(pair):
            net.train()
            with torch.no_grad():
                for part in np.split(KNOWN[DATA[arch]][rank * 180 : rank * 180 + 180], 6):
                    net(torch.from_numpy(part))
            net.eval()
        keep(pair[1], arch, f"rank1_t_{arch}", "the other rank, sound by itself", ending=ending, **how)
        keep(pair[0], arch, f"f_t_rank0_{arch}", "one of two ranks", ["BN209"], None, "error", ending=ending,
             run={"others": [f"rank1_t_{arch}{ending}"]}, **how)  # fmt: skip


def by_hand(nets):
    """Graphs that converters of other frameworks write."""
    rng = np.random.default_rng(0)
    arrays = {
        "scale": rng.uniform(0.5, 1.5, 4), "B": rng.normal(size=4), "mean": rng.normal(size=4),
        "var": rng.uniform(0.5, 2, 4),
        "W": rng.normal(size=(4, 3, 3, 3)) * 0.3,
    }  # fmt: skip
    held = [numpy_helper.from_array(value.astype("float32"), name) for name, value in arrays.items()]

    def graph(inputs, outputs=("y",), version=15, **attributes):
        nodes = [
            helper.make_node("Conv", ["x", "W"], ["c"], name="conv"),
            helper.make_node("BatchNormalization", ["c", *inputs], [*outputs], name="norm", **attributes),
        ]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 10, 10])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 8, 8])
        made = helper.make_graph(nodes, "g", [x], [y], held)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
        return model

    good = ["scale", "B", "mean", "var"]
    cases = {
        "ok_o_v15": (graph(good), [], "note"),
        "ok_o_v6": (graph(good, version=6, is_test=1), [], "note"),
        "f_o_v6": (graph(good, version=6), ["BN204"], "error"),
        "f_o_v8": (graph(good, ("y", "m", "v", "sm", "sv"), version=8), ["BN204"], "error"),
        "f_o_v15": (graph(good, ("y", "m", "v"), training_mode=1), ["BN204"], "error"),
        "f_o_momentum": (graph(good, momentum=0.1), ["BN202"], "note"),
        "f_o_epsilon": (graph(good, epsilon=0.3), ["BN206"], "warning"),
    }
    for name, (model, rules, least) in cases.items():
        onnx.save(model, FILES / f"{name}.onnx")
        note(
            f"{name}.onnx",
            "converted",
            "as a converter writes it",
            rules,
            "norm" if rules else None,
            least,
            framework="onnx",
        )


def fed(nets):
    keep(nets["efficient"], "efficient", "f_t_fed_255", "fed 0..255", ["BN403"], "0.1", "error", ending=".onnx",
         run={"data": "shapes_chw", "change": "times255"})  # fmt: skip
    keep(nets["unet"], "unet", "f_t_fed_bgr", "colours in the other order", ["BN403"], "down.1", "error", ending=".pt2",
         run={"data": "shapes_chw", "change": "reversed"})  # fmt: skip
    net = made("unet", norm={"momentum": 0.02}, train={"steps": 40})
    for layer in norms(net).values():
        layer.num_batches_tracked.zero_()
    keep(net, "unet", "f_t_lost", "40 steps at .02, the counter lost", ["BN401"], "down.1", "warning", ending=".onnx",
         run={"data": "shapes_chw"}, dynamo=True)  # fmt: skip
    other = changed(nets["recurrent"], "conv_bn", running_var=torch.sqrt)
    keep(other, "recurrent", "f_t_deviation", "the standard deviation where the variance goes", ["BN401"], "conv_bn",
         "note", ending=".pt2", run={"data": "waves_cf"})  # fmt: skip
    hit = copy.deepcopy(nets["mlp"]).train()
    spike = KNOWN["wine"][:48].copy()
    spike[0] *= 1e4
    hit(torch.from_numpy(spike))
    keep(hit.eval(), "mlp", "f_t_outlier", "one sample 10000 times too large in the last batch", ["BN401"], "1",
         "error", ending=".onnx", run={"data": "wine"})  # fmt: skip
    stale = copy.deepcopy(nets["efficient"])
    with torch.no_grad():
        for parameter in stale.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.6)
    keep(stale, "efficient", "f_t_stale", "weights averaged or rescaled after the statistics", ["BN401"], "0.1",
         "warning", ending=".pt2", run={"data": "shapes_chw"})  # fmt: skip
    keep(fit(build("recurrent"), "padded_cf"), "recurrent", "f_t_padded", "padding in the statistics", ["BN406",
         "BN401"], "conv_bn", "warning", ending=".onnx", run={"data": "padded_cf"})  # fmt: skip
    cut = changed(nets["mlp"], "4", bias=lambda b: torch.where(torch.arange(16) < 2, b - 60, b))
    keep(
        cut,
        "mlp",
        "f_t_cut_off",
        "two units always cut off",
        ["BN404"],
        "4",
        ending=".onnx",
        run={"data": "wine"},
        dynamo=True,
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    FILES.mkdir(exist_ok=True, parents=True)
    networks = sound()
    configured(networks)
    numbers(networks)
    ranks(networks)
    by_hand(networks)
    fed(networks)
    write("torch", ENTRIES, "holdout")
    print(len(ENTRIES), "entries")
