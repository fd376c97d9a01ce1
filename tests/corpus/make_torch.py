"""Write the PyTorch, ONNX and safetensors files of the corpus: ``python tests/corpus/make_torch.py``; a minute."""

import copy
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import onnx
import torch
from safetensors.torch import save_file
from torch import nn

from tests.corpus.manifest import FILES, Entry, write
from tests.corpus.torch_networks import build, data, fit, norms

ENTRIES = []
KEPT = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False, "dynamo": False}
ARCHS = ("resnet", "mobile", "vgg", "dense", "conv1d", "mlp")


def run_of(arch):
    return {"data": f"torch_{arch}" if arch in ("conv1d", "mlp") else "torch"}


def keep(net, arch, name, what, rule=None, layer=None, level=None, *, ending, run=None):
    """Save a network, and note what it is; ``layer`` counts from 0."""
    file = f"{name}{ending}"
    target = FILES / file
    x = torch.from_numpy(data(arch)[:2])
    if ending == ".pt":
        torch.save(net.state_dict(), target)
    elif ending == ".safetensors":
        save_file(net.state_dict(), target)
    elif ending == ".pt2":
        batch = torch.export.Dim("batch", min=2)
        torch.export.save(
            torch.export.export(net, (x.half() if half(net) else x,), dynamic_shapes=({0: batch},)), target
        )
    else:
        free = {} if rule == "BN205" else {"dynamic_axes": {"x": {0: "n"}}}  # such a layer wants to know its lengths
        torch.onnx.export(net, (x,), target, input_names=["x"], **free, **KEPT)
    ENTRIES.append(
        Entry(file, arch, "torch", what, rule, None if layer is None else named(net, target, layer), level, run or {})
    )


def half(net):
    return next(net.parameters()).dtype == torch.float16


def named(net, target, number):
    """The name that the file's own record has."""
    import batchnorm as bn

    names = [record.name for record in bn.load(target).layers]
    own = list(norms(net))[number]
    return own if own in names else names[number]


def spoiled(net, number, **arrays):
    other = copy.deepcopy(net)
    layer = list(norms(other).values())[number]
    with torch.no_grad():
        for name, value in arrays.items():
            held = getattr(layer, name)
            held.copy_(value(held.clone()) if callable(value) else torch.as_tensor(value).expand_as(held))
    return other


def at(channel, value):
    def change(old):
        old[channel] = value
        return old

    return change


def sound():
    bases = {arch: fit(build(arch), arch) for arch in ARCHS}
    for arch, net in bases.items():
        keep(net, arch, f"ok_{arch}", "exported program", ending=".pt2", run=run_of(arch) | {"labels": True})
        keep(net, arch, f"ok_{arch}", "ONNX, not folded", ending=".onnx", run=run_of(arch))
    keep(bases["resnet"], "resnet", "ok_resnet", "state dict", ending=".pt")
    keep(bases["vgg"], "vgg", "ok_vgg", "safetensors", ending=".safetensors")
    ported = spoiled(bases["resnet"], 0)
    for layer in norms(ported).values():
        layer.num_batches_tracked.zero_()
    keep(ported, "resnet", "ok_ported", "ported: counters 0, good statistics", ending=".pt2", run=run_of("resnet"))
    keep(ported, "resnet", "ok_ported", "the same as a state dict", ending=".pt")
    cumulative = fit(build("vgg", momentum=None), "vgg")
    keep(cumulative, "vgg", "ok_cumulative", "momentum=None averages over all batches", ending=".pt2")
    keep(cumulative, "vgg", "ok_cumulative", "the same in ONNX", ending=".onnx")
    keep(
        fit(build("mobile", eps=1e-3, momentum=0.01), "mobile", steps=700),
        "mobile",
        "ok_tf_like",
        "epsilon and momentum as in TensorFlow",
        ending=".pt2",
        run=run_of("mobile"),
    )
    keep(
        fit(build("mlp", affine=False), "mlp"),
        "mlp",
        "ok_not_affine",
        "neither gamma nor beta",
        ending=".pt2",
        run=run_of("mlp"),
    )
    keep(nn.DataParallel(bases["vgg"]), "vgg", "ok_parallel", "names under module.", ending=".pt")
    keep(copy.deepcopy(bases["mlp"]).half(), "mlp", "ok_half", "in float16", ending=".pt")
    keep(copy.deepcopy(bases["mlp"]).bfloat16(), "mlp", "ok_bfloat16", "in bfloat16", ending=".safetensors")
    with torch.no_grad():
        zero = build("resnet")
        for block in (zero[1], zero[2]):
            block.bn2.weight.zero_()
    keep(
        fit(zero, "resnet", steps=300),
        "resnet",
        "ok_zero_gamma",
        "zero-initialised gamma, then trained",
        ending=".pt2",
        run=run_of("resnet"),
    )
    tuned = copy.deepcopy(bases["vgg"])
    for layer in norms(tuned).values():
        layer.num_batches_tracked.fill_(0)
    keep(
        fit(tuned, "vgg", steps=5, rate=0.01),
        "vgg",
        "ok_tuned",
        "fine-tuned for 5 steps from a reset counter",
        ending=".pt2",
        run=run_of("vgg"),
    )
    return bases


