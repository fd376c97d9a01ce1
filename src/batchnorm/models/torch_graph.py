"""A live module's graph, by PyTorch's symbolic tracing: ``forward`` runs once on stand-ins, and nothing is changed."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

from numpy.typing import NDArray

from batchnorm.core.graph import Graph, Kind, NoGraph, Operation
from batchnorm.engines.torch import unchanged
from batchnorm.engines.torch_state import array_of
from batchnorm.errors import require

from .pt2_operations import ARITHMETIC, KINDS
from .torch_edit import unfoldable

__all__ = ["graph_of", "is_norm"]

ACTIVATIONS = ("ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Sigmoid",
               "Tanh",
               "Hardswish", "Hardsigmoid", "Hardtanh", "Softplus", "Softsign", "Softmax", "LogSoftmax", "GLU",
               "Threshold", "Tanhshrink", "Hardshrink", "Softshrink", "LogSigmoid")  # fmt: skip
RESHAPES = ("Flatten", "Unflatten", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle")
DROPOUTS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
STOCHASTIC_DEPTHS = ("StochasticDepth", "DropPath")
PADS = ("ReflectionPad", "ReplicationPad", "ZeroPad", "ConstantPad", "CircularPad")
IN_PLACE = ("iadd", "isub", "imul", "itruediv", "setitem")
SHOWN = 200
WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
"""Class -> where the module is that it runs."""


def graph_of(model: Any, names: dict[int, str]) -> Graph:
    """The graph of a live module.

    Parameters
    ----------
    model : torch.nn.Module
        Traced in inference mode; its flags are put back.
    names : dict
        ``id`` of each batch normalization -> the name of its record.

    Raises
    ------
    NoGraph
        ``forward`` cannot be traced: it decides by values, or takes arguments that are no tensors.
    """
    return _Builder(model, names).graph(traced(model))


def is_norm(module: Any) -> bool:
    """Whether a module is a batch normalization, by what it holds."""
    buffers = {key for key, _ in module.named_buffers(recurse=False)}
    torch: Any = sys.modules["torch"]
    known = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    return known or ({"running_mean", "running_var"} <= buffers and isinstance(getattr(module, "eps", None), float))


def traced(model: Any) -> Any:
    """The ``torch.fx`` graph of a module, whose layers and batch normalizations are not looked into."""
    fx: Any = require("torch.fx", "torch", "Tracing a module")

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: Any, module_qualified_name: str) -> bool:
            known: Any = super()
            return is_norm(m) or bool(known.is_leaf_module(m, module_qualified_name))

    if not any(True for _ in model.children()):
        raise NoGraph("it is a single layer")
    wrapper = type(model).__name__
    if wrapper in WRAPPERS:
        raise NoGraph(f"it is wrapped in {wrapper}; give the module inside, model.{WRAPPERS[wrapper]}")
    try:
        with unchanged(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for module in model.modules():
                module.training = False
            tracer: Any = Tracer()
            return tracer.trace(model)
    except Exception as error:  # whatever forward raises on a stand-in
        text = " ".join(str(error).split())[:SHOWN]
        raise NoGraph(f"forward cannot be traced ({type(error).__name__}: {text})") from None


class _Builder:
    def __init__(self, model: Any, names: dict[int, str]) -> None:
        self._modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
        self._names = names

    def graph(self, found: Any) -> Graph:
        nodes = list(found.nodes)
        calls = Counter(id(self._modules[str(node.target)]) for node in nodes if node.op == "call_module")
        taken = {id(self._held(str(node.target))) for node in nodes if node.op == "get_attr"}
        shares = _shared_tensors(self._modules.values())
        inputs: list[str] = []
        outputs: list[str] = []
        operations: list[Operation] = []
        flowing: set[str] = set()
        for node in nodes:
            if node.op == "placeholder":
                inputs.append(node.name)
                flowing.add(node.name)
            elif node.op == "output":
                outputs += [each.name for each in node.all_input_nodes]
            elif any(each.name in flowing for each in node.all_input_nodes):
                flowing.add(node.name)
                operations.append(self._operation(node, flowing, calls, taken, shares))
        return Graph(operations=tuple(operations), inputs=tuple(inputs), outputs=tuple(outputs))

    def _held(self, path: str) -> Any:
        owner, _, last = path.rpartition(".")
        return getattr(self._modules.get(owner), last, None)

    def _operation(
        self, node: Any, flowing: set[str], calls: Counter[int], taken: set[int], shares: set[int]
    ) -> Operation:
        inputs = tuple(each.name for each in node.all_input_nodes if each.name in flowing)
        if node.op != "call_module":
            operator = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "function")
            moved, to = _permutation(operator, node.args[1:]), _cast(operator, node)
            rounds = to is not None and not to.is_floating_point  # to whole numbers
            return Operation(
                name=node.name,
                kind="other" if rounds else _function_kind(operator, inputs),
                operator=operator,
                inputs=inputs,
                outputs=(node.name,),
                settings=({} if moved is None else {"permutation": moved})
                | ({} if to is None or rounds else {"computes": str(to).removeprefix("torch.")})
                | ({"in_place": True} if _writes(operator, node) else {}),
            )
        path = str(node.target)
        module = self._modules[path]
        kind, settings, weights = _described(module)
        if kind in ("batch_norm", "conv", "conv_transpose", "dense") and (why := unfoldable(module)) is not None:
            settings["unfoldable"] = why
        elif kind == "batch_norm" and len(inputs) > 1:
            settings["unfoldable"] = f"is called with more than its input ({', '.join(inputs[1:])})"
        tensors = {id(each) for each in (*module.parameters(), *module.buffers())}
        is_shared = calls[id(module)] > 1 or bool(tensors & (taken | shares))
        if getattr(module, "inplace", False) is True:
            settings["in_place"] = True
        return Operation(
            name=self._names.get(id(module), path), kind=kind, operator=type(module).__name__, weights=weights,
            settings={**settings, "module": path}, shared=is_shared,
            inputs=inputs, outputs=(node.name,),
        )  # fmt: skip


def _shared_tensors(modules: Any) -> set[int]:
    """Parameters that several modules hold."""
    unique = {id(module): module for module in modules}.values()
    held = Counter(id(each) for module in unique for each in module.parameters(recurse=False))
    return {key for key, count in held.items() if count > 1}


def _permutation(operator: str, arguments: tuple[Any, ...]) -> tuple[int, ...] | None:
    """The order of axes, where the call gives it: an exchange of two does not tell how many there are."""
    lone = len(arguments) == 1 and isinstance(arguments[0], (tuple, list))
    order = tuple(cast("Any", arguments[0] if lone else arguments))
    if operator == "permute" and all(type(each) is int for each in order):
        return tuple(each % len(order) for each in order)
    if operator in ("transpose", "swapaxes") and sorted(map(str, order)) == ["1", "2"]:
        return (0, 2, 1)  # the other axes of more stay where they are
    return None


def _writes(operator: str, node: Any) -> bool:
    """Whether a call writes into its first argument."""
    is_named_so = operator.endswith("_") and not operator.endswith("__")
    return is_named_so or operator in IN_PLACE or node.kwargs.get("inplace") is True


def _cast(operator: str, node: Any) -> Any:
    """The type that a tensor is cast to; None where the call is no cast, or does not tell."""
    dtype: Any = sys.modules["torch"].dtype
    given = (*node.args, *node.kwargs.values())
    return next((each for each in given if operator == "to" and isinstance(each, dtype)), None)


def _function_kind(operator: str, inputs: tuple[str, ...]) -> Kind:
    name = operator.removeprefix("i") if operator in ("iadd", "imul", "isub") else operator
    if name in (*ARITHMETIC, "truediv"):
        if len(inputs) == 1:
            return "elementwise_linear"
        return "add" if name.startswith(("add", "sub")) else "other"
    return KINDS.get(name, "other")


Described = tuple[Kind, dict[str, Any], dict[str, Callable[[], NDArray[Any]]]]


def _described(module: Any) -> Described:
    nn: Any = sys.modules["torch"].nn
    if is_norm(module):
        return "batch_norm", {"axis": 1}, {}
    kind = cast("Any", type(module))
    if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        return _convolution(module)
    if kind is nn.Linear:
        return "dense", {"channel_axis": -1, "kernel_out_axis": 0, "kernel_in_axis": 1}, dict(_weights(module))
    found = _module_kind(kind.__name__)
    return "identity" if found == "dropout" and getattr(module, "p", None) == 0 else found, {}, {}


def _module_kind(name: str) -> Kind:
    if name in ACTIVATIONS:
        return "activation"
    if name in DROPOUTS:
        return "dropout"
    if name in STOCHASTIC_DEPTHS:
        return "stochastic_depth"
    if "Pool" in name and name.rstrip("d123")[-4:] == "Pool":
        return "pool"
    if name.startswith(PADS):
        return "pad"
    return "reshape" if name in RESHAPES else "identity" if name == "Identity" else "other"


def _convolution(module: Any) -> Described:
    transposed = bool(module.transposed)
    padding = module.padding
    pads = padding == "same" and any(each != 1 for each in module.kernel_size)
    pads = pads or (not isinstance(padding, str) and any(padding))
    settings: dict[str, Any] = {
        "rank": len(module.kernel_size),
        "groups": int(module.groups),
        "channel_axis": 1,
        "strides": tuple(module.stride),
        "pads": pads,
        "kernel_out_axis": 1 if transposed else 0,
        "kernel_in_axis": 0 if transposed else 1,
    }
    return ("conv_transpose" if transposed else "conv"), settings, dict(_weights(module))


def _weights(module: Any) -> Iterator[tuple[str, Callable[[], NDArray[Any]]]]:
    # A parametrized or pruned weight is computed anew from others at each call.
    if "weight" in dict(module.named_parameters(recurse=False)):
        yield "kernel", partial(array_of, module.weight)
    if module.bias is not None:
        yield "bias", partial(array_of, module.bias)
