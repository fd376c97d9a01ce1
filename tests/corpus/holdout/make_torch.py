"""Write the PyTorch, ONNX and safetensors files of the second part: ``python tests/corpus/holdout/make_torch.py``."""

import copy
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import numpy as np
import torch
from torch import nn

from tests.corpus.holdout.torch_faults import by_hand, configured, fed, numbers, ranks
from tests.corpus.holdout.torch_files import ENTRIES, FILES, changed, keep, setting
from tests.corpus.holdout.torch_networks import DATA, KNOWN, build, fit, made, norms
from tests.corpus.manifest import write


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