def numbers(bases):
    def spoil(arch, number, rule, what, ending, level=None, **arrays):
        net = spoiled(bases[arch], number, **arrays)
        keep(net, arch, f"{rule}_t_{arch}", what, rule, number, level, ending=ending)

    spoil("vgg", 1, "BN101", "an infinite running mean", ".pt", running_mean=at(2, np.inf))
    spoil("mobile", 2, "BN101", "a NaN in gamma", ".onnx", weight=at(0, np.nan))
    spoil("resnet", 3, "BN102", "a variance a little below 0", ".pt2", running_var=at(0, -1e-6))
    spoil("mlp", 1, "BN102", "a variance of -1", ".safetensors", running_var=at(7, -1.0))
    spoil("resnet", 2, "BN104", "gamma all zero: never left its initialisation", ".onnx", "warning", weight=0.0)
    spoil("dense", 1, "BN104", "7 of 12 channels pruned", ".pt", "warning", weight=lambda g: g * (torch.arange(12) > 6))
    spoil("mobile", 1, "BN105", "one gamma of 400", ".pt2", weight=at(3, 400.0))
    spoil("vgg", 2, "BN105", "one gamma of -2000", ".onnx", weight=at(3, -2000.0))
    spoil("vgg", 2, "BN106", "statistics reset in one layer", ".pt", running_mean=0.0, running_var=1.0)
    spoil("dense", 2, "BN106", "statistics reset in one layer", ".onnx", running_mean=0.0, running_var=1.0)
    spoil("mlp", 0, "BN110", "a variance of 0", ".pt", running_var=at(1, 0.0))
    spoil("mobile", 0, "BN110", "a tiny variance", ".onnx", running_var=at(1, 1e-17))
    for arch, number, ending in (("vgg", 1, ".onnx"), ("resnet", 1, ".pt"), ("conv1d", 1, ".pt2")):
        layer = list(norms(bases[arch]).values())[number]
        net = spoiled(
            bases[arch], number, running_mean=layer.running_var.numpy(), running_var=layer.running_mean.numpy()
        )
        keep(net, arch, f"BN207_t_{arch}", "mean and variance exchanged", "BN207", number, ending=ending)
    for arch, number, ending in (("mlp", 1, ".pt"), ("vgg", 1, ".safetensors"), ("conv1d", 0, ".pt2")):
        net = spoiled(bases[arch], number, running_var=lambda v: v * 1e-9).half()
        keep(
            net, arch, f"BN108_t_{arch}", "variances that float16 rounds to 0", "BN108", number, "error", ending=ending
        )


