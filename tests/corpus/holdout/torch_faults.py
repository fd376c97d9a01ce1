"""The faults of the second part in PyTorch and ONNX."""

import copy

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.corpus.holdout.torch_files import FILES, changed, keep, note, setting
from tests.corpus.holdout.torch_networks import DATA, KNOWN, Aside, build, fit, made, norms


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
