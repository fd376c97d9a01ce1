"""The nodes of an exported program in the vocabulary of `batchnorm.core.graph`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

from numpy.typing import NDArray

from batchnorm.core.graph import Graph, Kind, NoGraph, Operation

from .pt2_graph import OPERATOR, Json, norm_of, state_names, tensors_of

__all__ = ["graph_of"]

Array = NDArray[Any]
Fetch = Callable[[str], Callable[[], Array] | None]
"""The name of a parameter -> what reads it; None where the file does not hold it as numbers."""

MOST_DEPTH = 20
KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        ("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "selu", "sigmoid", "hardsigmoid", "hardswish",
         "hardswish_", "hardtanh", "hardtanh_", "tanh", "silu", "silu_", "gelu", "mish", "softplus", "softmax", "clamp",
         "log_softmax", "_softmax", "prelu", "clamp_min", "celu", "glu"),
        "activation",
    ),
    **dict.fromkeys(
        ("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
         "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "max_pool2d_with_indices", "mean",
         "amax", "adaptive_max_pool2d"),
        "pool",
    ),
    **dict.fromkeys(("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "t", "_unsafe_view",
                     "contiguous", "pixel_shuffle"), "reshape"),
    **dict.fromkeys(("dropout", "dropout_", "feature_dropout", "native_dropout", "alpha_dropout"), "dropout"),
    **dict.fromkeys(("pad", "constant_pad_nd"), "pad"),
    **dict.fromkeys(("clone", "alias", "_to_copy", "to", "detach", "lift_fresh_copy"), "identity"),
    "cat": "concat",
}  # fmt: skip
CASTS = ("to", "_to_copy")
FLOATS = {6: "float16", 7: "float32", 8: "float64", 13: "bfloat16"}
"""ScalarType of PyTorch's schema."""
PARAMETERS = ("weight", "bias", "running_mean", "running_var")
ARITHMETIC = ("add", "add_", "sub", "mul", "mul_", "div")
CONVOLUTIONS = {
    **{f"conv{rank}d": (rank, False) for rank in (1, 2, 3)},
    "conv_transpose1d": (1, True),
    "conv_transpose2d": (2, True),
    "conv_transpose3d": (3, True),
    "convolution": (0, False),
}


def graph_of(module: Json, fetch: Fetch) -> Graph:
    """The graph of a program.

    Parameters
    ----------
    module : dict
        The ``graph_module`` of its JSON.
    fetch : callable
        Gives the program's parameters by name.

    Raises
    ------
    NoGraph
        It does not tell which node feeds which.
    """
    try:
        return _Builder(module, fetch).graph()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise NoGraph(f"its nodes do not tell how they are connected ({type(error).__name__})") from None