def settings(bases):
    for arch, momentum, ending in (("resnet", 0.9, ".pt2"), ("vgg", 0.99, ".onnx"), ("mlp", 0.99, ".pt2")):
        net = copy.deepcopy(bases[arch])
        list(norms(net).values())[1].momentum = momentum
        level = "note" if ending in (".onnx", ".pt2") else "warning"
        keep(net, arch, f"BN202_t_{arch}", f"momentum {momentum} in one layer", "BN202", 1, level, ending=ending)
    for arch, epsilon, ending in (("mobile", 0.3, ".onnx"), ("conv1d", 0.2, ".pt2")):
        net = copy.deepcopy(bases[arch])
        list(norms(net).values())[1].eps = epsilon
        keep(net, arch, f"BN206_t_{arch}", f"epsilon {epsilon} in one layer", "BN206", 1, "warning", ending=ending)
    keep(fit(build("vgg", bias=True), "vgg"), "vgg", "BN301_t_vgg", "biases before", "BN301", 1, ending=".pt2")
    keep(fit(build("mlp", bias=True), "mlp"), "mlp", "BN301_t_mlp", "biases before", "BN301", 1, ending=".onnx")
    dropped = build("mlp")
    dropped = nn.Sequential(dropped[0], nn.Dropout(0.5), dropped[1], dropped[2])
    keep(fit(dropped, "mlp"), "mlp", "BN302_t_mlp", "dropout before the weights", "BN302", 1, ending=".pt2")
    for arch, ending in (("vgg", ".pt"), ("mobile", ".safetensors"), ("mlp", ".weights.h5")):
        if ending != ".weights.h5":
            keep(bases[arch], arch, f"BN201_t_{arch}", "no epsilon in the file", "BN201", 0, "note", ending=ending)


def histories():
    for arch, steps, momentum in (("resnet", 20, 0.1), ("vgg", 60, 0.01), ("mlp", 150, 0.01)):
        net = fit(build(arch, momentum=momentum), arch, steps=steps, rate=0.05)
        keep(net, arch, f"BN107_t_{arch}", f"{steps} steps at {momentum}", "BN107", 1, ending=".pt2")
    for arch, factor, ending in (("vgg", 1e-3, ".pt2"), ("mlp", 1e-3, ".onnx"), ("conv1d", 1e-3, ".onnx")):
        net = fit(build(arch, eps=1e-4), arch, change=lambda x, factor=factor: x * factor)
        keep(net, arch, f"BN103_t_{arch}", "input scaled twice", "BN103", 0, "warning", ending=ending)
    inner = build("mlp")
    net = nn.Sequential(nn.BatchNorm1d(64), *inner)
    fit(net, "mlp", change=lambda x: x + np.float32(5000))
    for ending in (".pt2", ".onnx"):
        keep(net, "mlp", "BN109_t_mlp", "an input far from 0", "BN109", 0, ending=ending)


def ranks(bases):
    """The same weights, and the statistics that two ranks made of their own halves of the data."""
    for arch, ending in (("vgg", ".pt"), ("mlp", ".pt2"), ("resnet", ".onnx")):
        nets = [copy.deepcopy(bases[arch]) for _ in range(2)]
        for rank, net in enumerate(nets):
            net.train()
            with torch.no_grad():
                for part in np.split(data(arch)[rank * 640 : rank * 640 + 640], 10):
                    net(torch.from_numpy(part))
            net.eval()
        keep(nets[1], arch, f"rank1_{arch}", "the other rank, sound by itself", ending=ending)
        keep(
            nets[0],
            arch,
            f"BN209_t_{arch}",
            "one of two ranks",
            "BN209",
            None,
            ending=ending,
            run={"others": [f"rank1_{arch}{ending}"]},
        )


def exports(bases):
    for arch, ending in (("mlp", ".pt2"), ("vgg", ".onnx"), ("conv1d", ".onnx")):
        net = copy.deepcopy(bases[arch]).train()
        keep(net, arch, f"BN204_t_{arch}", "exported in training mode", "BN204", 1, "error", ending=ending)
    for arch, ending in (("vgg", ".onnx"), ("mlp", ".pt2"), ("conv1d", ".onnx")):
        net = fit(build(arch, track_running_stats=False), arch)
        keep(net, arch, f"BN205_t_{arch}", "no running statistics", "BN205", 0, "warning", ending=ending)
    for arch in ("vgg", "conv1d", "mlp"):
        keep(
            build(arch).eval(), arch, f"BN307_t_{arch}", "a fresh network in training mode", "BN307", 0, ending=".onnx"
        )
        in_training_mode(FILES / f"BN307_t_{arch}.onnx")
        keep(
            bases[arch],
            arch,
            f"BN306_t_{arch}",
            "not folded",
            "BN306",
            0,
            "note",
            ending=".onnx" if arch != "mlp" else ".pt2",
        )
    for arch in ("resnet", "vgg", "mlp"):
        unused(bases[arch], arch)


