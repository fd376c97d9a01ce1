"""Write plants of the graph rules from PyTorch, live modules among them: ``python tests/corpus/make_more_torch.py``.

What the Keras networks of `make_keras` plant in configs stands here in exported programs, in graphs of both ONNX
exporters, and in modules that `live.py` builds again.
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from safetensors.torch import save_file

from tests.corpus import make_torch
from tests.corpus import torch_wiring as networks
from tests.corpus.make_torch import fit, fit_aside, keep
from tests.corpus.manifest import FILES, Entry, write
from tests.corpus.torch_networks import build, data, norms

ENTRIES = make_torch.ENTRIES


def modern(net, arch, name, what, rule, layer, level=None, run=None):
    """The same as ONNX of the exporter that is now the default, with what it calls optimisations left off."""
    target = FILES / f"{name}.onnx"
    torch.onnx.export(
        net, (torch.from_numpy(data(arch)[:3]),), target, input_names=["x"], dynamo=True, optimize=False, verbose=False,
        external_data=False, dynamic_shapes=({0: torch.export.Dim("n", min=2)},),
    )  # fmt: skip
    own = make_torch.named(net, target, layer)
    ENTRIES.append(Entry(target.name, arch, "torch", what, rule, own, level, run or {}))


def live(net, kind, name, what, rule=None, layer=None, level=None, run=None):
    """A live module: the weights lie in a file, `live.py` builds the rest."""
    save_file(net.state_dict(), FILES / f"{name}.safetensors")
    how = {"live": [kind, {}], "weights": f"{name}.safetensors"} | (run or {})
    ENTRIES.append(Entry(f"live:{name}", kind, "torch", what, rule, layer, level, how))


def everywhere(net, arch, name, what, rule, layer, level=None):
    """In an exported program and in ONNX of both exporters."""
    for ending in (".pt2", ".onnx"):
        keep(net, arch, f"{rule}_{name}", what, rule, layer, level, ending=ending)
    modern(net, arch, f"{rule}_{name}_modern", what, rule, layer, level)


def graphs():
    over_time = fit(networks.over_time(), "conv1d")
    everywhere(over_time, "conv1d", "t_time", "normalises over time behind a convolution", "BN203", 0, "error")
    for kind in ("double", "doubled_mlp"):
        arch = "vgg" if kind == "double" else "mlp"
        everywhere(fit(getattr(networks, kind)(), arch), arch, f"t_{kind}", "two in a row", "BN304", 1, "note")
    for kind, arch in (("twins", "vgg"), ("twin_mlp", "mlp")):
        net = fit(getattr(networks, kind)(), arch, rate=0.05)
        keep(net, arch, f"BN303_t_{kind}", "one layer on two inputs", "BN303", 0, ending=".pt2")
        keep(net, arch, f"BN303_t_{kind}", "the same in ONNX: two nodes", "BN303", None, ending=".onnx")
        live(net, kind, f"BN303_t_{kind}_live", "the same live", "BN303", "shared")
    net = fit(networks.branches(), "conv1d")
    keep(net, "conv1d", "ok_t_branches", "two layers on one input", ending=".onnx")
    keep(fit(networks.mixer(), "conv1d"), "conv1d", "ok_t_mixer", "convolutions over time and over channels in turn",
         ending=".pt2")  # fmt: skip
    live(net, "branches", "ok_t_branches_live", "the same live")


def unused():
    for kind, arch in (("vgg", "vgg"), ("mlp", "mlp")):
        net = fit(networks.with_spare(kind), arch)
        fit_aside(net, arch)
        live(
            net, f"spare_{kind}", f"BN305_t_{kind}_live", "a layer that forward never calls", "BN305", "aside.1", "note"
        )


def frozen():
    for kind in ("mlp", "vgg"):
        net = fit(build(kind), kind)
        first = next(iter(norms(net).values()))
        first.reset_running_stats()
        name = next(iter(norms(net)))
        live(net, f"frozen_{kind}", f"BN208_t_{kind}_live", "frozen before it saw data", "BN208", name, "warning")
        net = fit(build(kind), kind)
        live(net, f"frozen_{kind}", f"ok_t_frozen_{kind}_live", "one layer frozen after training")


def with_data():
    """A form made for inference has no batch size; a live module has."""
    for kind in ("mlp", "conv1d"):
        live(fit(build(kind), kind), kind, f"BN405_t_{kind}_live", "batches of 2", "BN405", None,
             run={"data": f"torch_{kind}", "batch": 2})  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(3)
    FILES.mkdir(exist_ok=True)
    ENTRIES.clear()
    graphs()
    unused()
    frozen()
    with_data()
    write("more_torch", ENTRIES)
    print(len(ENTRIES), "entries")