class _Builder:
    def __init__(self, module: Json, fetch: Fetch) -> None:
        self._module = module
        self._fetch = fetch
        self._state = dict(state_names(module["signature"]["input_specs"]))

    def graph(self) -> Graph:
        graph, signature = self._module["graph"], self._module["signature"]
        inputs = tuple(name for each in graph["inputs"] for name in tensors_of(each) if name not in self._state)
        outputs = tuple(
            name
            for spec in signature["output_specs"]
            if "user_output" in spec
            for name in tensors_of(spec["user_output"]["arg"])
        )
        self._kernels = Counter(
            name for node in graph["nodes"] for each in node["inputs"] for name in tensors_of(each["arg"])
            if name in self._state
        )  # fmt: skip
        flowing = set(inputs)
        operations: list[Operation] = []
        for node in cast("list[Json]", graph["nodes"]):
            found = self._operation(node, flowing)
            if found is not None:
                flowing.update(found.outputs)
                operations.append(found)
        return Graph(operations=tuple(operations), inputs=inputs, outputs=outputs)

    def _operation(self, node: Json, flowing: set[str]) -> Operation | None:
        taken = list(dict.fromkeys(name for each in node["inputs"] for name in _deep(each["arg"], 0)))
        inputs = tuple(name for name in taken if name in flowing)
        outputs = tuple(name for each in node["outputs"] for name in tensors_of(each))
        if not outputs or (not inputs and not _is_random(node)):
            return None
        matched = OPERATOR.fullmatch(node["target"])
        operator = matched[1] if matched else str(node["target"])
        arguments: Json = {each["name"]: each["arg"] for each in node["inputs"]}
        named = str(node.get("name") or outputs[0])
        norm = norm_of(node, self._state)
        kind, settings = self._described(operator, arguments, node["target"], inputs)
        weights: dict[str, Callable[[], Array]] = {}
        settings |= {"node": outputs[0]} | ({"in_place": True} if operator.endswith("_") else {})
        if (order := self._permutation(operator, arguments, inputs)) is not None:
            settings["permutation"] = order
        shared = False
        if norm is not None:
            kind, settings = "batch_norm", settings | {"axis": 1, "arrays": norm.arrays}
            described: Json = self._module["graph"].get("tensor_values") or {}
            if inputs and inputs[0] in described:
                settings["input_rank"] = len(described[inputs[0]]["sizes"])
            named = norm.name
            shared = any(self._kernels[name] > 1 for key in PARAMETERS for name in tensors_of(arguments.get(key) or {}))
        elif kind in ("conv", "conv_transpose", "dense"):
            held = {role: name for role, key in (("kernel", "weight"), ("bias", "bias"))
                    for name in tensors_of(arguments.get(key) or {})}  # fmt: skip
            settings |= {f"{role}_value": name for role, name in held.items()}
            state = {role: self._state[name] for role, name in held.items() if name in self._state}
            weights = {role: read for role, name in state.items() if (read := self._fetch(name)) is not None}
            settings |= {f"{role}_name": name for role, name in state.items()}
            shared = any(self._kernels[name] > 1 for name in held.values())
            prefix, _, last = state.get("kernel", "").rpartition(".")
            named = prefix if last == "weight" else named
        return Operation(
            name=named, kind=kind, operator=operator, inputs=inputs, outputs=outputs, weights=weights,
            settings=settings, shared=shared,
        )  # fmt: skip

    def _permutation(self, operator: str, arguments: Json, inputs: tuple[str, ...]) -> tuple[int, ...] | None:
        if operator == "permute":
            order = [int(each) for each in arguments["dims"]["as_ints"]]
            return tuple(each % len(order) for each in order)
        described: Json = self._module["graph"].get("tensor_values") or {}
        if operator != "transpose" or not inputs or inputs[0] not in described:
            return None
        order = list(range(len(described[inputs[0]]["sizes"])))
        first, second = int(arguments["dim0"]["as_int"]), int(arguments["dim1"]["as_int"])
        order[first], order[second] = order[second], order[first]
        return tuple(order)

    def _described(
        self, operator: str, arguments: Json, target: str, inputs: tuple[str, ...]
    ) -> tuple[Kind, dict[str, Any]]:
        if operator in CONVOLUTIONS:
            return _convolution(operator, arguments)
        if operator == "linear":
            return "dense", {"channel_axis": -1, "kernel_out_axis": 0, "kernel_in_axis": 1}
        if operator in ARITHMETIC:
            if len(inputs) == 1:
                return "elementwise_linear", {}
            return ("add" if operator.startswith(("add", "sub")) else "other"), {}
        if operator in CASTS:
            given: Json = arguments.get("dtype") or {}
            return _cast(given.get("as_scalar_type"))
        rate: Json = arguments.get("p") or {}
        if KINDS.get(operator) == "dropout" and rate.get("as_float") == 0:
            return "identity", {}
        return KINDS.get(operator, "other") if target.startswith("torch.ops.aten.") else "other", {}


def _cast(to: int | None) -> tuple[Kind, dict[str, Any]]:
    """A mere name from one floating-point type to another; to whole numbers it rounds."""
    if to is None:
        return "identity", {}
    return ("identity", {"computes": FLOATS[to]}) if to in FLOATS else ("other", {})


def _convolution(operator: str, arguments: Json) -> tuple[Kind, dict[str, Any]]:
    rank, transposed = CONVOLUTIONS[operator]
    if operator == "convolution":
        transposed = bool(arguments["transposed"]["as_bool"])
        rank = len(arguments["padding"]["as_ints"])
    padding: Json = arguments.get("padding") or {}
    pads = padding.get("as_string") == "same" or any(padding.get("as_ints") or ()) or "as_int" in padding
    groups: Json = arguments.get("groups") or {}
    strides: Json = arguments.get("stride") or {}
    more = {
        "rank": rank,
        "groups": groups.get("as_int", 1),
        "channel_axis": 1,
        "strides": tuple(strides.get("as_ints") or ()),
        "pads": pads,
        "kernel_out_axis": 1 if transposed else 0,
        "kernel_in_axis": 0 if transposed else 1,
    }
    return ("conv_transpose" if transposed else "conv"), more


def _deep(arg: Json, depth: int) -> Iterator[str]:
    """The values in an argument; a branch takes what its caller hands it, which is among the arguments, too."""
    yield from tensors_of(arg)
    for each in arg.get("as_optional_tensors") or ():
        if isinstance(each, dict) and "as_tensor" in each:
            yield str(cast("Json", each)["as_tensor"]["name"])


def _is_random(node: Json) -> bool:
    return ".rand" in str(node["target"]) or ".bernoulli" in str(node["target"])