def in_training_mode(path):
    """Tracing in training mode would move the statistics, so the attribute is set afterwards."""
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            kept = [each for each in node.attribute if each.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("training_mode", 1)])
    onnx.save(model, path)


def unused(net, arch):
    """A second head whose output is taken off the graph's outputs."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.aside = net, nn.Sequential(nn.Flatten(), nn.BatchNorm1d(int(np.prod(data(arch).shape[1:]))))

        def forward(self, x):
            return self.net(x), self.aside(x)

    both = fit_aside(Two(), arch)
    target = FILES / f"BN305_t_{arch}.onnx"
    torch.onnx.export(both, (torch.from_numpy(data(arch)[:2]),), target, input_names=["x"], output_names=["y", "z"],
                      dynamic_axes={"x": {0: "n"}}, **KEPT)  # fmt: skip
    model = onnx.load(target)
    del model.graph.output[1]
    onnx.save(model, target)
    layer = next(n.name for n in model.graph.node if n.op_type == "BatchNormalization" and "aside" in n.name)
    ENTRIES.append(Entry(target.name, arch, "torch", "an output taken off", "BN305", layer, "note"))


def fit_aside(both, arch):
    both.aside.train()
    with torch.no_grad():
        for part in np.split(data(arch)[:1280], 20):
            both.aside(torch.from_numpy(part))
    return both.eval()


def with_data(bases):
    for arch, factor in (("vgg", 255), ("mlp", 255), ("conv1d", 127.5)):
        change = {255: "times255", 127.5: "times127"}[factor]
        keep(
            bases[arch],
            arch,
            f"BN403_t_{arch}",
            f"fed {change}",
            "BN403",
            0,
            ending=".onnx",
            run=run_of(arch) | {"change": change},
        )
    for arch, ending in (("resnet", ".onnx"), ("conv1d", ".pt2"), ("dense", ".onnx")):
        net = fit(build(arch, momentum=0.01), arch, steps=50)
        for layer in norms(net).values():
            layer.num_batches_tracked.zero_()
        keep(net, arch, f"BN401_t_{arch}", "50 steps at .01, counter lost", "BN401", 0, ending=ending, run=run_of(arch))
    dead = spoiled(bases["conv1d"], 0, bias=at(5, -50.0))
    keep(
        dead,
        "conv1d",
        "BN404_t_conv1d",
        "a channel that the activation always cuts off",
        "BN404",
        0,
        ending=".onnx",
        run=run_of("conv1d"),
    )


def rgb():
    """Colours: digits in three channels of different brightness, fed in the other order."""
    rng = np.random.default_rng(0)
    images = data("vgg")[:400]
    colours = np.concatenate([images * 0.9, images * 0.2 + 0.6, images[:, :, ::-1] * 0.5], axis=1).astype("float32")
    np.save(FILES / "rgb.npy", (colours[:200] * 255).round().astype("uint8"))
    for name, change, size in (("order", "reversed", 3), ("scale", "times255", 3), ("mean", "mean", 5)):
        torch.manual_seed(size)
        net = nn.Sequential(
            nn.Conv2d(3, 8, size, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
        )
        x = colours - colours.mean((0, 2, 3), keepdims=True) if name == "mean" else colours
        net.train()
        with torch.no_grad():
            for _ in range(60):
                net(torch.from_numpy(x[rng.integers(0, 400, 64)]))
        net.eval()
        file = f"BN403_rgb_{name}.onnx"
        torch.onnx.export(
            net, (torch.from_numpy(colours[:2]),), FILES / file, input_names=["x"], dynamic_axes={"x": {0: "n"}}, **KEPT
        )
        own = next(n.name for n in onnx.load(FILES / file).graph.node if n.op_type == "BatchNormalization")
        ENTRIES.append(
            Entry(
                file,
                "vgg",
                "torch",
                f"colours fed with {change}",
                "BN403",
                own,
                "error",
                {"data": "rgb", "change": change if change != "mean" else "none"},
            )
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    FILES.mkdir(exist_ok=True)
    networks = sound()
    numbers(networks)
    settings(networks)
    histories()
    ranks(networks)
    exports(networks)
    with_data(networks)
    rgb()
    write("torch", ENTRIES)
    print(len(ENTRIES), "files")
