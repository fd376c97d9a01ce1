"""How the PyTorch networks of the second part are saved, and what is noted of them."""

import copy

import torch
from safetensors.torch import save_file

from tests.corpus.holdout.torch_networks import DATA, KNOWN, norms
from tests.corpus.manifest import Entry, files

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
